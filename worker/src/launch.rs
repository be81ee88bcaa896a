//! A worker comes up: what it brought along is loaded and warm, calls are taken, and only then the cluster is told.
//! What else the cluster wants comes while it serves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cluster::{Etcd, Follow, ModelKind, Pace, Sight, Version, View, Worker, WorkerId};
use model::{Checkpoint, Device, Kind, Model};
use telemetry::admin::{self, Readiness};
use telemetry::prometheus::registry::Registry;
use tls::{Door, Refusals};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::apart::Effort;
use crate::catalogue::{Catalogue, Id};
use crate::config::Config;
use crate::device;
use crate::engine::{Engine, Plan};
use crate::health::{Health, Identity, State};
use crate::load::Load;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::models::{Opened, Place, StartError};
use crate::pace::Target;
use crate::prepare::plan::{is_surplus, stand_ins};
use crate::prepare::steward::{Brought, Charge, Cluster, Steward};
use crate::prepare::{LOOK, Prepared, Shop, Source};
use crate::service::{self, Service};
use crate::shelf::{Shelf, Sizes};
use crate::shutdown::Running;
use crate::start::{Failure, Sockets, Stock};
use crate::tokenise::Tokenisers;
use crate::trial::Trials;

/// What the parts of a worker share.
struct Parts {
    tasks: TaskTracker,
    /// Ends what outlives the calls.
    ended: CancellationToken,
    load: Arc<Load>,
    catalogue: Catalogue,
    metrics: Metrics,
    refusals: Refusals,
    readiness: watch::Sender<Readiness>,
}

/// Loads and warms what was brought along, as far as the cluster wants it; serves on `sockets`; and joins the cluster
/// where there is one.
///
/// # Errors
/// [`Failure::Model`] and [`Failure::System`].
pub async fn launch(
    config: &Config,
    Stock { opened, source }: Stock,
    sockets: Sockets,
    etcd: Option<Etcd>,
) -> Result<Running, Failure> {
    let Sockets { public, tls, admin } = sockets;
    let parts = parts(config, admin);
    let threads = config.threads.get();
    let device = device::Device::spawn("device", move || model::set_threads(threads))?;
    let plan = Plan {
        depth: depth(config.device),
        age: config.age,
        load: parts.load.clone(),
        metrics: parts.metrics.clone(),
    };
    let engine = Engine::spawn(plan, device.orders.clone(), device.reports, &parts.tasks);
    let sizes = Sizes { batch_tokens: config.batch_tokens, target: target(config.device) };
    let shelf = Shelf::new(device.orders, engine.clone(), sizes);
    let workshop = Arc::new(workshop(config, (etcd.clone(), source), shelf, &parts));

    let worker = worker(config, public.local_addr()?.to_string());
    let (state, health) = health(config, &worker, &parts);
    let stop = health.stop.clone();
    let mut cluster = etcd.map(|etcd| follow(etcd, worker, &parts));
    let charge = charge(config, opened, (workshop.clone(), cluster.as_mut()), (&state, &parts)).await?;
    let service = Service {
        catalogue: parts.catalogue,
        tokenisers: Tokenisers::spawn(config.tokenizer_threads)?.0,
        engine: engine.clone(),
        load: parts.load,
        metrics: parts.metrics,
        health,
        trials: Some(Trials::new(workshop, config.id.to_string())),
    };
    let door = Door::new(public, tls, parts.refusals);
    let server = parts.tasks.spawn(service::serve(door, service, stop.clone()));
    let Parts { tasks, ended, readiness, .. } = parts;
    let steward = cluster.map(|cluster| Steward::spawn(charge, cluster, &tasks));
    if steward.is_none() {
        readiness.send_replace(Readiness::Ready);
    }
    Ok(Running {
        state,
        readiness,
        steward,
        stop,
        server,
        engine,
        device: device.ended,
        thread: device.thread,
        tasks,
        ended,
    })
}

