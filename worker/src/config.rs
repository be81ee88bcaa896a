//! Settings: flags over environment over file, checked together before anything is opened. Nothing else reads the
//! environment.

mod args;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;
use std::{env, fs};

use clap::Parser;
use cluster::{Name, Settings, Tls, WorkerId};
use model::{Device, Precision};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use telemetry::Format;
use uuid::Uuid;

use args::Args;

use crate::load::Limits;
use crate::spec::ModelSpec;
use telemetry::signals::Stdin;
use tls::{Incomplete, ServerFiles};

/// Bytes of a cache whose size is not given.
const CACHE_BYTES: NonZeroU64 = NonZeroU64::new(32 << 30).expect("it is above 0");

/// Work in one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchTokens {
    /// What suits the device.
    #[default]
    Auto,
    /// So many tokens.
    Fixed(NonZeroUsize),
}

impl FromStr for BatchTokens {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number
                .parse()
                .map(Self::Fixed)
                .map_err(|_| format!("auto or a number above 0, not {number:?}")),
        }
    }
}

impl<'de> Deserialize<'de> for BatchTokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(NonZeroUsize),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self::Fixed(number)),
            Either::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// Not flags of ours, or a request for help: print it.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read, or does not say what it should.
    #[error("config: {}: {reason}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is the matter with it.
        reason: String,
    },
    /// A setting is wrong, alone or beside another one.
    #[error("{field}: {reason}")]
    Value {
        /// Which setting.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// A store, and where its checkpoints are kept here.
#[derive(Clone, Debug)]
pub struct StoreSpec {
    /// Where it is.
    pub url: String,
    /// What the environment says of the cloud it is in.
    pub settings: store::Settings,
    /// The directory of the cache.
    pub cache: PathBuf,
    /// Bytes that the cache may take.
    pub cache_bytes: NonZeroU64,
}

/// Settings that hold together.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this worker is.
    pub id: WorkerId,
    /// The cluster; `None` for a worker that is registered nowhere.
    pub etcd: Option<Settings>,
    /// Where gateways connect.
    pub listen: SocketAddr,
    /// The address they are told; `None` for the one listened on.
    pub advertise: Option<String>,
    /// The admin port.
    pub admin: SocketAddr,
    /// What it brings along; names differ.
    pub models: Vec<ModelSpec>,
    /// The models it may serve; `None` for all.
    pub serves: Option<BTreeSet<String>>,
    /// Where the cluster's checkpoints are, where it is to take any from there.
    pub store: Option<StoreSpec>,
    /// Bytes of memory that checkpoints may take; `None` for what there is.
    pub memory_limit: Option<NonZeroU64>,
    /// Where it runs.
    pub device: Device,
    /// How it calculates.
    pub precision: Precision,
    /// Threads of a batch.
    pub threads: NonZeroUsize,
    /// Work in a batch.
    pub batch_tokens: BatchTokens,
    /// What may wait.
    pub limits: Limits,
    /// Age beyond which a text goes first.
    pub age: Duration,
    /// Threads that tokenise.
    pub tokenizer_threads: NonZeroUsize,
    /// Between saying goodbye and taking no more calls.
    pub settle: Duration,
    /// How long calls may take to end.
    pub grace: Duration,
    /// What gateways are shown; `None` where they are talked to in the clear.
    pub tls: Option<ServerFiles>,
    /// How log lines look.
    pub log_format: Format,
    /// What is logged.
    pub log: String,
    /// Where spans go.
    pub otlp_endpoint: Option<String>,
    /// Whether the end of standard input is a signal to leave.
    pub stdin: Stdin,
}

impl Config {
    /// Reads the settings of this process.
    ///
    /// # Errors
    /// [`InvalidConfig`] names the setting.
    pub fn read(flags: impl IntoIterator<Item = OsString>) -> Result<Self, InvalidConfig> {
        let args = Args::try_parse_from(flags)?;
        let file = args.config.as_deref().map(load).transpose()?.unwrap_or_default();
        let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Self::from_args(args.over(file), &Facts { cores, environment: env::vars_os().collect() })
    }

