//! Takes a checkpoint: its bytes into the store, a worker to try it out, and then a record for all to see.
//!
//! Nothing is visible before the last step. Who goes away in the middle leaves bytes in the store that a next call goes
//! on from, and that a collection takes away some day.

use std::time::Duration;

use cluster::{JobFence, ListedVersion, ModelKind, PutVersion, Refused, Version, unix_ms};
use proto::v1;
use proto::v1::publish_response::Step;
use store::{Publication, Store, UploadError};
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use tracing::{Instrument as _, Span};

use super::golden::may_agree;
use super::rehearse::{Rehearsed, Rival};
use super::swap::refused;
use crate::error::{ManageError, Unmet};
use crate::service::Service;
use crate::show;
use crate::status::{canonical, idle};
use crate::wire::swaps::{self, Upload};
use crate::wire::{Fault, InvalidRequest};

/// A publisher that sends nothing for so long gives its place up.
const IDLE: Duration = Duration::from_secs(300);

/// What is told to a publisher, one thing at a time.
pub(super) type Answers = mpsc::Sender<Result<v1::PublishResponse, Status>>;

/// Why a publication ends early.
#[derive(Debug)]
pub(super) enum Ended {
    /// It cannot be carried out.
    Refused(ManageError),
    /// The publisher sent what is none of its messages.
    Broken(Status),
    /// The publisher says nothing for too long.
    Idle,
    /// The publisher is gone.
    Gone,
}

impl<E: Into<ManageError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