/// What a steward is to begin with: what was brought along, ready as far as the cluster wants it.
async fn charge(
    config: &Config,
    opened: Vec<Opened>,
    (shop, cluster): (Arc<Shop>, Option<&mut Cluster>),
    (state, parts): (&watch::Sender<State>, &Parts),
) -> Result<Charge, Failure> {
    let brought = brought(&opened);
    let (first, stored) = match cluster {
        Some(cluster) => first(cluster, shop.source.is_some(), brought.keys()).await,
        None => (brought.keys().cloned().collect(), BTreeSet::new()),
    };
    let ready = load(&shop, opened, &first).await?;
    state.send_modify(|state| {
        state.ready = ready.iter().map(|prepared| (prepared.served.id(), prepared.offer())).collect();
    });
    tracing::info!(worker = %config.id, models = ready.len(), "takes calls");
    let (state, readiness, settle) = (state.clone(), parts.readiness.clone(), config.settle);
    Ok(Charge { shop, brought, ready, stored, settle, state, readiness })
}

/// Makes ready what was brought along and is among `first`, in the order in which it was given.
async fn load(shop: &Shop, opened: Vec<Opened>, first: &BTreeSet<Id>) -> Result<Vec<Prepared>, Failure> {
    let mut all = Vec::<Prepared>::new();
    for Opened { name, checkpoint } in opened {
        let id = Id::new(name.as_str(), checkpoint.digest());
        if !first.contains(&id) {
            tracing::info!(model = id.model, digest = id.digest, "the cluster wants another checkpoint");
            continue;
        }
        let twin = all.iter().find(|prepared| *prepared.served.digest == *id.digest);
        let prepared = if let Some(twin) = twin {
            shop.share(&id, twin.twin()).await
        } else {
            let quietly = (Arc::new(|_| ()) as _, CancellationToken::new());
            shop.prepare(&id, Some(checkpoint), quietly).await
        };
        all.push(prepared.map_err(|failure| StartError::Prepare { name: id.model, failure })?);
    }
    for prepared in &all {
        shop.catalogue.add(prepared.served.clone());
    }
    Ok(all)
}

/// Which of what was brought along is to be loaded before anything is served: all of it, but for what a cluster that
/// answers soon does not want. Beside it, checkpoints that the store is known to have.
async fn first<'a>(
    cluster: &mut Cluster,
    has_store: bool,
    brought: impl Iterator<Item = &'a Id> + Clone,
) -> (BTreeSet<Id>, BTreeSet<Id>) {
    let until = Instant::now() + LOOK;
    let seen = cluster.sight.wait_for(|sight| *sight != Sight::default());
    let is_seen = time::timeout_at(until, seen).await.is_ok_and(|seen| seen.is_ok());
    let view = if is_seen { cluster.view.borrow().clone() } else { Arc::default() };
    let mut stored = BTreeSet::new();
    for id in brought.clone().filter(|_| has_store) {
        let Some(alias) = view.aliases.get(&id.model).filter(|alias| alias.digest != id.digest) else {
            continue;
        };
        let version = cluster.etcd.version(&id.model, &alias.digest);
        if let Ok(Ok(Some(Version { stored: true, .. }))) = time::timeout_at(until, version).await {
            stored.insert(Id::new(&id.model, &alias.digest));
        }
    }
    let wanted = cluster::desired(&view, &cluster.worker);
    let stand_ins = stand_ins(&view, brought.clone(), &stored);
    let first = brought.filter(|id| !is_surplus(&wanted, id, &stand_ins)).cloned().collect();
    (first, stored)
}

/// Begins to follow the cluster.
fn follow(etcd: Etcd, worker: Worker, parts: &Parts) -> Cluster {
    let (views, view) = watch::channel(Arc::<View>::default());
    let (tell, sight) = watch::channel(Sight::default());
    // A worker reaches no other, so it has no reason to doubt what etcd says of them.
    let still_answers = |_: &WorkerId| false;
    let options = Follow { pace: Pace::default(), still_answers, sight: tell };
    parts.tasks.spawn(cluster::follow(etcd.directory(), views, options, parts.ended.clone()));
    Cluster { etcd, worker, view, sight }
}