    /// Checks what no single setting can be checked for alone.
    fn from_args(args: Args, facts: &Facts) -> Result<Self, InvalidConfig> {
        let cores = facts.cores;
        let listen = args.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let admin = args.admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9090)));
        check_addresses(listen, admin, args.advertise.as_deref())?;
        let limits = Limits {
            tokens: args.max_queued_tokens.map_or(1_000_000, NonZeroUsize::get),
            wait: Duration::from_millis(args.max_wait_ms.unwrap_or(60_000)),
        };
        let age = Duration::from_millis(args.max_age_ms.unwrap_or(10_000));
        if age > limits.wait {
            return Err(value("max-age-ms", "it is above max-wait-ms, so nothing would ever reach it"));
        }
        let batch_tokens = args.batch_tokens.unwrap_or_default();
        if matches!(batch_tokens, BatchTokens::Fixed(tokens) if tokens.get() > limits.tokens) {
            return Err(value("batch-tokens", "it is above max-queued-tokens, so no batch could be filled"));
        }
        let etcd_tls = Tls::of(args.etcd_ca, args.etcd_cert, args.etcd_key, args.etcd_name)
            .map_err(|error| value("etcd-cert", error))?;
        let halves = NonZeroUsize::new(cores.get() / 2).unwrap_or(NonZeroUsize::MIN);
        let etcd = etcd(args.etcd, args.cluster.as_deref(), etcd_tls)?;
        let store = store(args.store, (args.cache, args.cache_bytes), facts)?;
        let models = models(&args.model.unwrap_or_default())?;
        match (&store, &etcd) {
            (None, _) if models.is_empty() => {
                return Err(value("model", "at least one is needed, or a store"));
            }
            (Some(_), None) => {
                return Err(value("store", "it needs etcd, which knows what to take from it"));
            }
            (None | Some(_), _) => {}
        }
        Ok(Self {
            id: id(args.id)?,
            etcd,
            listen,
            advertise: args.advertise,
            admin,
            serves: serves(args.serve, &models)?,
            models,
            store,
            memory_limit: args.memory_limit,
            device: Device::parse(args.device.as_deref().unwrap_or("auto"))
                .map_err(|error| value("device", error))?,
            precision: parse("dtype", args.dtype.as_deref().unwrap_or("auto"))?,
            threads: args.threads.unwrap_or(cores),
            batch_tokens,
            limits,
            age,
            tokenizer_threads: args.tokenizer_threads.unwrap_or(halves),
            settle: duration("settle", args.settle.as_deref().unwrap_or("500ms"))?,
            grace: duration("grace", args.grace.as_deref().unwrap_or("30s"))?,
            tls: tls([args.tls_cert, args.tls_key, args.tls_client_ca])?,
            log_format: parse("log-format", args.log_format.as_deref().unwrap_or("human"))?,
            log: args.log.unwrap_or("info".to_owned()),
            otlp_endpoint: args.otlp_endpoint.filter(|endpoint| !endpoint.is_empty()),
            stdin: if args.exit_on_stdin_eof.unwrap_or(false) { Stdin::Watched } else { Stdin::Ignored },
        })
    }
}

/// What the process finds.
struct Facts {
    cores: NonZeroUsize,
    environment: Vec<(OsString, OsString)>,
}

impl Facts {
    /// The user's cache directory for checkpoints, where the environment tells of one.
    fn cache(&self) -> Option<PathBuf> {
        let variable = |name: &str| {
            let found = self.environment.iter().find(|(key, value)| key == name && !value.is_empty());
            found.map(|(_, value)| PathBuf::from(value))
        };
        let user = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(user.join("beige/checkpoints"))
    }
}

fn load(path: &Path) -> Result<Args, InvalidConfig> {
    let bad = |reason: String| InvalidConfig::File { path: path.to_owned(), reason };
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    toml::from_str(&text).map_err(|error| bad(error.to_string()))
}

fn check_addresses(
    listen: SocketAddr,
    admin: SocketAddr,
    advertise: Option<&str>,
) -> Result<(), InvalidConfig> {
    if listen == admin && listen.port() != 0 {
        return Err(value("admin", "it is the same address as listen"));
    }
    match advertise {
        None if listen.ip().is_unspecified() => {
            Err(value("advertise", format!("it is needed, because nobody can connect to {}", listen.ip())))
        }
        Some(address) if !address.rsplit_once(':').is_some_and(is_host_and_port) => {
            Err(value("advertise", format!("{address:?} is not host:port")))
        }
        None | Some(_) => Ok(()),
    }
}

