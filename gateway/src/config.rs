//! Settings: flags over environment over a TOML file, checked together before a socket opens.
//!
//! The only reader of the environment. The names of flags, variables (`BEIGE_…`) and TOML keys are the same words.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use cluster::{InvalidName, Name, Settings, Tls};
use serde::Deserialize;
use telemetry::Format;

use crate::guard::Files;
use crate::wire::Limits;
use telemetry::signals::Stdin;

/// How one of the settings is given: a flag, a variable, or a key of the file.
#[derive(Clone, Debug, Default, Parser, Deserialize)]
#[command(
    name = "beige-gateway",
    version,
    about = "Routes embed and rerank calls to the workers of a cluster"
)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Args {
    /// A TOML file with any of these settings, named as the flags are
    #[arg(long, env = "BEIGE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Members of etcd: host:port, <http://host:port> or <https://host:port>
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
    /// The cluster to serve [default: default]
    #[arg(long, env = "BEIGE_CLUSTER", value_name = "NAME")]
    cluster: Option<String>,
    /// Where callers connect [default: 127.0.0.1:8080]
    #[arg(long, env = "BEIGE_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where operators connect: /livez, /readyz, /metrics [default: 127.0.0.1:9090]
    #[arg(long, env = "BEIGE_ADMIN", value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// The certificate that callers are shown, with those between it and its authority, in PEM [default: none, and
    /// calls in the clear]
    #[arg(long, env = "BEIGE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Authorities, in PEM: callers must show a certificate of one of them [default: callers need none]
    #[arg(long, env = "BEIGE_TLS_CLIENT_CA", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// A TOML file of API keys, looked at again when it changes [default: none, and everybody may do everything]
    #[arg(long, env = "BEIGE_KEYS", value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Authorities, in PEM: workers are talked to over TLS, and must show a certificate of one of them
    /// [default: none, and workers are talked to in the clear]
    #[arg(long, env = "BEIGE_WORKER_CA", value_name = "FILE")]
    worker_ca: Option<PathBuf>,
    /// The certificate that workers are shown, in PEM
    #[arg(long, env = "BEIGE_WORKER_CERT", value_name = "FILE")]
    worker_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_WORKER_KEY", value_name = "FILE")]
    worker_key: Option<PathBuf>,
    /// The name that the certificate of every worker has [default: the host of its address]
    #[arg(long, env = "BEIGE_WORKER_NAME", value_name = "NAME")]
    worker_name: Option<String>,
    /// How log lines look: human or json [default: human]
    #[arg(long, env = "BEIGE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
    /// What is logged, such as info,gateway=debug [default: info]
    #[arg(long, env = "BEIGE_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Where spans go, such as <http://collector:4317> [default: nowhere]
    #[arg(long, env = "BEIGE_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Drain and end when standard input ends: for a supervisor that may die
    #[arg(long, env = "BEIGE_EXIT_ON_STDIN_EOF", num_args = 0..=1, default_missing_value = "true")]
    exit_on_stdin_eof: Option<bool>,
    /// Bytes of the largest request [default: 33554432]
    #[arg(long, env = "BEIGE_MAX_MESSAGE_BYTES", value_name = "BYTES")]
    max_message_bytes: Option<usize>,
    /// Texts of one request; the vectors of so many texts (2,048 numbers each, in f32) are as large as the largest
    /// request [default: 4096]
    #[arg(long, env = "BEIGE_MAX_INPUTS", value_name = "COUNT")]
    max_inputs: Option<usize>,
    /// Bytes of one text: what is longer is refused, truncated or not, for no model reads a hundredth of it
    /// [default: 1048576]
    #[arg(long, env = "BEIGE_MAX_TEXT_BYTES", value_name = "BYTES")]
    max_text_bytes: Option<usize>,
    /// Tokens that may be outstanding; more are refused [default: 4194304]
    #[arg(long, env = "BEIGE_MAX_QUEUED_TOKENS", value_name = "TOKENS")]
    max_queued_tokens: Option<u64>,
    /// How long an answer may take where the caller does not say, such as 60s or 500ms [default: 60s]
    #[arg(long, env = "BEIGE_DEFAULT_DEADLINE", value_name = "TIME")]
    default_deadline: Option<String>,
    /// How long to go on as before after the signal to end, while load balancers notice [default: 1s]
    #[arg(long, env = "BEIGE_SETTLE", value_name = "TIME")]
    settle: Option<String>,
    /// How long calls that are running may take after that [default: 30s]
    #[arg(long, env = "BEIGE_GRACE", value_name = "TIME")]
    grace: Option<String>,
}

/// All settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where etcd is, and which cluster to serve.
    pub etcd: Settings,
    /// Where callers connect.
    pub listen: SocketAddr,
    /// Where operators connect.
    pub admin: SocketAddr,
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
        Ok(Self {
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
        })
    }
}

impl Args {
    /// These settings, and those of `file` where there are none.
    fn over(self, file: Self) -> Self {
        Self {
            config: self.config,
            etcd: self.etcd.or(file.etcd),
            etcd_ca: self.etcd_ca.or(file.etcd_ca),
            etcd_cert: self.etcd_cert.or(file.etcd_cert),
            etcd_key: self.etcd_key.or(file.etcd_key),
            etcd_name: self.etcd_name.or(file.etcd_name),
            cluster: self.cluster.or(file.cluster),
            listen: self.listen.or(file.listen),
            admin: self.admin.or(file.admin),
            tls_cert: self.tls_cert.or(file.tls_cert),
            tls_key: self.tls_key.or(file.tls_key),
            tls_client_ca: self.tls_client_ca.or(file.tls_client_ca),
            keys: self.keys.or(file.keys),
            worker_ca: self.worker_ca.or(file.worker_ca),
            worker_cert: self.worker_cert.or(file.worker_cert),
            worker_key: self.worker_key.or(file.worker_key),
            worker_name: self.worker_name.or(file.worker_name),
            log_format: self.log_format.or(file.log_format),
            log: self.log.or(file.log),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            exit_on_stdin_eof: self.exit_on_stdin_eof.or(file.exit_on_stdin_eof),
            max_message_bytes: self.max_message_bytes.or(file.max_message_bytes),
            max_inputs: self.max_inputs.or(file.max_inputs),
            max_text_bytes: self.max_text_bytes.or(file.max_text_bytes),
            max_queued_tokens: self.max_queued_tokens.or(file.max_queued_tokens),
            default_deadline: self.default_deadline.or(file.default_deadline),
            settle: self.settle.or(file.settle),
            grace: self.grace.or(file.grace),
        }
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
