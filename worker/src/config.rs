//! Settings: flags over environment over file, checked together before anything is opened. Nothing else reads the
//! environment.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use clap::Parser;
use cluster::{Name, Settings, Tls, WorkerId};
use model::{Device, Precision};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use telemetry::Format;
use uuid::Uuid;

use crate::load::Limits;
use crate::spec::ModelSpec;
use telemetry::signals::Stdin;
use tls::{Incomplete, ServerFiles};

/// How each setting is given: a flag, a variable, or a key of the file.
#[derive(Clone, Debug, Default, Parser, Deserialize)]
#[command(
    name = "beige-worker",
    version,
    about = "Serves checkpoints on one device to the gateways of a cluster"
)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Args {
    /// A TOML file with any of these settings, named as the flags are
    #[arg(long, env = "BEIGE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Name of this worker, unique in the cluster [default: random]
    #[arg(long, env = "BEIGE_ID", value_name = "NAME")]
    id: Option<String>,
    /// Members of etcd: host:port, <http://host:port> or <https://host:port>; without them the worker is registered
    /// nowhere
    #[arg(long, env = "BEIGE_ETCD", value_delimiter = ',', value_name = "URL")]
    etcd: Option<Vec<String>>,
    /// Authorities, in PEM: etcd is reached over TLS, and must show a certificate of one of them [default: none where
    /// etcd is reached in the clear, those that the system trusts for <https://host:port>]
    #[arg(long, env = "BEIGE_ETCD_CA", value_name = "FILE")]
    etcd_ca: Option<PathBuf>,
    /// The certificate that etcd is shown, in PEM
    #[arg(long, env = "BEIGE_ETCD_CERT", value_name = "FILE")]
    etcd_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_ETCD_KEY", value_name = "FILE")]
    etcd_key: Option<PathBuf>,
    /// The name that the certificate of every member of etcd has [default: the host of its endpoint]
    #[arg(long, env = "BEIGE_ETCD_NAME", value_name = "NAME")]
    etcd_name: Option<String>,
    /// The cluster to be part of [default: default]
    #[arg(long, env = "BEIGE_CLUSTER", value_name = "NAME")]
    cluster: Option<String>,
    /// Where gateways connect; port 0 takes any free port [default: 127.0.0.1:0]
    #[arg(long, env = "BEIGE_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The address that gateways are told, where it is another one [default: the one listened on]
    #[arg(long, env = "BEIGE_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where operators connect: /livez, /readyz, /metrics [default: 127.0.0.1:9090]
    #[arg(long, env = "BEIGE_ADMIN", value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// A checkpoint to serve: a directory in the Hugging Face layout, under its own name or another, as in
    /// [NAME=]DIR[,pooling=cls|mean|last][,max_tokens=N]. Repeat it for more; in the environment, separate them by
    /// semicolons
    #[arg(long, env = "BEIGE_MODEL", value_delimiter = ';', value_name = "[NAME=]DIR[,OPTION=…]")]
    model: Option<Vec<String>>,
    /// Where models run: auto, cpu, cuda:K [default: auto]
    #[arg(long, env = "BEIGE_DEVICE", value_name = "DEVICE")]
    device: Option<String>,
    /// Arithmetic of the models: auto, f32, bf16, f16 [default: auto]
    #[arg(long, env = "BEIGE_DTYPE", value_name = "DTYPE")]
    dtype: Option<String>,
    /// Threads that one batch runs on, on a CPU [default: one per core]
    #[arg(long, env = "BEIGE_THREADS", value_name = "COUNT")]
    threads: Option<NonZeroUsize>,
    /// Work in one batch, in tokens; auto measures what suits the device [default: auto]
    #[arg(long, env = "BEIGE_BATCH_TOKENS", value_name = "TOKENS|auto")]
    batch_tokens: Option<BatchTokens>,
    /// Tokens that may wait for the device; calls beyond are refused [default: 1000000]
    #[arg(long, env = "BEIGE_MAX_QUEUED_TOKENS", value_name = "TOKENS")]
    max_queued_tokens: Option<NonZeroUsize>,
    /// Threads that tokenise [default: one for two cores]
    #[arg(long, env = "BEIGE_TOKENIZER_THREADS", value_name = "COUNT")]
    tokenizer_threads: Option<NonZeroUsize>,
    /// A call that would wait longer for its first batch is refused [default: 60000]
    #[arg(long, env = "BEIGE_MAX_WAIT_MS", value_name = "MILLISECONDS")]
    max_wait_ms: Option<u64>,
    /// A text that has waited longer goes before others, whatever its priority [default: 10000]
    #[arg(long, env = "BEIGE_MAX_AGE_MS", value_name = "MILLISECONDS")]
    max_age_ms: Option<u64>,
    /// How long the worker still takes calls after it has said that it leaves, while gateways notice
    /// [default: 500ms]
    #[arg(long, env = "BEIGE_SETTLE", value_name = "TIME")]
    settle: Option<String>,
    /// How long calls that are running may take after that [default: 30s]
    #[arg(long, env = "BEIGE_GRACE", value_name = "TIME")]
    grace: Option<String>,
    /// The certificate that gateways are shown, with those between it and its authority, in PEM [default: none, and
    /// calls in the clear]
    #[arg(long, env = "BEIGE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Authorities, in PEM: gateways must show a certificate of one of them [default: they need none]
    #[arg(long, env = "BEIGE_TLS_CLIENT_CA", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// How log lines look: human or json [default: human]
    #[arg(long, env = "BEIGE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged, such as info,worker=debug [default: info]
    #[arg(long, env = "BEIGE_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Where spans go, such as <http://collector:4317> [default: nowhere]
    #[arg(long, env = "BEIGE_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Leave when standard input ends: for a supervisor that may die
    #[arg(long, env = "BEIGE_EXIT_ON_STDIN_EOF", num_args = 0..=1, default_missing_value = "true")]
    exit_on_stdin_eof: Option<bool>,
}

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
    /// What to serve; names differ.
    pub models: Vec<ModelSpec>,
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
        Self::from_args(args.over(file), cores)
    }

    /// Checks what no single setting can be checked for alone.
    fn from_args(args: Args, cores: NonZeroUsize) -> Result<Self, InvalidConfig> {
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
        Ok(Self {
            id: id(args.id)?,
            etcd: etcd(args.etcd, args.cluster.as_deref(), etcd_tls)?,
            listen,
            advertise: args.advertise,
            admin,
            models: models(&args.model.unwrap_or_default())?,
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

impl Args {
    /// These settings, and those of `file` where there are none.
    fn over(self, file: Self) -> Self {
        Self {
            config: self.config,
            id: self.id.or(file.id),
            etcd: self.etcd.or(file.etcd),
            etcd_ca: self.etcd_ca.or(file.etcd_ca),
            etcd_cert: self.etcd_cert.or(file.etcd_cert),
            etcd_key: self.etcd_key.or(file.etcd_key),
            etcd_name: self.etcd_name.or(file.etcd_name),
            cluster: self.cluster.or(file.cluster),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            admin: self.admin.or(file.admin),
            model: self.model.or(file.model),
            device: self.device.or(file.device),
            dtype: self.dtype.or(file.dtype),
            threads: self.threads.or(file.threads),
            batch_tokens: self.batch_tokens.or(file.batch_tokens),
            max_queued_tokens: self.max_queued_tokens.or(file.max_queued_tokens),
            tokenizer_threads: self.tokenizer_threads.or(file.tokenizer_threads),
            max_wait_ms: self.max_wait_ms.or(file.max_wait_ms),
            max_age_ms: self.max_age_ms.or(file.max_age_ms),
            settle: self.settle.or(file.settle),
            grace: self.grace.or(file.grace),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_client_ca: self.tls_client_ca.or(file.tls_client_ca),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            exit_on_stdin_eof: self.exit_on_stdin_eof.or(file.exit_on_stdin_eof),
        }
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
    if texts.is_empty() {
        return Err(value("model", "at least one is needed"));
    }
    let specs = texts.iter().map(|text| ModelSpec::parse(text).map_err(|error| value("model", error)));
    let specs: Vec<ModelSpec> = specs.collect::<Result<_, _>>()?;
    for (at, spec) in specs.iter().enumerate() {
        if specs[..at].iter().any(|other| other.name == spec.name) {
            return Err(value("model", format!("two are called {}; write NAME=DIR", spec.name)));
        }
    }
    Ok(specs)
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
