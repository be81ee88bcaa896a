//! A worker without a model.
//!
//! A text is words; `w12` is token 12, and some words make the device do as they say. The device answers with rows
//! that tell what it read, notes every batch, and can be held up.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use model::{Card, Kind, Rows, Sequence, SpecialTokens, Token, TokenizeError, Truncation};
use proto::v1;
use proto::worker::v1::worker_client::WorkerClient;
use proto::worker::v1::{EmbedShard, ShardOrigin};
use telemetry::prometheus::encoding::text;
use telemetry::prometheus::registry::Registry;
use telemetry::trace::inject;
use tls::{Door, Refusals};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use worker::bisect::{Broken, Encode, EncodeError};
use worker::catalogue::{Catalogue, Served};
use worker::config::BatchTokens;
use worker::device::{Device, Resident};
use worker::engine::{Engine, Plan};
use worker::health::{Health, Identity, State};
use worker::load::{Limits, Load};
use worker::metrics::Metrics;
use worker::pace::Target;
use worker::service::{self, Service};
use worker::shelf::{Shelf, Sizes, Warmth};
use worker::tokenise::{Tokenise, Tokenisers};
use worker::warm::Patience;

/// Digests of the two checkpoints.
pub(crate) const EMBEDDER: &str = "embedder";
pub(crate) const CROSS_ENCODER: &str = "cross-encoder";

/// A single run is all the warm-up that a checkpoint gets.
const ONE_RUN: Target = Target { batch: Duration::ZERO, least: 1, most: 1 };

/// Longest input, special tokens included.
pub(crate) const WINDOW: usize = 40;

/// What a word makes the device do: fail, panic, give no number, never work again, and run out of memory.
const FAIL: u32 = 666;
const PANIC: u32 = 667;
const NAN: u32 = 668;
const BREAK: u32 = 669;
const BIG: u32 = 670;

/// The device from outside.
#[derive(Debug, Default)]
pub(crate) struct Control {
    held: Mutex<bool>,
    released: Condvar,
    /// First words of each batch that was run.
    runs: Mutex<Vec<Vec<u32>>>,
    /// `traceparent` of each batch.
    traces: Mutex<Vec<String>>,
    /// Sequences that fit its memory; 0 for any number.
    room: AtomicUsize,
    /// Whether it fails for good.
    broken: AtomicBool,
}

