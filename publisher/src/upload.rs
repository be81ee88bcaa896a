//! The stream of a publication: what is sent, and what is heard.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use anyhow::Context as _;
use futures::stream::{self, BoxStream, StreamExt as _};
use manifest::ManifestFile;
use proto::v1::publish_request::Step as Sent;
use proto::v1::publish_response::Step as Heard;
use proto::v1::{
    Preparation, PublishBegin, PublishChunk, PublishRequest, PublishResponse, Version, WantedFile,
};
use tokio::sync::mpsc;
use tokio::task;
use tonic::{Response, Status, Streaming};

use crate::Failure;

/// Bytes of a chunk: the most that is taken.
const CHUNK: usize = 1 << 20;
/// Chunks read ahead of the connection.
const AHEAD: usize = 4;

/// What is sent.
pub type Outgoing = BoxStream<'static, PublishRequest>;

/// Why an attempt ended before the checkpoint was published.
#[derive(Debug)]
pub enum Cut {
    /// By the server or on the way; a next attempt may fare better.
    Status(Status),
    /// Here.
    Here(Failure),
}

impl From<Failure> for Cut {
    fn from(failure: Failure) -> Self {
        Self::Here(failure)
    }
}

/// What an attempt tells of its progress.
#[derive(Debug)]
pub enum News<'a> {
    /// So many of the bytes that are to be in the store are there.
    Sent {
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A worker tries it.
    Trial(&'a Preparation),
}

/// Sends what is wanted of the checkpoint in `dir`, once; `publish` makes the call.
///
/// # Errors
/// [`Cut`].
pub async fn attempt(
    publish: impl AsyncFnOnce(Outgoing) -> Result<Response<Streaming<PublishResponse>>, Status>,
    dir: &Path,
    begin: &PublishBegin,
    files: &[ManifestFile],
    told: &mut impl FnMut(News<'_>),
) -> Result<Version, Cut> {
    let (steps, outgoing) = mpsc::channel(AHEAD);
    let first = PublishRequest { step: Some(Sent::Begin(begin.clone())) };
    // There is room for it: nothing is in the channel yet.
    let _ = steps.send(first).await;
    let next_step = async |mut steps: mpsc::Receiver<_>| steps.recv().await.map(|step| (step, steps));
    let outgoing = stream::unfold(outgoing, next_step).boxed();
    let heard = publish(outgoing).await.map_err(Cut::Status)?;
    let mut heard = heard.into_inner();
    let Heard::Wants(wants) = next(&mut heard).await? else {
        return Err(against_protocol("it did not say what it wants"));
    };
    let total = files.iter().map(|file| file.size).sum();
    let mut done = total - missing(&wants.files, files)?;
    let (progress, mut chunks) = mpsc::channel(AHEAD);
    let mut sending = pin!(send(dir, &wants.files, files, (steps, progress)));
    let mut is_sending = true;
    loop {
        // Cancel safe: a step or a chunk that is there is taken by the branch that wins.
        tokio::select! {
            sent = &mut sending, if is_sending => {
                is_sending = false;
                sent?;
            }
            Some(bytes) = chunks.recv() => {
                done += bytes;
                told(News::Sent { done, total });
            }
            step = next(&mut heard) => match step? {
                Heard::Published(version) => return Ok(version),
                Heard::Progress(progress) => progress.trial.iter().for_each(|trial| told(News::Trial(trial))),
                Heard::Wants(_) => return Err(against_protocol("it asked twice what it wants")),
            },
        }
    }
}

async fn next(heard: &mut Streaming<PublishResponse>) -> Result<Heard, Cut> {
    match heard.message().await.map_err(Cut::Status)? {
        Some(PublishResponse { step: Some(step) }) => Ok(step),
        Some(PublishResponse { step: None }) => Err(against_protocol("it answered with nothing")),
        None => Err(against_protocol("it ended without an answer")),
    }
}

fn against_protocol(what: &str) -> Cut {
    Cut::Here(Failure::Protocol(what.to_owned()))
}

/// Bytes that are wanted, files of equal bytes counted as often as they occur: never more than there are.
fn missing(wanted: &[WantedFile], files: &[ManifestFile]) -> Result<u64, Cut> {
    let (mut asked, mut bytes) = (BTreeSet::new(), 0);
    for WantedFile { sha256, offset } in wanted {
        if !asked.insert(sha256) {
            return Err(against_protocol("it wants a file twice"));
        }
        let same = files.iter().filter(|file| file.sha256 == *sha256 && *offset <= file.size);
        let left: Vec<_> = same.map(|file| file.size - offset).collect();
        if left.is_empty() {
            return Err(against_protocol("it wants what was not offered"));
        }
        bytes += left.iter().sum::<u64>();
    }
    Ok(bytes)
}

/// Sends the wanted files one after the other, and tells how many bytes of what is missing each chunk is.
async fn send(
    dir: &Path,
    wanted: &[WantedFile],
    files: &[ManifestFile],
    (steps, progress): (mpsc::Sender<PublishRequest>, mpsc::Sender<u64>),
) -> Result<(), Failure> {
    for WantedFile { sha256, offset } in wanted {
        let same: Vec<_> = files.iter().filter(|file| file.sha256 == *sha256).collect();
        let Some(file) = same.first() else { continue };
        let path = dir.join(&file.path);
        let open = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (open, mut at) = (Arc::new(open), *offset);
        while at < file.size {
            let data = read(&open, at, file.size - at).await.with_context(|| {
                format!("cannot read {}, or it changed while it was sent", path.display())
            })?;
            let bytes = data.len() as u64;
            let chunk = PublishChunk { sha256: sha256.clone(), offset: at, data };
            if steps.send(PublishRequest { step: Some(Sent::Chunk(chunk)) }).await.is_err() {
                return Ok(()); // The call has ended; its answer says why.
            }
            // Whoever listens ends with this.
            let _ = progress.send(bytes * same.len() as u64).await;
            at += bytes;
        }
    }
    Ok(())
}

/// A chunk of at most `left` bytes.
async fn read(open: &Arc<File>, at: u64, left: u64) -> anyhow::Result<Vec<u8>> {
    let bytes = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
    let open = Arc::clone(open);
    let read = move || {
        let mut data = vec![0; bytes];
        open.read_exact_at(&mut data, at).map(|()| data)
    };
    Ok(task::spawn_blocking(read).await??)
}
