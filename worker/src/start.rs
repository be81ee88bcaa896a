//! From settings to what a worker is made of: device readied, checkpoints that are brought along opened, store and
//! sockets there. A start that fails ends the process; a worker is never half alive.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use cluster::{Etcd, NackReason};
use model::DeviceError;
use store::{Cache, Store};
use tls::{Server, What};
use tokio::net::TcpListener;

use crate::config::{BatchTokens, Config, InvalidConfig, StoreSpec};
use crate::models::{self, Opened, StartError};
use crate::prepare::{self, Source};
use crate::shutdown::Exit;

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
    /// a device that does not work, 71 for what the system lacks.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Telemetry(_) | Self::Device(_) => 64,
            Self::Model(StartError::Load { .. }) => 65,
            Self::Model(StartError::Prepare { failure, .. }) => code_of(failure),
            Self::Bind { .. } => 69,
            Self::Ended(Exit::Broken(_) | Exit::Panicked) => 70,
            Self::System(_) | Self::Ended(Exit::Socket(_)) => 71,
            Self::Ended(Exit::Late) | Self::Hurried(_) => 1,
        }
    }
}

/// The exit code for a checkpoint that was brought along and is not ready.
fn code_of(failure: &prepare::Failure) -> u8 {
    match failure {
        prepare::Failure::Refused { reason, .. } => match reason {
            NackReason::Checksum | NackReason::Format | NackReason::Golden => 65,
            NackReason::Memory | NackReason::Disk | NackReason::Store | NackReason::Timeout => 71,
        },
        prepare::Failure::Later(_) | prepare::Failure::Absent(_) | prepare::Failure::Cancelled => 71,
    }
}

/// What a worker begins with.
#[derive(Debug)]
pub struct Stock {
    /// What it brought along.
    pub opened: Vec<Opened>,
    /// Where the rest comes from.
    pub source: Option<Source>,
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

/// Readies the device, and opens the store and the checkpoints. Blocks.
///
/// # Errors
/// [`Failure::Device`]; [`Failure::Model`]; [`Failure::Config`] where the store cannot be used, or a batch could not hold
/// the longest input.
pub fn open(config: &Config) -> Result<Stock, Failure> {
    model::prepare(config.device, config.threads.get())?;
    model::supports(config.device, config.precision)?;
    let source = config.store.as_ref().map(open_store).transpose()?;
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
        store = source.as_ref().map(|source| source.store.url()),
        took = ?start.elapsed(),
        "device is ready, checkpoints are read"
    );
    Ok(Stock { opened, source })
}

fn open_store(spec: &StoreSpec) -> Result<Source, InvalidConfig> {
    let StoreSpec { url, settings, cache, cache_bytes } = spec;
    let bad = |field| move |reason: String| InvalidConfig::Value { field, reason };
    let store = Store::open(url, settings).map_err(|error| bad("store")(prepare::failure::chain(&error)))?;
    let cache = Cache::open(cache, cache_bytes.get());
    let cache = cache.map_err(|error| bad("cache")(prepare::failure::chain(&error)))?;
    Ok(Source { store, cache })
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