impl Control {
    /// Lets no batch end before the release.
    pub(crate) fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    pub(crate) fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.released.notify_all();
    }

    pub(crate) fn set_room(&self, sequences: usize) {
        self.room.store(sequences, Ordering::Relaxed);
    }

    /// First words of each batch that was begun.
    pub(crate) fn runs(&self) -> Vec<Vec<u32>> {
        self.runs.lock().unwrap().clone()
    }

    /// Notes from now on.
    fn forget(&self) {
        self.runs.lock().unwrap().clear();
        self.traces.lock().unwrap().clear();
    }

    pub(crate) fn traces(&self) -> Vec<String> {
        self.traces.lock().unwrap().clone()
    }

    /// Waits until so many batches were begun.
    pub(crate) async fn begun(&self, batches: usize) {
        while self.runs().len() < batches {
            time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// A checkpoint: what to do with it from outside, and what it makes of a batch.
#[derive(Debug)]
pub(crate) struct Words(Arc<Control>, MakeRows);

impl Encode for Words {
    fn encode(&mut self, batch: &[&Sequence]) -> Result<Rows, EncodeError> {
        let Self(control, rows) = self;
        let words: Vec<u32> = batch.iter().map(|sequence| sequence.ids[1]).collect();
        control.runs.lock().unwrap().push(words.clone());
        let mut metadata = MetadataMap::new();
        inject(&tracing::Span::current(), &mut metadata);
        let trace = metadata.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
        control.traces.lock().unwrap().extend(trace);
        drop(control.released.wait_while(control.held.lock().unwrap(), |held| *held).unwrap());
        if words.contains(&BREAK) {
            control.broken.store(true, Ordering::Relaxed);
        }
        if control.broken.load(Ordering::Relaxed) || words.contains(&FAIL) {
            return Err(EncodeError::Failed("as told".into()));
        }
        assert!(!words.contains(&PANIC), "as told");
        let room = control.room.load(Ordering::Relaxed);
        if words.contains(&BIG) || (room > 0 && batch.len() > room) {
            return Err(EncodeError::OutOfMemory("as told".into()));
        }
        Ok(rows(batch))
    }
}

/// Of each text its tokens, its first word, and two ones.
#[allow(clippy::cast_precision_loss)]
fn vectors(batch: &[&Sequence]) -> Rows {
    let row = |sequence: &&Sequence| {
        let first = if sequence.ids[1] == NAN { f32::NAN } else { sequence.ids[1] as f32 };
        [sequence.tokens() as f32, first, 1.0, 1.0]
    };
    Rows::new(4, batch.iter().flat_map(row).collect())
}

/// Of each pair the words of its document, less two.
#[allow(clippy::cast_precision_loss)]
fn logits(batch: &[&Sequence]) -> Rows {
    let logit = |sequence: &&Sequence| (sequence.tokens() - sequence.second) as f32 - 1.0 - 2.0;
    Rows::new(1, batch.iter().map(logit).collect())
}

/// One token per word, and one special token at each end.
struct Splitter;

impl Splitter {
    fn words(text: &str) -> Vec<u32> {
        let word = |word: &str| match word {
            "fail" => FAIL,
            "panic" => PANIC,
            "nan" => NAN,
            "break" => BREAK,
            "big" => BIG,
            other => other.trim_start_matches('w').parse().unwrap_or(7),
        };
        text.split_whitespace().map(word).collect()
    }
}

fn fit(mut words: Vec<u32>, special: usize, truncation: Truncation) -> Result<Vec<u32>, TokenizeError> {
    let (tokens, room) = (words.len() + special, WINDOW - special);
    match truncation {
        _ if tokens <= WINDOW => {}
        Truncation::None => return Err(TokenizeError::TooLong { tokens, max: WINDOW }),
        Truncation::End => words.truncate(room),
        Truncation::Start => drop(words.drain(..words.len() - room)),
    }
    Ok(words)
}

impl Tokenise for Splitter {
    fn encode(&self, text: &str, truncation: Truncation) -> Result<Sequence, TokenizeError> {
        let words = fit(Self::words(text), 2, truncation)?;
        Ok(Sequence::single([vec![101], words, vec![102]].concat()))
    }

    fn encode_pair(
        &self,
        query: &str,
        document: &str,
        truncation: Truncation,
    ) -> Result<Sequence, TokenizeError> {
        let query = Self::words(query);
        let document = fit(Self::words(document), 3 + query.len(), truncation)?;
        let first = [vec![101], query, vec![102]].concat();
        Ok(Sequence { second: first.len(), ids: [first, document, vec![102]].concat() })
    }

    fn tokens(&self, text: &str, special: SpecialTokens) -> Result<Vec<Token>, TokenizeError> {
        let token = |id| Token { id, text: format!("w{id}"), special: id > 100, start: 3, end: 4 };
        let words = Self::words(text);
        let ids = match special {
            SpecialTokens::Keep => [vec![101], words, vec![102]].concat(),
            SpecialTokens::Omit => words,
        };
        Ok(ids.into_iter().map(token).collect())
    }
}

/// How a worker is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) batch_tokens: usize,
    pub(crate) max_queued_tokens: usize,
    pub(crate) depth: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { batch_tokens: 1000, max_queued_tokens: 10_000, depth: 1 }
    }
}

/// A worker that serves.
pub(crate) struct Stand {
    pub(crate) client: WorkerClient<Channel>,
    pub(crate) control: Arc<Control>,
    pub(crate) load: Arc<Load>,
    pub(crate) registry: Registry,
    pub(crate) state: watch::Sender<State>,
    pub(crate) stop: CancellationToken,
    pub(crate) engine: Engine,
    pub(crate) shelf: Shelf<Words>,
    pub(crate) catalogue: Catalogue,
    pub(crate) server: JoinHandle<Result<(), tonic::transport::Error>>,
    pub(crate) device: tokio::sync::oneshot::Receiver<Result<(), Broken>>,
    pub(crate) address: String,
}

