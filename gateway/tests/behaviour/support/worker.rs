//! A whole worker without a model: real sockets, real gRPC, a process of its own as far as the gateway can tell.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use cluster::WorkerId;
use futures::stream::{Stream, StreamExt as _};
use proto::v1;
use proto::worker::v1 as wire;
use proto::worker::v1::worker_server::{Worker, WorkerServer};
use tls::{Door, Refusals, ServerFiles};
use tokio::runtime::{self, Runtime};
use tokio::time::{self, Instant};
use tokio_stream::wrappers::IntervalStream;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{DIMENSIONS, score, vector};

/// How a fake is doing; a test may change it at any time.
#[derive(Clone, Debug)]
pub(crate) struct Mood {
    /// What it says is loaded: name and digest.
    pub(crate) loaded: Vec<(String, String)>,
    /// What it refuses all the same, as not loaded.
    pub(crate) lacks: Vec<String>,
    /// What it forgets over its work, which is then refused, too.
    pub(crate) loses: Vec<String>,
    /// How long a shard takes; one that is being worked on, too.
    pub(crate) takes: Duration,
    /// A checkpoint on which a shard takes longer.
    pub(crate) dawdles: Option<(String, Duration)>,
    /// A checkpoint on which a shard fails, and how.
    pub(crate) fails: Option<(String, Status)>,
    /// What it answers instead.
    pub(crate) refuses: Option<Status>,
    /// Whether it says that it will end.
    pub(crate) draining: bool,
    /// What it says waits there.
    pub(crate) queued_tokens: u64,
    /// What it says it does in a second.
    pub(crate) tokens_per_second: f64,
    /// How it takes checkpoints that the cluster wants it to load.
    pub(crate) loads: Loads,
    /// What its reports say of checkpoints on their way.
    pub(crate) preparations: Vec<v1::Preparation>,
    /// What it adds to golden vectors: other than 0, they are of another index space.
    pub(crate) accent: f32,
    /// What its reports say that names mean.
    pub(crate) reported: Vec<wire::AliasSeen>,
    /// What its answers and refusals say that the name means.
    pub(crate) answered: Option<wire::AliasSeen>,
}

/// How a fake takes checkpoints that it is to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loads {
    /// At once.
    Willingly,
    /// Not yet.
    Later,
    /// It says that it cannot.
    Never(cluster::NackReason),
}

/// A shard as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) origin: wire::ShardOrigin,
    pub(crate) inputs: usize,
    pub(crate) priority: v1::Priority,
    pub(crate) traceparent: Option<String>,
    pub(crate) timeout: Option<String>,
}

/// What a fake and its test share.
#[derive(Debug)]
pub(crate) struct State {
    id: String,
    boot_id: AtomicU64,
    mood: Mutex<Mood>,
    seen: Mutex<Vec<Seen>>,
    trials: Mutex<Vec<wire::TrialRequest>>,
    running: AtomicUsize,
}

/// A worker.
pub(crate) struct FakeWorker {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    /// What gateways are shown; `None` where they are talked to in the clear.
    tls: Option<ServerFiles>,
    /// `None` while it is dead.
    process: Option<Runtime>,
}

impl FakeWorker {
    /// A worker that has `loaded`, names and digests.
    pub(crate) fn start(id: &str, loaded: &[(&str, &str)]) -> Self {
        Self::guarded(id, loaded, None)
    }

    /// The same, over TLS where there are certificates for it.
    pub(crate) fn guarded(id: &str, loaded: &[(&str, &str)], tls: Option<ServerFiles>) -> Self {
        let mood = Mood {
            loaded: loaded.iter().map(|&(name, digest)| (name.to_owned(), digest.to_owned())).collect(),
            lacks: Vec::new(),
            loses: Vec::new(),
            takes: Duration::ZERO,
            dawdles: None,
            fails: None,
            refuses: None,
            draining: false,
            queued_tokens: 0,
            tokens_per_second: 100_000.0,
            loads: Loads::Willingly,
            preparations: Vec::new(),
            accent: 0.0,
            reported: Vec::new(),
            answered: None,
        };
        let state = State {
            id: id.to_owned(),
            boot_id: AtomicU64::new(0),
            mood: Mutex::new(mood),
            seen: Mutex::default(),
            trials: Mutex::default(),
            running: AtomicUsize::new(0),
        };
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut worker = Self { address: any, state: Arc::new(state), tls, process: None };
        worker.revive();
        worker
    }

