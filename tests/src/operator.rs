//! Whoever changes what a model's name means: publishes, promotes, rolls back, and waits.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::v1::models_client::ModelsClient;
use proto::v1::publish_request::Step as Send;
use proto::v1::publish_response::Step as Told;
use proto::v1::{
    CheckpointFile, GetModelRequest, GetSwapRequest, Model, PinRequest, PromoteRequest, PublishBegin,
    PublishChunk, PublishRequest, RetireRequest, RollbackRequest, Swap, SwapPlan, SwapState, Version,
    WantedFile,
};
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::history::Digest;
use crate::{PATIENCE, Process, channel};

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;

/// An operator of one model, at one gateway.
#[derive(Clone, Debug)]
pub struct Operator {
    /// The gateway's name.
    pub gateway: String,
    client: ModelsClient<Channel>,
    model: String,
}

impl Operator {
    /// Speaks to `gateway` about `model`.
    pub fn new(gateway: &Process, model: &str) -> Self {
        let client = ModelsClient::new(channel(gateway));
        Self { client, gateway: gateway.name.clone(), model: model.to_owned() }
    }

    /// Publishes the directory `dir`; of `begin`, the model and the files are filled in here.
    pub async fn publish(&mut self, dir: &Path, begin: PublishBegin) -> Result<Version, Status> {
        let files = manifest::hash(dir, files_below(dir)).unwrap();
        let by_hash: HashMap<_, _> =
            files.iter().map(|file| (file.sha256.clone(), dir.join(&file.path))).collect();
        let wire = |file: manifest::ManifestFile| CheckpointFile {
            path: file.path,
            size: file.size,
            sha256: file.sha256,
        };
        let files = files.into_iter().map(wire).collect();
        let begin = PublishBegin { model: self.model.clone(), files, ..begin };

        let (requests, taken) = mpsc::channel(4);
        requests.send(PublishRequest { step: Some(Send::Begin(begin)) }).await.unwrap();
        let mut answers = self.client.publish(ReceiverStream::new(taken)).await?.into_inner();
        let mut requests = Some(requests);
        while let Some(answer) = answers.message().await? {
            match answer.step {
                Some(Told::Wants(wants)) => {
                    // What stops it is told by the answers.
                    let _ = upload(&by_hash, &wants.files, &requests.take().expect("told once")).await;
                }
                Some(Told::Published(version)) => return Ok(version),
                Some(Told::Progress(_)) | None => {}
            }
        }
        Err(Status::unknown("the stream ended before anything was published"))
    }

    /// Asks for a swap.
    pub async fn promote(&mut self, digest: &Digest, plan: SwapPlan) -> Result<Swap, Status> {
        let (model, digest) = (self.model.clone(), digest.as_str().to_owned());
        let request = PromoteRequest { model, digest, plan: Some(plan) };
        self.client.promote(request).await.map(tonic::Response::into_inner)
    }

    /// Asks for the checkpoint of before.
    pub async fn rollback(&mut self) -> Result<Swap, Status> {
        let request = RollbackRequest { model: self.model.clone() };
        self.client.rollback(request).await.map(tonic::Response::into_inner)
    }

    /// Asks to let go of the checkpoint of before.
    pub async fn retire(&mut self) -> Result<Swap, Status> {
        let request = RetireRequest { model: self.model.clone(), digest: String::new() };
        self.client.retire(request).await.map(tonic::Response::into_inner)
    }

    /// Keeps a checkpoint loaded.
    pub async fn pin(&mut self, digest: &Digest) -> Result<Version, Status> {
        let (model, digest) = (self.model.clone(), digest.as_str().to_owned());
        self.client.pin(PinRequest { model, digest, unpin: false }).await.map(tonic::Response::into_inner)
    }

    /// Keeps it no longer.
    pub async fn unpin(&mut self, digest: &Digest) -> Result<Version, Status> {
        let (model, digest) = (self.model.clone(), digest.as_str().to_owned());
        self.client.pin(PinRequest { model, digest, unpin: true }).await.map(tonic::Response::into_inner)
    }

    /// What the name means here.
    pub async fn model(&mut self) -> Model {
        let request = GetModelRequest { name: self.model.clone() };
        self.client.get(request).await.unwrap().into_inner()
    }

    /// The last swap, as it is.
    pub async fn swap(&mut self) -> Swap {
        let request = GetSwapRequest { model: self.model.clone() };
        self.client.get_swap(request).await.unwrap().into_inner()
    }

    /// Waits for a swap of which `wanted` holds.
    #[track_caller]
    pub fn until<W: Fn(&Swap) -> bool>(&self, wanted: W) -> impl Future<Output = Swap> + use<W> {
        let (asked, mut here) = (std::panic::Location::caller(), self.clone());
        async move {
            let begun = time::Instant::now();
            loop {
                let swap = here.swap().await;
                if wanted(&swap) {
                    return swap;
                }
                assert!(begun.elapsed() < PATIENCE, "{asked}: the swap stays as it is: {swap:#?}");
                time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Whether nothing will change any more but what becomes of the old checkpoint.
pub fn is_decided(state: SwapState) -> bool {
    match state {
        SwapState::Committed | SwapState::Retired | SwapState::Aborted | SwapState::RolledBack => true,
        SwapState::Unspecified | SwapState::Requested | SwapState::Preparing | SwapState::Trial => false,
    }
}

async fn upload(
    files: &HashMap<String, PathBuf>,
    wanted: &[WantedFile],
    to: &mpsc::Sender<PublishRequest>,
) -> Result<(), mpsc::error::SendError<PublishRequest>> {
    for WantedFile { sha256, offset } in wanted {
        let bytes = fs::read(&files[sha256]).unwrap();
        let start = usize::try_from(*offset).unwrap();
        // A file of no bytes is one chunk of none.
        let places = (start..bytes.len()).step_by(CHUNK).chain((bytes.len() == start).then_some(start));
        for place in places {
            let data = bytes[place..bytes.len().min(place + CHUNK)].to_vec();
            let chunk = PublishChunk { sha256: sha256.clone(), offset: place as u64, data };
            to.send(PublishRequest { step: Some(Send::Chunk(chunk)) }).await?;
        }
    }
    Ok(())
}

/// All files of a directory, relative to it.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path) -> Vec<PathBuf> {
        let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }
    walk(dir).iter().map(|path| path.strip_prefix(dir).unwrap().to_owned()).collect()
}