pub(crate) async fn start(options: Options) -> Stand {
    let tasks = TaskTracker::new();
    let control = Arc::<Control>::default();
    let load = Load::new(Limits { tokens: options.max_queued_tokens, wait: Duration::from_secs(60) });
    let mut registry = Registry::default();
    let catalogue = Catalogue::default();
    let metrics = Metrics::register(&mut registry, load.clone(), catalogue.clone());
    let device = Device::<Words>::spawn("device", || {}).unwrap();
    let plan = Plan {
        depth: options.depth,
        age: Duration::from_secs(60),
        load: load.clone(),
        metrics: metrics.clone(),
    };
    let engine = Engine::spawn(plan, device.orders.clone(), device.reports, &tasks);
    let batch_tokens = BatchTokens::Fixed(NonZeroUsize::new(options.batch_tokens).unwrap());
    let shelf = Shelf::new(device.orders, engine.clone(), Sizes { batch_tokens, target: ONE_RUN });
    for (served, rows) in checkpoints() {
        put(&shelf, &control, &served, rows).await.unwrap();
        catalogue.add(served.into());
    }
    control.forget();
    let (state, told) = watch::channel(State::default());
    let stop = CancellationToken::new();
    let identity = Identity { worker_id: "w1".into(), boot_id: "b1".into(), device: "fake".into() };
    let health = Health { identity: Arc::new(identity), load: load.clone(), state: told, stop: stop.clone() };
    let service = Service {
        catalogue: catalogue.clone(),
        tokenisers: Tokenisers::spawn(NonZeroUsize::MIN).unwrap().0,
        engine: engine.clone(),
        load: load.clone(),
        health,
        metrics,
        trials: None,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let door = Door::new(listener, None, Refusals::default());
    let server = tasks.spawn(service::serve(door, service, stop.clone()));
    let client = WorkerClient::connect(address.clone()).await.unwrap();
    Stand {
        client,
        control,
        load,
        registry,
        state,
        stop,
        engine,
        shelf,
        catalogue,
        server,
        device: device.ended,
        address,
    }
}

/// What a checkpoint makes of a batch.
pub(crate) type MakeRows = fn(&[&Sequence]) -> Rows;

/// Puts a checkpoint on the device.
pub(crate) async fn put(
    shelf: &Shelf<Words>,
    control: &Arc<Control>,
    served: &Served,
    rows: MakeRows,
) -> Result<Warmth, EncodeError> {
    let probe = Sequence::single(vec![101, 7, 102]);
    let resident = Resident { encoder: Words(control.clone(), rows), probe };
    shelf.put(&served.digest, resident, WINDOW, Patience::Short).await
}

fn checkpoints() -> [(Served, MakeRows); 2] {
    [(served(EMBEDDER, Kind::Embedder, 4), vectors), (served(CROSS_ENCODER, Kind::CrossEncoder, 0), logits)]
}

pub(crate) fn served(digest: &str, kind: Kind, dimensions: usize) -> Served {
    Served {
        name: digest.into(),
        digest: digest.into(),
        index_space: format!("space of {digest}"),
        card: Card {
            kind,
            architecture: "None".into(),
            dimensions,
            max_tokens: WINDOW,
            pooling: None,
            normalize: false,
            query_prompt: Some("w50 ".into()),
            document_prompt: None,
        },
        dtype: "f32".into(),
        tokenizer: Arc::new(Splitter),
    }
}

pub(crate) fn origin(digest: &str) -> ShardOrigin {
    ShardOrigin { digest: digest.into(), caller: "test".into(), first_input: 40, model: "m".into() }
}

/// A plain request for these texts.
pub(crate) fn request(texts: &[&str]) -> v1::EmbedRequest {
    let inputs = texts.iter().map(|&text| text.to_owned()).collect();
    v1::EmbedRequest { inputs, ..v1::EmbedRequest::default() }
}

/// A shard of it, the 41st input of its call and those that follow.
pub(crate) fn shard(request: v1::EmbedRequest) -> EmbedShard {
    EmbedShard { origin: Some(origin(EMBEDDER)), request: Some(request) }
}

pub(crate) fn embed(texts: &[&str]) -> EmbedShard {
    shard(request(texts))
}

/// Numbers of f32 vectors.
pub(crate) fn floats(vectors: &v1::Vectors) -> Vec<f32> {
    vectors.data.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

impl Stand {
    /// A call in a task of its own, begun before this returns or soon after.
    pub(crate) fn spawn(
        &self,
        tasks: &TaskTracker,
        shard: EmbedShard,
    ) -> JoinHandle<Result<Vec<f32>, tonic::Status>> {
        let mut client = self.client.clone();
        tasks.spawn(async move {
            let result = client.embed(shard).await?.into_inner();
            Ok(floats(&result.dense.unwrap()))
        })
    }

    /// Waits until calls of so many tokens are before the device: tokenised, counted, and on their way into the
    /// queue, if not in it.
    pub(crate) async fn waiting(&self, tokens: usize) {
        while self.load.waiting() != tokens {
            time::sleep(Duration::from_millis(1)).await;
        }
        time::sleep(Duration::from_millis(5)).await;
    }

    /// Waits until so many texts were cut from the queue.
    pub(crate) async fn cut(&self, texts: usize) {
        let line = format!("\nbeige_worker_queue_wait_seconds_count {texts}\n");
        let page = || {
            let mut page = String::new();
            text::encode(&mut page, &self.registry).unwrap();
            page
        };
        while !page().contains(&line) {
            time::sleep(Duration::from_millis(1)).await;
        }
    }
}