    pub(crate) fn id(&self) -> WorkerId {
        WorkerId::parse(self.state.id.clone()).unwrap()
    }

    /// Changes how it is doing.
    pub(crate) fn set(&self, change: impl FnOnce(&mut Mood)) {
        change(&mut self.state.mood.lock().unwrap());
    }

    /// The shards that arrived since the last time.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// What etcd has of it.
    pub(crate) fn record(&self) -> cluster::Worker {
        cluster::Worker {
            id: self.id(),
            address: self.address.to_string(),
            boot_id: "boot".into(),
            device: "fake".into(),
            memory: 0,
            draining: false,
            serves: None,
        }
    }

    /// Waits until exactly these are loaded.
    pub(crate) async fn until_loaded(&self, digests: &[&String]) {
        for _ in 0..600 {
            let loaded = self.state.mood().loaded;
            if loaded.len() == digests.len() && loaded.iter().all(|(_, digest)| digests.contains(&digest)) {
                return;
            }
            time::sleep(Duration::from_millis(100)).await;
        }
        panic!("loaded are {:?}, not {digests:?}", self.state.mood().loaded)
    }

    /// What it shares with whoever acts for it.
    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// The checkpoints that it was asked to try out.
    pub(crate) fn trials(&self) -> Vec<wire::TrialRequest> {
        self.state.trials.lock().unwrap().clone()
    }

    /// Shards that are being worked on.
    pub(crate) fn running(&self) -> usize {
        self.state.running.load(Ordering::SeqCst)
    }

    /// As SIGKILL does it: every socket closes, nothing is said.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }

    /// Another process at the same address.
    pub(crate) fn revive(&mut self) {
        self.state.boot_id.fetch_add(1, Ordering::SeqCst);
        let listener = bind(self.address);
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let mut process = runtime::Builder::new_multi_thread();
        let process = process.worker_threads(1).thread_name("fake").enable_all().build().unwrap();
        let service = Fake(Arc::clone(&self.state));
        let _entered = process.enter();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let tls = self.tls.clone().map(|files| Arc::new(tls::Server::load(files).unwrap()));
        let arrivals = Door::new(listener, tls, Refusals::default());
        let server = Server::builder()
            .add_service(WorkerServer::new(service).max_decoding_message_size(usize::MAX))
            .serve_with_incoming(arrivals);
        TaskTracker::new().spawn_on(server, process.handle());
        self.process = Some(process);
    }
}

impl State {
    /// How it is doing.
    pub(crate) fn mood(&self) -> Mood {
        self.mood.lock().unwrap().clone()
    }

    /// Says that this is loaded.
    pub(crate) fn load(&self, loaded: Vec<(String, String)>) {
        self.mood.lock().unwrap().loaded = loaded;
    }
}