fn is_host_and_port((host, port): (&str, &str)) -> bool {
    !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn tls(files: [Option<PathBuf>; 3]) -> Result<Option<ServerFiles>, InvalidConfig> {
    let [certificate, key, authorities] = files;
    ServerFiles::of(certificate, key, authorities).map_err(|incomplete| match incomplete {
        Incomplete::Identity => value("tls-cert", "tls-cert and tls-key go together"),
        Incomplete::Authorities => value("tls-client-ca", "it needs tls-cert and tls-key"),
    })
}

fn id(id: Option<String>) -> Result<WorkerId, InvalidConfig> {
    let id = id.unwrap_or_else(|| {
        let random = Uuid::new_v4().simple().to_string();
        format!("worker-{}", &random[..8])
    });
    parse("id", &id)
}

fn etcd(
    endpoints: Option<Vec<String>>,
    cluster: Option<&str>,
    tls: Option<Tls>,
) -> Result<Option<Settings>, InvalidConfig> {
    let cluster: Name = parse("cluster", cluster.unwrap_or("default"))?;
    let endpoints = endpoints.unwrap_or_default();
    Ok((!endpoints.is_empty()).then_some(Settings { endpoints, cluster, tls }))
}

fn models(texts: &[String]) -> Result<Vec<ModelSpec>, InvalidConfig> {
    let specs = texts.iter().map(|text| ModelSpec::parse(text).map_err(|error| value("model", error)));
    let specs: Vec<ModelSpec> = specs.collect::<Result<_, _>>()?;
    for (at, spec) in specs.iter().enumerate() {
        if specs[..at].iter().any(|other| other.name == spec.name) {
            return Err(value("model", format!("two are called {}; write NAME=DIR", spec.name)));
        }
    }
    Ok(specs)
}

fn serves(
    names: Option<Vec<String>>,
    models: &[ModelSpec],
) -> Result<Option<BTreeSet<String>>, InvalidConfig> {
    let Some(names) = names else { return Ok(None) };
    let names = names.iter().map(|name| parse::<Name>("serve", name).map(|name| name.to_string()));
    let names = names.collect::<Result<BTreeSet<String>, _>>()?;
    match models.iter().find(|spec| !names.contains(spec.name.as_str())) {
        Some(spec) => Err(value("serve", format!("it leaves out {}, which is brought along", spec.name))),
        None => Ok(Some(names)),
    }
}

fn store(
    url: Option<String>,
    (cache, bytes): (Option<PathBuf>, Option<NonZeroU64>),
    facts: &Facts,
) -> Result<Option<StoreSpec>, InvalidConfig> {
    let Some(url) = url.filter(|url| !url.is_empty()) else { return Ok(None) };
    let cache =
        cache.or_else(|| facts.cache()).ok_or_else(|| value("cache", "it is needed, with a store"))?;
    let settings = facts.environment.iter().cloned().collect();
    Ok(Some(StoreSpec { url, settings, cache, cache_bytes: bytes.unwrap_or(CACHE_BYTES) }))
}

fn parse<T: FromStr<Err: ToString>>(field: &'static str, text: &str) -> Result<T, InvalidConfig> {
    text.parse().map_err(|error: T::Err| value(field, error))
}

#[allow(clippy::needless_pass_by_value)] // Errors and texts alike, as `map_err` has them.
fn value(field: &'static str, reason: impl ToString) -> InvalidConfig {
    InvalidConfig::Value { field, reason: reason.to_string() }
}

/// A number and a unit: `ms`, `s`, `m` or `h`; seconds where there is none.
fn duration(field: &'static str, text: &str) -> Result<Duration, InvalidConfig> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let milliseconds = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let whole =
        number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse::<u32>().ok()).flatten();
    let time = milliseconds.zip(whole).map(|(unit, number)| Duration::from_millis(unit * u64::from(number)));
    time.ok_or_else(|| value(field, format!("{text:?} is no time such as 500ms, 60s, 5m or 1h")))
}

#[cfg(test)]
mod tests;
