//! From settings to a worker that serves: models opened, sockets bound, models loaded and warm, calls taken, and only
//! then the cluster told. A start that fails ends the process; a worker is never half alive.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Etcd, Name, Ready, Registration, Worker};
use model::{Checkpoint, Device, DeviceError, LoadError, Model};
use telemetry::admin::{self, Readiness};
use telemetry::prometheus::registry::Registry;
use tls::{Door, Refusals, Server, What};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::apart::{Effort, Unfinished, apart};
use crate::catalogue::{Catalogue, Served};
use crate::config::{BatchTokens, Config, InvalidConfig};
use crate::device;
use crate::engine::{Engine, Plan};
use crate::health::{Health, Identity, State};
use crate::load::Load;
use crate::memory;
use crate::metrics::Metrics;
use crate::models::{self, BuildError, Built, Opened, Place, StartError};
use crate::pace::Target;
use crate::register::Member;
use crate::service::{self, Service};
use crate::shelf::{Shelf, Sizes};
use crate::shutdown::{Exit, Running};
use crate::tokenise::Tokenisers;
use crate::warm::Patience;

/// Why the process ends otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Correct the settings.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// Correct what is logged, or where spans go.
    #[error("telemetry: {0}")]
    Telemetry(#[from] telemetry::StartError),
    /// Correct the device, or the driver behind it.
    #[error("device: {0}")]
    Device(#[from] DeviceError),
    /// Mend the checkpoint, or the device that does not run it.
    #[error(transparent)]
    Model(#[from] StartError),
    /// Choose another address.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The system lacks something.
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
    /// It served, and ended badly.
    #[error(transparent)]
    Ended(#[from] Exit),
    /// It was told twice.
    #[error("ended at once, at a second {0}")]
    Hurried(&'static str),
}

impl Failure {
    /// The exit code, as `sysexits.h` has them: 64 for settings, 65 for data, 69 for an address that is taken, 70 for
    /// a device that does not work, 71 for the system.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Telemetry(_)
            | Self::Device(_)
            | Self::Model(StartError::Load { source: LoadError::Device(_), .. }) => 64,
            Self::Model(StartError::Load { .. }) => 65,
            Self::Bind { .. } => 69,
            Self::Model(StartError::Run { .. }) | Self::Ended(Exit::Broken(_) | Exit::Panicked) => 70,
            Self::System(_) | Self::Ended(Exit::Socket(_)) => 71,
            Self::Ended(Exit::Late) | Self::Hurried(_) => 1,
        }
    }
}

/// Where gateways and operators connect.
#[derive(Debug)]
pub struct Sockets {
    /// Gateways.
    pub public: TcpListener,
    /// What gateways are shown; `None` where they are talked to in the clear.
    pub tls: Option<Arc<Server>>,
    /// Operators.
    pub admin: TcpListener,
}

/// The connection to etcd that the settings ask for; it is made when it is first needed.
///
/// # Errors
/// [`InvalidConfig`] where there can be none.
pub fn connect(config: &Config) -> Result<Option<Etcd>, InvalidConfig> {
    let connect = |settings| {
        Etcd::connect(settings)
            .map_err(|error| InvalidConfig::Value { field: "etcd", reason: error.to_string() })
    };
    config.etcd.clone().map(connect).transpose()
}

/// Readies the device, and opens the checkpoints. Blocks.
///
/// # Errors
/// [`Failure::Device`]; [`Failure::Model`]; [`Failure::Config`] where a batch could not hold the longest input.
pub fn open(config: &Config) -> Result<Vec<Opened>, Failure> {
    model::prepare(config.device, config.threads.get())?;
    let start = Instant::now();
    let opened = models::open(&config.models)?;
    let windows = opened.iter().map(|opened| opened.checkpoint.card().max_tokens);
    let window = windows.max().unwrap_or(0);
    match config.batch_tokens {
        BatchTokens::Fixed(tokens) if tokens.get() < window => {
            let reason = format!("{tokens} is less than the longest window, {window}");
            return Err(InvalidConfig::Value { field: "batch-tokens", reason }.into());
        }
        BatchTokens::Fixed(_) | BatchTokens::Auto => {}
    }
    tracing::info!(
        device = config.device.describe(),
        threads = config.threads,
        dtype = ?config.precision,
        took = ?start.elapsed(),
        "device is ready, checkpoints are read"
    );
    Ok(opened)
}

/// Reads the certificates, and binds both sockets.
///
/// # Errors
/// [`Failure::Config`]; [`Failure::Bind`].
pub async fn bind(config: &Config) -> Result<Sockets, Failure> {
    let tls = config.tls.clone().map(Server::load).transpose().map_err(|unusable| InvalidConfig::Value {
        field: match unusable.what() {
            What::Certificate => "tls-cert",
            What::Key => "tls-key",
            What::Authorities => "tls-client-ca",
        },
        reason: unusable.to_string(),
    })?;
    let bind =
        async |address| TcpListener::bind(address).await.map_err(|source| Failure::Bind { address, source });
    let (public, admin) = (bind(config.listen).await?, bind(config.admin).await?);
    Ok(Sockets { public, tls: tls.map(Arc::new), admin })
}

/// What the parts of a worker share.
struct Parts {
    tasks: TaskTracker,
    /// Ends what outlives the calls.
    ended: CancellationToken,
    load: Arc<Load>,
    metrics: Metrics,
    refusals: Refusals,
    readiness: watch::Sender<Readiness>,
}

/// Loads and warms `opened`, serves them on `sockets`, and joins the cluster where there is one.
///
/// # Errors
/// [`Failure::Model`] and [`Failure::System`].
pub async fn launch(
    config: &Config,
    opened: Vec<Opened>,
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
    let (catalogue, loaded) = load(config, opened, &shelf).await?;
    drop(shelf);
    let bound = public.local_addr()?.to_string();
    let address = config.advertise.clone().unwrap_or(bound);
    let boot_id = Uuid::new_v4().to_string();
    let (state, health) = health(config, &loaded, &boot_id, &parts);
    let service = Service {
        catalogue: catalogue.clone(),
        tokenisers: Tokenisers::spawn(config.tokenizer_threads)?.0,
        engine: engine.clone(),
        load: parts.load,
        metrics: parts.metrics,
        health: health.clone(),
    };
    let stop = health.stop;
    let door = Door::new(public, tls, parts.refusals);
    let server = parts.tasks.spawn(service::serve(door, service, stop.clone()));
    let member = etcd.map(|etcd| {
        let registration = registration(config, &loaded, (address, boot_id));
        Member::join(etcd, registration, &parts.tasks)
    });
    parts.readiness.send_replace(Readiness::Ready);
    tracing::info!(worker = %config.id, models = catalogue.len(), "ready");
    let Parts { tasks, ended, readiness, .. } = parts;
    Ok(Running {
        state,
        readiness,
        member,
        stop,
        server,
        engine,
        device: device.ended,
        thread: device.thread,
        tasks,
        ended,
    })
}

/// Loads and warms all of `opened`, in order; answers what is served, and how long each took.
async fn load(
    config: &Config,
    opened: Vec<Opened>,
    shelf: &Shelf<Model>,
) -> Result<(Catalogue, Vec<(Arc<Served>, Duration)>), Failure> {
    let catalogue = Catalogue::default();
    let mut all = Vec::<(Arc<Served>, Duration)>::new();
    for Opened { name, checkpoint } in opened {
        let (served, took) = match all.iter().find(|(served, _)| *served.digest == *checkpoint.digest()) {
            Some((served, took)) => (Served { name: name.as_str().into(), ..(**served).clone() }, *took),
            None => load_one(config, &name, checkpoint, shelf).await?,
        };
        let served = Arc::new(served);
        catalogue.add(served.clone());
        all.push((served, took));
    }
    Ok((catalogue, all))
}

async fn load_one(
    config: &Config,
    name: &Name,
    checkpoint: Checkpoint,
    shelf: &Shelf<Model>,
) -> Result<(Served, Duration), Failure> {
    let start = Instant::now();
    let place = Place { device: config.device, precision: config.precision };
    let work = move || models::build(&checkpoint, place).map(|built| (built, checkpoint));
    let built = apart("load", Effort::All(config.threads), work).await.map_err(|error| match error {
        Unfinished::Thread(error) => Failure::System(error),
        Unfinished::Panicked(_) => Failure::Ended(Exit::Panicked),
    })?;
    let (Built { resident, tokenizer, .. }, checkpoint) = built.map_err(|error| match error {
        BuildError::Load(source) => StartError::Load { name: name.clone(), source },
        BuildError::Run(source) => StartError::Run { name: name.clone(), source },
    })?;
    let card = checkpoint.card().clone();
    let (digest, dtype) = (Arc::<str>::from(checkpoint.digest()), resident.encoder.dtype());
    let warmth = shelf.put(&digest, resident, card.max_tokens, Patience::Ample).await;
    let warmth = warmth.map_err(|source| StartError::Run { name: name.clone(), source })?;
    let took = start.elapsed();
    tracing::info!(
        model = %name,
        %digest,
        architecture = card.architecture,
        dimensions = card.dimensions,
        window = card.max_tokens,
        dtype,
        batch_tokens = warmth.batch_tokens,
        tokens_per_second = warmth.tokens_per_second.round(),
        ?took,
        "model is warm"
    );
    let served = Served {
        name: name.as_str().into(),
        index_space: checkpoint.index_space().to_owned(),
        digest,
        card,
        dtype: dtype.to_owned(),
        tokenizer: Arc::new(tokenizer),
    };
    Ok((served, took))
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
    let load = Load::new(config.limits);
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry, load.clone());
    let refusals = Refusals::default();
    refusals.register(registry.sub_registry_with_prefix("beige_worker"));
    let (readiness, told) = watch::channel(Readiness::NotReady("loading".to_owned()));
    let operators = admin::serve(admin, Arc::new(registry), told, ended.clone());
    tasks.spawn(async move {
        if let Err(error) = operators.await {
            tracing::error!(%error, "the admin socket failed");
        }
    });
    Parts { tasks, ended, load, metrics, refusals, readiness }
}

fn health(
    config: &Config,
    served: &[(Arc<Served>, Duration)],
    boot_id: &str,
    parts: &Parts,
) -> (watch::Sender<State>, Health) {
    let ready = served.iter().map(|(served, _)| served.ready()).collect();
    let (state, told) = watch::channel(State { draining: false, ready });
    let identity = Identity {
        worker_id: config.id.to_string(),
        boot_id: boot_id.to_owned(),
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

fn registration(
    config: &Config,
    served: &[(Arc<Served>, Duration)],
    (address, boot_id): (String, String),
) -> Registration {
    let ready = served.iter().map(|(served, took)| {
        let name = |text: &str| Name::parse(text).expect("names and digests were names before");
        let load_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let ready = Ready { boot_id: boot_id.clone(), load_ms, golden_cosine: None };
        (name(&served.name), name(&served.digest), ready)
    });
    let ready = ready.collect();
    let memory = match config.device {
        Device::Cpu => memory::of_machine(),
        // The models do not tell.
        Device::Cuda(_) => 0,
    };
    let (id, device) = (config.id.clone(), config.device.to_string());
    Registration {
        worker: Worker { id, address, boot_id, device, memory, draining: false, serves: None },
        ready,
    }
}
