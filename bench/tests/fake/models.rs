//! `Models`: what is published is kept, swaps are told as [`Control::script`] has them.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use proto::v1::models_server::Models;
use proto::v1::publish_request::Step as Sent;
use proto::v1::publish_response::Step as Heard;
use proto::v1::{
    Checkpoint, CheckpointFile, CollectRequest, CollectResponse, GetModelRequest, GetSwapRequest,
    GoldenSource, ListModelsRequest, ListModelsResponse, ListVersionsRequest, ListVersionsResponse, Model,
    ModelKind, PinRequest, Preparation, PromoteRequest, PublishBegin, PublishProgress, PublishRequest,
    PublishResponse, PublishWants, RetireRequest, RollbackRequest, Stage, Swap, SwapState, Version,
    VersionRole, WantedFile, WatchSwapRequest,
};
use tokio::sync::Semaphore;
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::answers::DIMENSIONS;
use super::services::{Answers, Services};

/// Checkpoints and swaps: what there is, and what was asked.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Bytes of files by their SHA-256, whole or not.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
    /// Bytes that came in all publications.
    pub(crate) received: usize,
    /// After so many bytes of the next publication the connection is given up, once.
    pub(crate) cut: Option<usize>,
    /// The next publication is refused with this sentence when all its bytes have come.
    pub(crate) refusal: Option<String>,
    pub(crate) versions: Vec<Version>,
    /// What is told to who watches, from the first to the last.
    pub(crate) script: Vec<Swap>,
    /// Where there is one, each of it is told for a permit of this.
    pub(crate) gate: Option<Arc<Semaphore>>,
    /// Every request to change something, as text.
    pub(crate) asked: Vec<String>,
}

pub(crate) fn checkpoint(name: &str, digest: &str) -> Checkpoint {
    let pairs = name.contains("reranker");
    Checkpoint {
        digest: digest.to_owned(),
        index_space: digest.to_owned(),
        kind: if pairs { ModelKind::CrossEncoder } else { ModelKind::Embedder }.into(),
        dimensions: if pairs { 0 } else { u32::try_from(DIMENSIONS).unwrap() },
        max_tokens: 512,
        pooling: if pairs { String::new() } else { "mean".to_owned() },
        normalize: !pairs,
        architecture: "BertModel".to_owned(),
        dtypes: vec!["f32".to_owned()],
        ready_workers: 2,
    }
}

/// A digest that follows from the files.
fn digest(files: &[CheckpointFile]) -> String {
    let mut hasher = DefaultHasher::new();
    for file in files {
        (&file.path, &file.sha256).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish()).repeat(4)
}

impl Services {
    fn listed(&self) -> Vec<Model> {
        let model = |(name, digest): &(String, String)| Model {
            name: name.clone(),
            checkpoint: Some(checkpoint(name, digest)),
            epoch: 1,
            others: Vec::new(),
        };
        self.state.lock().unwrap().models.iter().map(model).collect()
    }

    fn control<T>(&self, with: impl FnOnce(&mut Control) -> T) -> T {
        with(&mut self.state.lock().unwrap().control)
    }

    /// Notes a request to change something, and answers the swap that the script begins with.
    fn asked<T: std::fmt::Debug>(&self, request: &Request<T>) -> Result<Response<Swap>, Status> {
        self.control(|control| {
            control.asked.push(format!("{:?}", request.get_ref()));
            let first = control.script.first().cloned();
            first
                .map(Response::new)
                .ok_or_else(|| Status::failed_precondition("there is nothing to go back to"))
        })
    }

    fn missing(&self, files: &[CheckpointFile]) -> Vec<WantedFile> {
        self.control(|control| {
            let there =
                |file: &CheckpointFile| control.blobs.get(&file.sha256).map_or(0, |blob| blob.len() as u64);
            let missing = files.iter().filter(|file| there(file) < file.size);
            let mut wanted: Vec<_> =
                missing.map(|file| WantedFile { sha256: file.sha256.clone(), offset: there(file) }).collect();
            wanted.sort_by(|a, b| a.sha256.cmp(&b.sha256));
            wanted.dedup();
            wanted
        })
    }

    /// Takes bytes; an error where the connection is to be given up.
    fn take(&self, request: PublishRequest) -> Result<(), Status> {
        let Some(Sent::Chunk(chunk)) = request.step else {
            return Err(Status::invalid_argument("a chunk is wanted"));
        };
        self.control(|control| {
            let blob = control.blobs.entry(chunk.sha256).or_default();
            assert_eq!(blob.len() as u64, chunk.offset, "chunks come in order");
            blob.extend_from_slice(&chunk.data);
            control.received += chunk.data.len();
            match control.cut {
                Some(cut) if control.received >= cut => {
                    control.cut = None;
                    Err(Status::unavailable("the gateway leaves"))
                }
                Some(_) | None => Ok(()),
            }
        })
    }

    fn published(&self, begin: PublishBegin) -> Result<Version, Status> {
        self.control(|control| {
            if let Some(refusal) = control.refusal.take() {
                return Err(Status::failed_precondition(refusal));
            }
            control.asked.push(format!("{begin:?}"));
            let golden_from =
                if begin.golden.is_empty() { GoldenSource::Trial } else { GoldenSource::Publisher };
            let version = Version {
                checkpoint: Some(checkpoint(&begin.model, &digest(&begin.files))),
                model: begin.model,
                files: begin.files,
                parent: begin.parent,
                evaluation: begin.evaluation,
                stored: true,
                golden_inputs: 3,
                golden_from: golden_from.into(),
                role: VersionRole::Unspecified.into(),
                ..Version::default()
            };
            control.versions.insert(0, version.clone());
            if let Some(first) = control.script.first_mut().filter(|_| begin.promote.is_some()) {
                first.to.clone_from(&version.checkpoint.as_ref().unwrap().digest);
            }
            Ok(version)
        })
    }
}

