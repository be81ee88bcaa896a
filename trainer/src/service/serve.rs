//! The service's life: sockets, registration, queue, and their end.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Etcd, InvalidSettings, MembershipOptions, Trainer, TrainerPlace};
use model::Device;
use proto::v1::training_server::TrainingServer;
use telemetry::admin::{self, Readiness};
use telemetry::prometheus::registry::Registry;
use telemetry::signals::Signals;
use telemetry::{Logging, StartError};
use tls::{Door, Refusals};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;

use super::api::Service;
use super::config::{Config, InvalidConfig};
use super::devices::Devices;
use super::foreman::Shop;
use super::gateway::Gateways;
use super::queue::Queue;
use super::retention::Retention;

/// How long jobs may take to end their ranks and to give themselves up.
const LAST_TASKS: Duration = Duration::from_secs(15);
/// Calls that one connection may have open.
const OPEN_CALLS: u32 = 256;
/// Streams that a connection may reset or have reset for its faults before it is closed.
const RESETS: usize = 256;
/// Bytes of the headers of a call.
const HEADER_BYTES: u32 = 16 << 10;
/// Bytes of a request: a job's document and some more.
const REQUEST_BYTES: usize = 1 << 20;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the process ends otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Correct the settings.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// Correct where etcd is.
    #[error("etcd: {0}")]
    Etcd(#[from] InvalidSettings),
    /// Correct what is logged, or where spans go.
    #[error("telemetry: {0}")]
    Telemetry(#[from] StartError),
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
    /// The public socket does not do what sockets do.
    #[error("the public socket failed: {0}")]
    Public(#[from] tonic::transport::Error),
    /// It was told twice.
    #[error("ended at once, at a second {0}")]
    Hurried(&'static str),
}

impl Failure {
    /// The exit code, as `sysexits.h` has them: 64 for settings, 69 for an address that is taken, 71 for the system.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Etcd(_) | Self::Telemetry(_) => 64,
            Self::Bind { .. } => 69,
            Self::System(_) | Self::Public(_) => 71,
            Self::Hurried(_) => 1,
        }
    }
}

/// Serves until it is told to leave. Its ranks are gone by then; its jobs go on at another trainer, or at its next start.
///
/// # Errors
/// [`Failure`].
pub async fn serve(config: Config) -> Result<(), Failure> {
    let etcd = Etcd::connect(config.etcd.clone())?;
    let (public, admin) = (bind(config.listen).await?, bind(config.admin).await?);
    let (listening, operators) = (public.local_addr()?, admin.local_addr()?);
    let _telemetry = telemetry::start(&logging(&config))?;
    let mut signals = Signals::listen(config.stdin)?;
    let (tasks, stop, ended) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());

    let helpers = TaskTracker::new();
    let (readiness, refusals) = operate(admin, &helpers, &ended);
    let said = Trainer {
        address: config.advertise.clone().unwrap_or_else(|| listening.to_string()),
        devices: config.devices.iter().map(Device::to_string).collect(),
    };
    let options = MembershipOptions::default();
    let own = (config.id.clone(), &said);
    let place = TrainerPlace::join(etcd.clone(), own, options, &helpers, ended.clone());
    let workshop = workshop(&config, &etcd, (&tasks, &stop));
    let queue = Queue {
        etcd: etcd.clone(),
        id: config.id.clone(),
        leases: place.lease(),
        devices: Devices::new(&config.devices),
        shop: workshop.clone(),
    };
    tasks.spawn(queue.run());
    let retention = Retention { etcd: etcd.clone(), shop: workshop.clone(), kept: config.keep_finished };
    tasks.spawn(retention.run());
    let door = Door::new(public, config.tls.clone(), refusals);
    let serving = accept(door, Service { etcd, shop: workshop }, stop.clone());
    readiness.send_replace(Readiness::Ready);
    announce(listening, operators)?;

    let leave = async {
        let signal = signals.leave().await;
        tracing::info!(signal, "leaving");
        stop.cancel();
        Failure::Hurried(signals.insist().await)
    };
    let finish = async {
        serving.await?;
        tasks.close();
        if time::timeout(LAST_TASKS, tasks.wait()).await.is_err() {
            tracing::warn!(
                tasks = tasks.len(),
                "jobs were not given up in time; they go on when the lease is over"
            );
        }
        place.leave().await;
        Ok(())
    };
    let outcome = tokio::select! {
        outcome = finish => outcome,
        hurried = leave => Err(hurried),
    };
    ended.cancel();
    tracing::info!("left");
    outcome
}

/// Serves the admin port until `ended`; answers what tells of readiness, and counts those who are not let in.
fn operate(
    admin: TcpListener,
    helpers: &TaskTracker,
    ended: &CancellationToken,
) -> (watch::Sender<Readiness>, Refusals) {
    let (mut registry, refusals) = (Registry::default(), Refusals::default());
    refusals.register(registry.sub_registry_with_prefix("beige_trainer"));
    let (told, readiness) = watch::channel(Readiness::NotReady("starting".to_owned()));
    let operators = admin::serve(admin, Arc::new(registry), readiness, ended.clone());
    helpers.spawn(async move {
        if let Err(error) = operators.await {
            tracing::error!(%error, "the admin socket failed");
        }
    });
    (told, refusals)
}

fn workshop(config: &Config, etcd: &Etcd, (tasks, stop): (&TaskTracker, &CancellationToken)) -> Shop {
    let gateways = Gateways { etcd: etcd.clone(), dialer: config.dialer.clone(), key: config.key.clone() };
    Shop {
        roots: config.roots.clone(),
        output: config.output.clone(),
        threads: config.threads,
        gateways,
        turn: Arc::default(),
        tasks: tasks.clone(),
        stop: stop.clone(),
    }
}

async fn accept(door: Door, service: Service, stop: CancellationToken) -> Result<(), Failure> {
    let training = TrainingServer::new(service).max_decoding_message_size(REQUEST_BYTES);
    Server::builder()
        .max_concurrent_streams(OPEN_CALLS)
        .http2_max_local_error_reset_streams(Some(RESETS))
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(training)
        .serve_with_incoming_shutdown(door, stop.cancelled_owned())
        .await?;
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|source| Failure::Bind { address, source })
}

fn logging(config: &Config) -> Logging {
    Logging {
        format: config.log_format,
        filter: config.log.clone(),
        otlp_endpoint: config.otlp_endpoint.clone(),
        service: "beige-trainer",
        instance: config.id.to_string(),
    }
}

/// Tells supervisors, on standard output, where the trainer listens: two lines whose form is kept.
fn announce(listening: SocketAddr, operators: SocketAddr) -> io::Result<()> {
    tracing::info!(address = %listening, admin = %operators, "listening");
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {listening}\nadmin on {operators}")?;
    out.flush()
}