/// What was brought along, and what the cluster may know of it.
fn brought(opened: &[Opened]) -> BTreeMap<Id, Brought> {
    let brought = |Opened { name, checkpoint }: &Opened| {
        let id = Id::new(name.as_str(), checkpoint.digest());
        (id, Brought { checkpoint: checkpoint.clone(), version: Arc::new(version(checkpoint)) })
    };
    opened.iter().map(brought).collect()
}

/// What is known of a checkpoint that nobody has published.
fn version(checkpoint: &Checkpoint) -> Version {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Version {
        manifest: checkpoint.manifest().clone(),
        stored: false,
        kind: match checkpoint.card().kind {
            Kind::Embedder => ModelKind::Embedder,
            Kind::CrossEncoder => ModelKind::CrossEncoder,
        },
        architecture: checkpoint.card().architecture.clone(),
        index_space: checkpoint.index_space().to_owned(),
        tokenizer_sha256: checkpoint.tokenizer_sha256(),
        parent: None,
        evaluation: BTreeMap::new(),
        golden: None,
        job: None,
        created_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    }
}

fn workshop(
    config: &Config,
    (etcd, source): (Option<Etcd>, Option<Source>),
    shelf: Shelf<Model>,
    parts: &Parts,
) -> Shop {
    Shop {
        etcd,
        source,
        place: Place { device: config.device, precision: config.precision },
        memory: Memory::new(config.device, config.memory_limit),
        effort: Effort::All(config.threads),
        shelf,
        catalogue: parts.catalogue.clone(),
        metrics: parts.metrics.clone(),
        bench: Arc::new(Semaphore::new(1)),
    }
}

/// This worker, as it describes itself; `bound` is where it listens.
fn worker(config: &Config, bound: String) -> Worker {
    Worker {
        id: config.id.clone(),
        address: config.advertise.clone().unwrap_or(bound),
        boot_id: Uuid::new_v4().to_string(),
        device: config.device.to_string(),
        memory: Memory::new(config.device, config.memory_limit).limit(),
        draining: false,
        serves: config.serves.clone(),
    }
}

/// A CPU is given the freshest batch when it is free; a GPU would be done with it before it had the next.
fn depth(device: Device) -> usize {
    match device {
        Device::Cpu => 1,
        Device::Cuda(_) => 2,
    }
}

fn target(device: Device) -> Target {
    match device {
        Device::Cpu => Target::CPU,
        Device::Cuda(_) => Target::CUDA,
    }
}

/// Counters, and the admin port that shows them from now on.
fn parts(config: &Config, admin: TcpListener) -> Parts {
    let (tasks, ended) = (TaskTracker::new(), CancellationToken::new());
    let (load, catalogue) = (Load::new(config.limits), Catalogue::default());
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry, load.clone(), catalogue.clone());
    let refusals = Refusals::default();
    refusals.register(registry.sub_registry_with_prefix("beige_worker"));
    let (readiness, told) = watch::channel(Readiness::NotReady("loading".to_owned()));
    let operators = admin::serve(admin, Arc::new(registry), told, ended.clone());
    tasks.spawn(async move {
        if let Err(error) = operators.await {
            tracing::error!(%error, "the admin socket failed");
        }
    });
    Parts { tasks, ended, load, catalogue, metrics, refusals, readiness }
}

fn health(config: &Config, worker: &Worker, parts: &Parts) -> (watch::Sender<State>, Health) {
    let (state, told) = watch::channel(State::default());
    let identity = Identity {
        worker_id: worker.id.to_string(),
        boot_id: worker.boot_id.clone(),
        device: config.device.describe(),
    };
    let health = Health {
        identity: Arc::new(identity),
        load: parts.load.clone(),
        state: told,
        stop: CancellationToken::new(),
    };
    (state, health)
}
