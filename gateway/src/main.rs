//! `beige-gateway`: the process around [`gateway::run`].

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Etcd, Follow, InvalidSettings, MembershipOptions, Pace, Presence, Sight, View};
use gateway::config::{Config, InvalidConfig};
use gateway::fleet::Fleet;
use gateway::guard::Guard;
use gateway::pool::Sources;
use gateway::presence;
use gateway::{Ends, Exit};
use telemetry::Logging;
use telemetry::signals::Signals;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the start waits for etcd to take the registration.
const REGISTERED_WITHIN: Duration = Duration::from_secs(2);

/// Why the process ends otherwise than it should.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("etcd: {0}")]
    Etcd(#[from] InvalidSettings),
    #[error("telemetry: {0}")]
    Telemetry(#[from] telemetry::StartError),
    #[error("cannot listen on {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the system refuses: {0}")]
    System(#[from] io::Error),
    #[error(transparent)]
    Ended(#[from] Exit),
    #[error("ended at once, at a second {0}")]
    Hurried(&'static str),
}

impl Failure {
    /// As `sysexits.h` has them: 64 for settings, 69 for an address that is taken, 71 for the system.
    fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Etcd(_) | Self::Telemetry(_) => 64,
            Self::Bind { .. } => 69,
            Self::System(_) | Self::Ended(Exit::Public(_) | Exit::Descriptors(_)) => 71,
            Self::Ended(Exit::Late) | Self::Hurried(_) => 1,
        }
    }
}

fn main() -> ExitCode {
    let config = match Config::read(std::env::args_os()) {
        Ok(config) => config,
        Err(InvalidConfig::Usage(usage)) if !usage.use_stderr() => {
            // Help that cannot be printed has no reader.
            let _ = usage.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return end(&error.into()),
    };
    let runtime = match runtime::Builder::new_multi_thread().enable_all().thread_name("gateway").build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&error.into()),
    };
    let served = runtime.block_on(serve(&config));
    // What is still running has been given up.
    runtime.shutdown_background();
    served.map_or_else(|failure| end(&failure), |()| ExitCode::SUCCESS)
}

async fn serve(config: &Config) -> Result<(), Failure> {
    let etcd = Etcd::connect(config.etcd.clone())?;
    let guard = Guard::load(config.guard.clone())?;
    let (public, admin) = (bind(config.listen).await?, bind(config.admin).await?);
    let (listening, operators) = (public.local_addr()?, admin.local_addr()?);
    let _telemetry = telemetry::start(&logging(config, listening))?;
    let mut signals = Signals::listen(config.stdin)?;
    warn_of_openness(listening, &guard);

    // What keeps the view goes on to the very end: calls are answered while the gateway drains.
    let (tasks, ended) = (TaskTracker::new(), CancellationToken::new());
    let (picture, fleet) = watch::channel(Arc::new(Fleet::default()));
    let (views, viewed) = watch::channel(Arc::default());
    let (seen, sight) = watch::channel(Sight::default());
    let still_answers = move |id: &_| fleet.borrow().answers(id);
    let follow = Follow { pace: Pace::default(), still_answers, sight: seen };
    tasks.spawn(cluster::follow(etcd.directory(), views, follow, ended.clone()));

    let record = join(config, &etcd, (listening, viewed.clone()), (&tasks, &ended)).await;
    announce(listening, operators)?;
    let (sources, store) = (Sources { views: viewed, sight }, config.store.clone());
    let ends = Ends { public, admin, sources, fleet: picture, record, guard, etcd, store };
    let stop = CancellationToken::new();
    let told = async {
        let signal = signals.leave().await;
        tracing::info!(signal, "leaving");
        stop.cancel();
        Failure::Hurried(signals.insist().await)
    };
    tokio::select! {
        served = gateway::run(ends, config.serving, stop.clone()) => served?,
        hurried = told => return Err(hurried),
    }
    ended.cancel();
    tasks.close();
    tasks.wait().await;
    tracing::info!("left");
    Ok(())
}

/// Registers in the cluster, and stands for the lead, until no call is left. Returns once others see the registration,
/// or when that takes too long: checkpoints are retired by what registered gateways say.
async fn join(
    config: &Config,
    etcd: &Etcd,
    (listening, views): (SocketAddr, watch::Receiver<Arc<View>>),
    (tasks, ended): (&TaskTracker, &CancellationToken),
) -> watch::Sender<cluster::Gateway> {
    let address = config.advertise.clone().unwrap_or_else(|| listening.to_string());
    let first = cluster::Gateway { address, ..cluster::Gateway::default() };
    let own = (config.id.clone(), &first);
    let presence = Presence::join(etcd.clone(), own, MembershipOptions::default(), tasks, ended.clone());
    tasks.spawn(cluster::lead(etcd.clone(), presence.candidate(), views, config.swaps, ended.clone()));
    let mut registered = presence.registered();
    let seen = registered.wait_for(|registered| *registered);
    if time::timeout(REGISTERED_WITHIN, seen).await.is_err() {
        tracing::warn!("etcd does not take the registration: going on without");
    }
    let (record, said) = watch::channel(first);
    tasks.spawn(presence::register(presence, said));
    record
}

async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|source| Failure::Bind { address, source })
}

fn logging(config: &Config, listening: SocketAddr) -> Logging {
    Logging {
        format: config.log_format,
        filter: config.log.clone(),
        otlp_endpoint: config.otlp_endpoint.clone(),
        service: "beige-gateway",
        instance: listening.to_string(),
    }
}

/// Says what everybody may do who reaches the public port, where others than this machine do.
fn warn_of_openness(listening: SocketAddr, guard: &Guard) {
    if listening.ip().is_loopback() {
        return;
    }
    if guard.keys.is_none() {
        tracing::warn!(address = %listening, "there are no API keys: whoever can connect may do everything");
    }
    if guard.tls.is_none() {
        tracing::warn!(address = %listening, "there is no TLS: whoever is on the way can read everything");
    }
}

/// Tells supervisors, on standard output, where the gateway listens: two lines whose form is kept.
fn announce(listening: SocketAddr, operators: SocketAddr) -> io::Result<()> {
    tracing::info!(address = %listening, admin = %operators, "listening");
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {listening}\nadmin on {operators}")?;
    out.flush()
}

fn end(failure: &Failure) -> ExitCode {
    // The last line of a process that failed, for people; where there is no standard error, nobody reads it.
    let _ = writeln!(io::stderr(), "beige-gateway: {failure}");
    ExitCode::from(failure.code())
}
