//! Settings: flags over environment over a TOML file, checked together before a socket opens.
//!
//! The only reader of the environment. The names of flags, variables (`BEIGE_…`) and TOML keys are the same words.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser as _;
use cluster::{GatewayId, InvalidName, Name, Settings, SwapSettings, Tls};
use store::Store;
use telemetry::Format;
use uuid::Uuid;

use self::args::Args;
use crate::control::Collection;
use crate::guard::Files;
use crate::wire::Limits;
use telemetry::signals::Stdin;

mod args;

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where etcd is, and which cluster to serve.
    pub etcd: Settings,
    /// Where callers connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
    /// Its name in the cluster.
    pub id: GatewayId,
    /// Where callers reach it; where it listens, unless given.
    pub advertise: Option<String>,
    /// Where checkpoints are; nowhere, unless given.
    pub store: Option<Store>,
    /// How swaps are carried out where this gateway leads.
    pub swaps: SwapSettings,
    /// How lines look.
    pub log_format: Format,
    /// What is logged.
    pub log: String,
    /// Where spans go.
    pub otlp_endpoint: Option<String>,
    /// Whether the end of standard input is a signal to end.
    pub stdin: Stdin,
    /// Who is let in, and how workers are reached.
    pub guard: Files,
    /// What the gateway itself needs.
    pub serving: Serving,
}

/// How calls are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// Bytes of the largest request.
    pub max_message_bytes: usize,
    /// What one request may hold.
    pub limits: Limits,
    /// Tokens that may be outstanding.
    pub max_queued_tokens: u64,
    /// How long an answer may take where the caller does not say.
    pub default_deadline: Duration,
    /// How long to go on as before after the signal to end.
    pub settle: Duration,
    /// How long running calls may take after that.
    pub grace: Duration,
    /// What the store is to take, and to keep.
    pub collection: Collection,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            max_message_bytes: 32 << 20,
            limits: Limits { inputs: 4096, text_bytes: 1 << 20 },
            max_queued_tokens: 4 << 20,
            default_deadline: Duration::from_secs(60),
            settle: Duration::from_secs(1),
            grace: Duration::from_secs(30),
            collection: Collection::default(),
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// Not flags of ours, or a request for help: print it.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unread {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not say what it should.
    #[error("{} is not a settings file: {source}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A setting is missing.
    #[error("{0} is required")]
    Missing(&'static str),
    /// A setting is not of the form it should have.
    #[error("{name}: {why}")]
    Value {
        /// Which setting.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Two settings contradict each other.
    #[error("{0}")]
    Pair(&'static str),
}

impl Config {
    /// Reads the settings of this process.
    ///
    /// # Errors
    /// [`InvalidConfig`] names the setting.
    pub fn read(flags: impl IntoIterator<Item = OsString>) -> Result<Self, InvalidConfig> {
        let args = Args::try_parse_from(flags)?;
        let file = args.config.as_deref().map(load).transpose()?.unwrap_or_default();
        Self::from_args(args.over(file))
    }

    /// Checks what no single setting can be checked for alone.
    fn from_args(args: Args) -> Result<Self, InvalidConfig> {
        let serving = Serving::from_args(&args)?;
        let listen = args.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080)));
        let admin = args.admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9090)));
        if listen == admin && listen.port() != 0 {
            return Err(InvalidConfig::Pair("listen and admin cannot be the same address"));
        }
        let endpoints = args.etcd.filter(|urls| !urls.is_empty()).ok_or(InvalidConfig::Missing("etcd"))?;
        let cluster = Name::parse(args.cluster.unwrap_or("default".to_owned()))
            .map_err(|error: InvalidName| value("cluster", &error))?;
        let tls = Tls::of(args.etcd_ca, args.etcd_cert, args.etcd_key, args.etcd_name)
            .map_err(|error| value("etcd-cert and etcd-key", &error))?;
        let log_format = args.log_format.as_deref().unwrap_or("human").parse();
        let guard = Files {
            tls: Files::public([args.tls_cert, args.tls_key, args.tls_client_ca])?,
            keys: args.keys,
            workers: Files::workers([args.worker_cert, args.worker_key, args.worker_ca])?,
            worker_name: args.worker_name,
        };
        let grace = duration("retire-grace", args.retire_grace.as_deref())?;
        Ok(Self {
            id: id(args.id)?,
            advertise: args.advertise.filter(|address| !address.is_empty()),
            store: store(args.store.as_deref())?,
            swaps: grace.map_or_else(SwapSettings::default, |grace| SwapSettings { grace }),
            etcd: Settings { endpoints, cluster, tls },
            listen,
            admin,
            log_format: log_format.map_err(|error: String| value("log-format", &error))?,
            log: args.log.unwrap_or("info".to_owned()),
            otlp_endpoint: args.otlp_endpoint.filter(|endpoint| !endpoint.is_empty()),
            stdin: if args.exit_on_stdin_eof == Some(true) { Stdin::Watched } else { Stdin::Ignored },
            guard,
            serving,
        })
    }
}