impl Service {
    /// Takes a checkpoint, and says on the way what is wanted.
    pub(super) fn take(
        &self,
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> ReceiverStream<Result<v1::PublishResponse, Status>> {
        let (answers, taken) = mpsc::channel(1);
        let (service, requests) = (self.clone(), request.into_inner());
        let taking = async move {
            let status = match service.publish_from(requests, &answers).await {
                Ok(()) | Err(Ended::Gone) => return,
                Err(Ended::Refused(error)) => error.into(),
                Err(Ended::Broken(status)) => canonical(status),
                Err(Ended::Idle) => idle(IDLE),
            };
            // Whoever is gone needs no reason.
            let _ = answers.send(Err(status)).await;
        };
        self.streams.spawn(taking.instrument(Span::current()));
        ReceiverStream::new(taken)
    }

    async fn publish_from(
        &self,
        mut requests: Streaming<v1::PublishRequest>,
        answers: &Answers,
    ) -> Result<(), Ended> {
        let full = "as many checkpoints as may be published at a time are being published";
        let _room = self.control.publications.try_acquire().map_err(|_| ManageError::Full(full))?;
        let first = next(&mut requests).await?.unwrap_or_default();
        let upload = swaps::upload(first, self.control.collection.max_checkpoint_bytes)?;
        Span::current().record("model", upload.model.as_str());
        let store = self.control.store()?;
        let versions =
            self.control.etcd.list_versions(Some(upload.model.as_str())).await.map_err(ManageError::from)?;
        may_agree(&upload, &versions)?;
        let rival = Rival::of(&upload, &versions)?;
        self.may_follow(&upload, &versions)?;

        mend_what_is_known(store, &upload, &versions).await?;
        let mut publication = store.publish(&upload.files).await.map_err(not_taken)?;
        let rehearsed = async {
            receive(&mut publication, &mut requests, answers).await?;
            self.rehearse(&upload, rival.as_ref(), answers).await
        };
        let listed = match rehearsed.await {
            Ok(rehearsed) => self.record(publication, upload.clone(), rehearsed).await?,
            Err(ended) => {
                if let Err(error) = publication.abandon().await {
                    tracing::debug!(%error, "a publication leaves its mark to the next collection");
                }
                return Err(ended);
            }
        };
        // First the swap, so that who hears that all is done finds it; and the version also where there is none.
        let begun = match upload.promote {
            Some(plan) if !self.means(&listed) => self.begin_swap(&listed, &plan).await.map(drop),
            Some(_) | None => Ok(()),
        };
        let version = show::version(&listed, &self.control.view(), &self.dispatcher.fleet());
        tell(answers, Step::Published(version)).await?;
        Ok(begun?)
    }

    /// Refuses, before anything is uploaded, what cannot be promoted thereafter as things stand.
    fn may_follow(&self, upload: &Upload, versions: &[ListedVersion]) -> Result<(), ManageError> {
        let Some(plan) = &upload.promote else { return Ok(()) };
        let (view, model) = (self.control.view(), upload.model.as_str());
        let known = versions.iter().find(|listed| listed.version.manifest.is_of(&upload.files));
        let is_known = |digest: &str| known.is_some_and(|known| known.digest == digest);
        let under_way = view.swaps.get(model).filter(|swap| swap.state.is_open() && !is_known(&swap.to));
        if let Some(swap) = under_way {
            return Err(refused(model, &Refused::UnderWay { to: swap.to.clone() }));
        }
        let Some(alias) = view.aliases.get(model).filter(|alias| !is_known(&alias.digest)) else {
            return Ok(());
        };
        let current = versions.iter().find(|listed| listed.digest == alias.digest);
        if let (Some(current), Some(known)) = (current, known)
            && current.version.kind != known.version.kind
        {
            let (from, to) = (alias.digest.clone(), known.digest.clone());
            return Err(refused(model, &Refused::OtherKind { from, to }));
        }
        let space = known.map(|known| &known.version.index_space).or(upload.index_space.as_ref());
        let comparable = current.is_some_and(|current| {
            current.version.kind == ModelKind::CrossEncoder || Some(&current.version.index_space) == space
        });
        if plan.new_space || comparable {
            return Ok(());
        }
        let (from, to) = (alias.digest.clone(), "the checkpoint to be published".to_owned());
        Err(refused(model, &Refused::OtherSpace { from, to }))
    }

    /// Whether the name means a version already.
    fn means(&self, listed: &ListedVersion) -> bool {
        let view = self.control.view();
        view.aliases.get(&listed.model).is_some_and(|alias| alias.digest == listed.digest)
    }

    /// Makes a checkpoint that was tried out visible.
    async fn record(
        &self,
        publication: Publication,
        upload: Upload,
        rehearsed: Rehearsed,
    ) -> Result<ListedVersion, ManageError> {
        let Rehearsed { manifest, kind, architecture, index_space, tokenizer_sha256, golden } = rehearsed;
        let digest = publication.finish(&manifest).await?;
        let version = Version {
            manifest,
            stored: true,
            kind,
            architecture,
            index_space,
            tokenizer_sha256,
            parent: upload.parent.as_ref().map(ToString::to_string),
            evaluation: upload.evaluation,
            golden: Some(golden),
            job: upload.job.as_ref().map(|job| job.name.to_string()),
            created_unix_ms: unix_ms(),
        };
        let fence = upload.job.and_then(|job| {
            let (job, owner_revision) = (job.name, job.owner_revision?);
            Some(JobFence { job, owner_revision })
        });
        let model = upload.model.to_string();
        let version = match self.control.etcd.put_version(&model, &version, fence.as_ref()).await? {
            PutVersion::New => version,
            PutVersion::Known(known) => *known,
            PutVersion::NotOwner => {
                let job = fence.map(|fence| fence.job.to_string()).unwrap_or_default();
                let sentence = format!("job {job} has another owner by now, who publishes in its place");
                return Err(Unmet { what: "JOB_OWNER", subject: job, sentence }.into());
            }
        };
        Span::current().record("digest", &digest);
        tracing::info!(model, digest, "a checkpoint was published");
        Ok(ListedVersion { model, digest, version })
    }
}

/// Whoever publishes what is known already may do so because a worker met a damaged file: the store forgets those that
/// are, so that they are wanted again.
async fn mend_what_is_known(
    store: &Store,
    upload: &Upload,
    versions: &[ListedVersion],
) -> Result<(), ManageError> {
    let is_stored =
        |listed: &ListedVersion| listed.version.stored && listed.version.manifest.is_of(&upload.files);
    if !versions.iter().any(is_stored) {
        return Ok(());
    }
    let damaged = store.mend(&upload.files).await?;
    if !damaged.is_empty() {
        tracing::warn!(model = %upload.model, ?damaged, "files in the store were damaged: they are asked for again");
    }
    Ok(())
}

/// Asks for the bytes that the store does not have, and takes them.
async fn receive(
    publication: &mut Publication,
    requests: &mut Streaming<v1::PublishRequest>,
    answers: &Answers,
) -> Result<(), Ended> {
    let wanted = publication.wanted();
    let files = wanted.iter().map(|file| v1::WantedFile { sha256: file.sha256.clone(), offset: file.offset });
    tell(answers, Step::Wants(v1::PublishWants { files: files.collect() })).await?;
    let mut open: Option<String> = None;
    while !publication.is_whole() {
        let request = next(requests).await?.ok_or_else(cut_short)?;
        let v1::PublishChunk { sha256, offset, data } = swaps::chunk(request)?;
        if let Some(open) = open.as_ref().filter(|open| **open != sha256) {
            let why = format!("the file {open} is not whole yet, and files come one after the other");
            return Err(
                InvalidRequest { field: "chunk.sha256".to_owned(), fault: Fault::Malformed(why) }.into()
            );
        }
        publication.write(&sha256, offset, data.into()).await.map_err(not_taken)?;
        open = publication.wanted().iter().any(|wanted| wanted.sha256 == sha256).then_some(sha256);
    }
    Ok(())
}

fn cut_short() -> InvalidRequest {
    let why = "the upload ended before all bytes that are wanted had come".to_owned();
    InvalidRequest { field: "chunk".to_owned(), fault: Fault::Malformed(why) }
}

async fn next(requests: &mut Streaming<v1::PublishRequest>) -> Result<Option<v1::PublishRequest>, Ended> {
    match time::timeout(IDLE, requests.message()).await {
        Ok(message) => message.map_err(Ended::Broken),
        Err(_) => Err(Ended::Idle),
    }
}

pub(super) async fn tell(answers: &Answers, step: Step) -> Result<(), Ended> {
    let answer = v1::PublishResponse { step: Some(step) };
    answers.send(Ok(answer)).await.map_err(|_| Ended::Gone)
}

/// Names the field at fault where the publisher is at fault.
fn not_taken(error: UploadError) -> ManageError {
    let field = match error {
        UploadError::Store(error) => return error.into(),
        UploadError::Unasked(_) => "chunk.sha256",
        UploadError::Misplaced { .. } => "chunk.offset",
        UploadError::Overlong { .. } | UploadError::Checksum { .. } => "chunk.data",
        UploadError::Contradiction(_) => "begin.files",
    };
    InvalidRequest { field: field.to_owned(), fault: Fault::Malformed(error.to_string()) }.into()
}