fn heard(step: Heard) -> PublishResponse {
    PublishResponse { step: Some(step) }
}

fn trial(stage: Stage) -> PublishResponse {
    let trial = Preparation { worker: "worker-0".into(), stage: stage.into(), ..Preparation::default() };
    heard(Heard::Progress(PublishProgress { trial: Some(trial) }))
}

#[tonic::async_trait]
impl Models for Services {
    async fn list(
        &self,
        request: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let authorization = request.metadata().get("authorization");
        self.state.lock().unwrap().authorization =
            authorization.map(|value| value.to_str().unwrap().to_owned());
        Ok(Response::new(ListModelsResponse { models: self.listed() }))
    }

    async fn get(&self, request: Request<GetModelRequest>) -> Result<Response<Model>, Status> {
        let name = &request.get_ref().name;
        let found = self.listed().into_iter().find(|model| model.name == *name);
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("there is no model {name}")))
    }

    type PublishStream = Answers<PublishResponse>;

    async fn publish(
        &self,
        request: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        let mut steps = request.into_inner();
        let Some(PublishRequest { step: Some(Sent::Begin(begin)) }) = steps.message().await? else {
            return Err(Status::invalid_argument("begin is wanted first"));
        };
        let wanted = self.missing(&begin.files);
        let wants = heard(Heard::Wants(PublishWants { files: wanted }));
        let services = self.clone();
        let (answers, answered) = tokio::sync::mpsc::channel(4);
        let work = async move {
            answers.send(Ok(wants)).await.unwrap();
            while !services.missing(&begin.files).is_empty() {
                match steps.message().await {
                    Ok(Some(step)) => services.take(step)?,
                    Ok(None) => return Err(Status::invalid_argument("bytes are missing")),
                    Err(status) => return Err(status),
                }
            }
            for stage in [Stage::Loading, Stage::Ready] {
                let _ = answers.send(Ok(trial(stage))).await;
            }
            let _ = answers.send(services.published(begin).map(|it| heard(Heard::Published(it)))).await;
            Ok(())
        };
        // The work is done by whoever reads the answers.
        let failed =
            tokio_stream::once(work).then(|work| work).filter_map(|done: Result<(), _>| done.err().map(Err));
        let answered = tokio_stream::wrappers::ReceiverStream::new(answered);
        Ok(Response::new(Box::pin(answered.merge(failed))))
    }

    async fn list_versions(
        &self,
        request: Request<ListVersionsRequest>,
    ) -> Result<Response<ListVersionsResponse>, Status> {
        let model = &request.get_ref().model;
        let versions = self.control(|control| control.versions.clone());
        let versions = versions.into_iter().filter(|it| model.is_empty() || it.model == *model).collect();
        Ok(Response::new(ListVersionsResponse { versions }))
    }

    async fn promote(&self, request: Request<PromoteRequest>) -> Result<Response<Swap>, Status> {
        self.asked(&request)
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Result<Response<Swap>, Status> {
        self.asked(&request)
    }

    async fn retire(&self, request: Request<RetireRequest>) -> Result<Response<Swap>, Status> {
        self.asked(&request)
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<Version>, Status> {
        let _ = self.asked(&request);
        let PinRequest { model, digest, unpin } = request.into_inner();
        let checkpoint = Some(checkpoint(&model, &digest));
        Ok(Response::new(Version { model, checkpoint, pinned: !unpin, ..Version::default() }))
    }

    async fn collect(&self, request: Request<CollectRequest>) -> Result<Response<CollectResponse>, Status> {
        let _ = self.asked(&request);
        let versions = self.control(|control| control.versions.clone());
        Ok(Response::new(CollectResponse { versions, bytes: 3 << 20 }))
    }

    async fn get_swap(&self, request: Request<GetSwapRequest>) -> Result<Response<Swap>, Status> {
        let model = &request.get_ref().model;
        let swap = self.control(|control| control.script.first().cloned());
        swap.map(Response::new).ok_or_else(|| Status::not_found(format!("there was no swap of {model}")))
    }

    type WatchSwapStream = Answers<Swap>;

    /// Ends when the swap is decided; breaks off where a swap of no state stands in the script.
    async fn watch_swap(
        &self,
        request: Request<WatchSwapRequest>,
    ) -> Result<Response<Self::WatchSwapStream>, Status> {
        self.control(|control| control.asked.push(format!("{:?}", request.get_ref())));
        let mut steps = Vec::new();
        loop {
            let next = self.control(|control| {
                // The last one stays, for whoever asks later.
                if control.script.len() > 1 {
                    Some(control.script.remove(0))
                } else {
                    control.script.first().cloned()
                }
            });
            match next {
                None => return Err(Status::not_found("there was no swap")),
                Some(swap) if swap.state() == SwapState::Unspecified => {
                    steps.push(Err(Status::unavailable("the gateway leaves")));
                    break;
                }
                Some(swap) => {
                    let last = self.control(|control| control.script.len() <= 1 && control.script[0] == swap);
                    steps.push(Ok(swap));
                    if last {
                        break;
                    }
                }
            }
        }
        let gate = self.control(|control| control.gate.clone());
        let steps = tokio_stream::iter(steps).then(move |step| {
            let gate = gate.clone();
            async move {
                if let Some(gate) = gate {
                    gate.acquire().await.expect("nobody closes it").forget();
                }
                step
            }
        });
        Ok(Response::new(Box::pin(steps)))
    }
}