/// The store, with what the environment says of the cloud it is in.
fn store(url: Option<&str>) -> Result<Option<Store>, InvalidConfig> {
    let Some(url) = url.filter(|url| !url.is_empty()) else { return Ok(None) };
    let store = Store::open(url, &std::env::vars_os().collect());
    store.map(Some).map_err(|error| value("store", &with_cause(&error)))
}

fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

fn id(given: Option<String>) -> Result<GatewayId, InvalidConfig> {
    let id = given.unwrap_or_else(|| Uuid::new_v4().to_string());
    GatewayId::parse(id).map_err(|error| value("id", &error))
}

fn collection(args: &Args, usual: Collection) -> Result<Collection, InvalidConfig> {
    let max_checkpoint_bytes = args.max_checkpoint_bytes.unwrap_or(usual.max_checkpoint_bytes);
    let grace = duration("collect-grace", args.collect_grace.as_deref())?.unwrap_or(usual.grace);
    Ok(Collection { max_checkpoint_bytes: above_zero("max-checkpoint-bytes", max_checkpoint_bytes)?, grace })
}

impl Serving {
    fn from_args(args: &Args) -> Result<Self, InvalidConfig> {
        let usual = Self::default();
        let limits = Limits {
            inputs: above_zero("max-inputs", args.max_inputs.unwrap_or(usual.limits.inputs))?,
            text_bytes: above_zero("max-text-bytes", args.max_text_bytes.unwrap_or(usual.limits.text_bytes))?,
        };
        let max_message_bytes = args.max_message_bytes.unwrap_or(usual.max_message_bytes);
        if limits.text_bytes > max_message_bytes {
            return Err(InvalidConfig::Pair("max-text-bytes is larger than max-message-bytes"));
        }
        // A request repeats positions as 32-bit numbers.
        if limits.inputs > u32::MAX as usize {
            return Err(InvalidConfig::Value { name: "max-inputs", why: "must be below 2^32".to_owned() });
        }
        let default_deadline =
            duration("default-deadline", args.default_deadline.as_deref())?.unwrap_or(usual.default_deadline);
        if default_deadline.is_zero() {
            return Err(InvalidConfig::Value {
                name: "default-deadline",
                why: "must not be zero".to_owned(),
            });
        }
        Ok(Self {
            max_message_bytes,
            limits,
            max_queued_tokens: above_zero(
                "max-queued-tokens",
                args.max_queued_tokens.unwrap_or(usual.max_queued_tokens),
            )?,
            default_deadline,
            settle: duration("settle", args.settle.as_deref())?.unwrap_or(usual.settle),
            grace: duration("grace", args.grace.as_deref())?.unwrap_or(usual.grace),
            collection: collection(args, usual.collection)?,
        })
    }
}

fn load(path: &Path) -> Result<Args, InvalidConfig> {
    let path = path.to_owned();
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            toml::from_str(&text).map_err(|source| InvalidConfig::Malformed { path, source: source.into() })
        }
        Err(source) => Err(InvalidConfig::Unread { path, source }),
    }
}

fn value(name: &'static str, why: &impl ToString) -> InvalidConfig {
    InvalidConfig::Value { name, why: why.to_string() }
}

fn above_zero<N: PartialEq + From<u8>>(name: &'static str, number: N) -> Result<N, InvalidConfig> {
    if number == N::from(0) { Err(value(name, &"must not be zero")) } else { Ok(number) }
}

/// Digits and a unit: `ms`, `s`, `m`, `h`; seconds where there is none.
fn duration(name: &'static str, text: Option<&str>) -> Result<Option<Duration>, InvalidConfig> {
    let Some(text) = text else { return Ok(None) };
    let unit = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" | "" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let total = milliseconds.and_then(|unit| digits.parse::<u32>().ok().map(|count| unit * u64::from(count)));
    let malformed = || value(name, &format!("{text:?} is no time such as 500ms, 60s, 5m or 1h"));
    total.map(Duration::from_millis).map(Some).ok_or_else(malformed)
}

#[cfg(test)]
mod tests;