/// The sockets of a process that was killed a moment ago may not be closed yet.
fn bind(address: SocketAddr) -> TcpListener {
    let tries = (0..200).find_map(|_| {
        let listener = TcpListener::bind(address).ok();
        if listener.is_none() {
            thread::sleep(Duration::from_millis(10));
        }
        listener
    });
    tries.expect("its address is taken")
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How often a fake looks whether its mood has changed.
const LOOK: Duration = Duration::from_millis(10);

struct Fake(Arc<State>);

/// Counts a shard as being worked on until it is answered or dropped.
struct Running(Arc<State>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fake {
    fn mood(&self) -> Mood {
        self.0.mood.lock().unwrap().clone()
    }

    /// How long a shard on a checkpoint takes as things are.
    fn takes(&self, digest: &str) -> Duration {
        let mood = self.mood();
        mood.dawdles.filter(|(of, _)| of == digest).map_or(mood.takes, |(_, takes)| takes)
    }

    /// Takes a shard in, and works on it for as long as the mood has it.
    async fn work<T>(
        &self,
        request: &Request<T>,
        origin: Option<&wire::ShardOrigin>,
        (inputs, priority): (usize, v1::Priority),
    ) -> Result<v1::Provenance, Status> {
        let origin = origin.unwrap().clone();
        let header = |name: &str| {
            request.metadata().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let (traceparent, timeout) = (header("traceparent"), header("grpc-timeout"));
        self.0.seen.lock().unwrap().push(Seen {
            origin: origin.clone(),
            inputs,
            priority,
            traceparent,
            timeout,
        });
        self.0.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(Arc::clone(&self.0));
        let mood = self.mood();
        let loaded = mood.loaded.iter().any(|(_, digest)| *digest == origin.digest);
        if !loaded || mood.lacks.contains(&origin.digest) {
            return Err(not_loaded(mood));
        }
        let begun = Instant::now();
        while let left = self.takes(&origin.digest).saturating_sub(begun.elapsed())
            && !left.is_zero()
        {
            time::sleep(left.min(LOOK)).await;
        }
        let mood = self.mood();
        if mood.loses.contains(&origin.digest) {
            return Err(not_loaded(mood));
        }
        let fails = mood.fails.filter(|(digest, _)| *digest == origin.digest).map(|(_, status)| status);
        match mood.refuses.or(fails) {
            Some(status) => Err(status),
            None => Ok(v1::Provenance {
                digest: origin.digest,
                index_space: "space".into(),
                dimensions: DIMENSIONS,
                ..v1::Provenance::default()
            }),
        }
    }
}

fn not_loaded(mood: Mood) -> Status {
    let said = |seen: wire::AliasSeen| {
        [("digest".to_owned(), seen.digest), ("epoch".to_owned(), seen.epoch.to_string())]
    };
    let known: HashMap<_, _> = mood.answered.map(said).into_iter().flatten().collect();
    let details = ErrorDetails::with_error_info("CHECKPOINT_NOT_LOADED", "beige", known);
    Status::with_error_details(Code::FailedPrecondition, "not loaded", details)
}

/// A text that no model could take.
pub(crate) const POISON: &str = "poison";

fn readable(inputs: &[String], first_input: u32) -> Result<(), Status> {
    match inputs.iter().position(|text| text == POISON) {
        None => Ok(()),
        Some(i) => {
            let field = format!("inputs[{}]", first_input as usize + i);
            let sentence = format!("{field} is poison");
            let details = ErrorDetails::with_bad_request_violation(field, &sentence);
            Err(Status::with_error_details(Code::InvalidArgument, sentence, details))
        }
    }
}

#[tonic::async_trait]
impl Worker for Fake {
    async fn embed(
        &self,
        request: Request<wire::EmbedShard>,
    ) -> Result<Response<wire::EmbedShardResult>, Status> {
        let wire::EmbedShard { origin, request: wanted } = request.get_ref().clone();
        let wanted = wanted.unwrap();
        let priority = wanted.priority();
        let inputs = wanted.inputs;
        let provenance = self.work(&request, origin.as_ref(), (inputs.len(), priority)).await?;
        readable(&inputs, origin.unwrap().first_input)?;
        let data: Vec<u8> = inputs.iter().flat_map(|text| vector(&provenance.digest, text)).collect();
        let dense = v1::Vectors {
            encoding: v1::Encoding::F32.into(),
            dimensions: DIMENSIONS,
            data: Bytes::from(data),
            scales: Vec::new(),
        };
        let input_tokens = inputs.iter().map(|text| u32::try_from(text.len() / 4 + 2).unwrap()).collect();
        let provenance = Some(provenance);
        Ok(Response::new(wire::EmbedShardResult {
            provenance,
            dense: Some(dense),
            input_tokens,
            alias: self.mood().answered,
        }))
    }

    async fn rerank(
        &self,
        request: Request<wire::RerankShard>,
    ) -> Result<Response<wire::RerankShardResult>, Status> {
        let wire::RerankShard { origin, request: wanted } = request.get_ref().clone();
        let wanted = wanted.unwrap();
        let priority = wanted.priority();
        let documents = wanted.documents;
        let provenance = self.work(&request, origin.as_ref(), (documents.len(), priority)).await?;
        Ok(Response::new(wire::RerankShardResult {
            provenance: Some(provenance),
            scores: documents.iter().map(|document| score(document)).collect(),
            tokens: documents.len() as u64,
            scoring: v1::Scoring::Dense.into(),
            score_form: v1::ScoreForm::Raw.into(),
            alias: self.mood().answered,
        }))
    }

    async fn tokenize(
        &self,
        request: Request<wire::TokenizeShard>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let wire::TokenizeShard { origin, request: wanted } = request.get_ref().clone();
        let inputs = wanted.unwrap().inputs;
        let what = (inputs.len(), v1::Priority::Unspecified);
        let provenance = Some(self.work(&request, origin.as_ref(), what).await?);
        let sequences = vec![v1::TokenSequence { tokens: vec![v1::Token::default()] }; inputs.len()];
        Ok(Response::new(v1::TokenizeResponse { provenance, sequences }))
    }

    async fn count(&self, request: Request<wire::CountShard>) -> Result<Response<v1::CountResponse>, Status> {
        let wire::CountShard { origin, request: wanted } = request.get_ref().clone();
        let inputs = wanted.unwrap().inputs;
        let what = (inputs.len(), v1::Priority::Unspecified);
        let provenance = Some(self.work(&request, origin.as_ref(), what).await?);
        let counts = inputs.iter().map(|text| u32::try_from(text.len()).unwrap()).collect();
        Ok(Response::new(v1::CountResponse { provenance, counts }))
    }

    type TrialStream = Pin<Box<dyn Stream<Item = Result<wire::TrialReport, Status>> + Send>>;

    async fn trial(
        &self,
        request: Request<wire::TrialRequest>,
    ) -> Result<Response<Self::TrialStream>, Status> {
        let request = request.into_inner();
        self.0.trials.lock().unwrap().push(request.clone());
        let mood = self.mood();
        if let Some(status) = mood.refuses {
            return Err(status);
        }
        let digest = super::trial::manifest(&request).digest();
        let progress = wire::trial_report::Step::Progress(v1::Preparation {
            worker: self.0.id.clone(),
            model: request.model.clone(),
            digest,
            stage: v1::Stage::Loading.into(),
            ..v1::Preparation::default()
        });
        let steps = futures::stream::iter([progress]).chain(futures::stream::once(async move {
            time::sleep(mood.takes).await;
            wire::trial_report::Step::Tried(super::trial::tried(&request, mood.accent))
        }));
        Ok(Response::new(steps.map(|step| Ok(wire::TrialReport { step: Some(step) })).boxed()))
    }

    type HealthStream = Pin<Box<dyn Stream<Item = Result<wire::HealthReport, Status>> + Send>>;

    async fn health(
        &self,
        _request: Request<wire::HealthRequest>,
    ) -> Result<Response<Self::HealthStream>, Status> {
        let state = Arc::clone(&self.0);
        let boot_id = state.boot_id.load(Ordering::SeqCst).to_string();
        let reports = IntervalStream::new(time::interval(Duration::from_millis(50)))
            .map(move |_| Ok(report(&state, &boot_id)));
        Ok(Response::new(reports.boxed()))
    }
}

fn report(state: &State, boot_id: &str) -> wire::HealthReport {
    let mood = state.mood.lock().unwrap().clone();
    let ready = |(model, digest): &(String, String)| wire::ReadyCheckpoint {
        model: model.clone(),
        checkpoint: Some(v1::Checkpoint {
            digest: digest.clone(),
            index_space: "space".into(),
            kind: v1::ModelKind::Embedder.into(),
            dimensions: DIMENSIONS,
            max_tokens: 512,
            dtypes: vec!["f32".into()],
            ..v1::Checkpoint::default()
        }),
    };
    wire::HealthReport {
        worker_id: state.id.clone(),
        boot_id: boot_id.to_owned(),
        draining: mood.draining,
        device: "fake".into(),
        queued_tokens: mood.queued_tokens,
        tokens_per_second: mood.tokens_per_second,
        total_tokens: 1 << 20,
        memory_bytes: 8,
        ready: mood.loaded.iter().map(ready).collect(),
        preparations: mood.preparations,
        aliases: mood.reported,
    }
}
