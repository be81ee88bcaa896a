//! Settings of the job service, checked together before anything is opened.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use cluster::{Name, Settings, Tls, TrainerId};
use model::Device;
use store::{Copies, Source};
use telemetry::Format;
use telemetry::signals::Stdin;
use tls::{Client, ClientFiles, Dialer, Server, ServerFiles};
use uuid::Uuid;

use super::devices;
use super::root::Roots;

/// Where set-up keeps checkpoints, one a directory: in `models` below `$BEIGE_CACHE`, else `$XDG_CACHE_HOME/beige`, else
/// `$HOME/.cache/beige`. Nothing where none of the three is set.
#[must_use]
pub fn set_up_models() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("BEIGE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|home| home.join("beige")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/beige")));
    cache.map(|cache| cache.join("models"))
}

/// Copies of objects: 100 GiB.
const COPIES: u64 = 100 << 30;

/// How each setting is given.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArgs {
    /// Name of this trainer, unique in the cluster [default: random]
    #[arg(long, env = "BEIGE_ID", value_name = "NAME")]
    id: Option<String>,
    /// Members of etcd: host:port, <http://host:port> or <https://host:port>
    #[arg(long, env = "BEIGE_ETCD", value_delimiter = ',', required = true, value_name = "URL")]
    etcd: Vec<String>,
    /// Authorities, in PEM: etcd is reached over TLS, and must show a certificate of one of them
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
    /// The cluster to be part of
    #[arg(long, env = "BEIGE_CLUSTER", default_value = "default", value_name = "NAME")]
    cluster: String,
    /// Where gateways connect; port 0 takes any free port
    #[arg(long, env = "BEIGE_LISTEN", default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The address that gateways are told, where it is another one [default: the one listened on]
    #[arg(long, env = "BEIGE_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Where operators connect: /livez, /readyz, /metrics
    #[arg(long, env = "BEIGE_ADMIN", default_value = "127.0.0.1:9091", value_name = "ADDRESS")]
    admin: SocketAddr,
    /// A directory that jobs may read from; what they name is relative to the first. Repeat it for more
    #[arg(long, env = "BEIGE_DATA_ROOT", value_delimiter = ':', required = true, value_name = "DIR")]
    data_root: Vec<PathBuf>,
    /// Objects that jobs may read, <s3://bucket/prefix> or <gs://bucket/prefix>; credentials and endpoints come from the
    /// environment. Repeat it for more
    #[arg(long, env = "BEIGE_DATA_URI", value_delimiter = ',', value_name = "URL")]
    data_uri: Vec<String>,
    /// Bytes that copies of objects may take below the output directory, those of jobs aside
    #[arg(long, env = "BEIGE_DATA_CACHE_BYTES", default_value_t = COPIES, value_name = "BYTES")]
    data_cache_bytes: u64,
    /// Where jobs write, a directory each; trainers that share a cluster share it
    #[arg(long, env = "BEIGE_OUTPUT", value_name = "DIR")]
    output: PathBuf,
    /// How many ranks run at a time, on processors [default: one for each core]
    #[arg(long, env = "BEIGE_RANKS", value_name = "COUNT", conflicts_with = "devices")]
    ranks: Option<NonZeroUsize>,
    /// What ranks run on, one each, in place of ranks: cuda:0,cuda:1
    #[arg(long, env = "BEIGE_DEVICES", value_delimiter = ',', value_name = "DEVICE")]
    devices: Vec<String>,
    /// Of jobs that have ended, how many of the last keep their directories; the models of others are gone unless they were
    /// published [default: all]
    #[arg(long, env = "BEIGE_KEEP_FINISHED", value_name = "COUNT")]
    keep_finished: Option<usize>,
    /// A file with the API key that gateways are shown, where they ask for one
    #[arg(long, env = "BEIGE_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Authorities, in PEM: gateways are reached over TLS, and must show a certificate of one of them
    #[arg(long, env = "BEIGE_GATEWAY_CA", value_name = "FILE")]
    gateway_ca: Option<PathBuf>,
    /// The certificate that gateways are shown, in PEM
    #[arg(long, env = "BEIGE_GATEWAY_CERT", requires = "gateway_ca", value_name = "FILE")]
    gateway_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_GATEWAY_KEY", requires = "gateway_cert", value_name = "FILE")]
    gateway_key: Option<PathBuf>,
    /// The name that the certificate of every gateway has [default: the host that it is registered with]
    #[arg(long, env = "BEIGE_GATEWAY_NAME", value_name = "NAME")]
    gateway_name: Option<String>,
    /// The certificate that those who connect are shown, in PEM [default: none, and calls in the clear]
    #[arg(long, env = "BEIGE_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_TLS_KEY", value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Authorities, in PEM: those who connect must show a certificate of one of them
    #[arg(long, env = "BEIGE_TLS_CLIENT_CA", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// How log lines look: human or json
    #[arg(long, env = "BEIGE_LOG_FORMAT", default_value = "human", value_name = "FORMAT")]
    log_format: String,
    /// What is logged, such as info,trainer=debug
    #[arg(long, env = "BEIGE_LOG", default_value = "info", value_name = "FILTER")]
    log: String,
    /// Where spans go, such as <http://collector:4317> [default: nowhere]
    #[arg(long, env = "BEIGE_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Leave when standard input ends: for a supervisor that may die
    #[arg(long, env = "BEIGE_EXIT_ON_STDIN_EOF", num_args = 0..=1, default_missing_value = "true")]
    exit_on_stdin_eof: Option<bool>,
}

/// A setting that is wrong, alone or beside another one.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidConfig {
    /// Which setting.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

/// Settings that hold together.
#[derive(Clone, Debug)]
pub struct Config {
    pub(super) id: TrainerId,
    pub(super) etcd: Settings,
    pub(super) listen: SocketAddr,
    pub(super) advertise: Option<String>,
    pub(super) admin: SocketAddr,
    pub(super) roots: Roots,
    pub(super) output: PathBuf,
    /// What a rank each runs on; they are there.
    pub(super) devices: Vec<Device>,
    pub(super) keep_finished: Option<usize>,
    pub(super) threads: usize,
    pub(super) key: Option<Arc<PathBuf>>,
    pub(super) dialer: Dialer,
    pub(super) tls: Option<Arc<Server>>,
    pub(super) log_format: Format,
    pub(super) log: String,
    pub(super) otlp_endpoint: Option<String>,
    pub(super) stdin: Stdin,
}

impl Config {
    /// Checks `args`, looks for devices, reads certificates and makes the output directory; a rank runs on `threads`.
    ///
    /// # Errors
    /// [`InvalidConfig`] names the setting.
    pub fn from_args(args: ServeArgs, threads: usize) -> Result<Self, InvalidConfig> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let id = args.id.unwrap_or_else(|| Uuid::new_v4().to_string());
        let tls = Tls::of(args.etcd_ca, args.etcd_cert, args.etcd_key, args.etcd_name)
            .map_err(wrong("etcd-cert"))?;
        let cluster = Name::parse(args.cluster).map_err(wrong("cluster"))?;
        if args.listen.ip().is_unspecified() && args.advertise.is_none() {
            let reason = "it listens on every address, so say with advertise which one gateways are to use";
            return Err(InvalidConfig { field: "listen", reason: reason.to_owned() });
        }
        let public = ServerFiles::of(args.tls_cert, args.tls_key, args.tls_client_ca)
            .map_err(|_| "tls-cert and tls-key go together, and tls-client-ca needs both")
            .map_err(wrong("tls-cert"))?;
        let devices = devices::parse(&args.devices, args.ranks.map_or(cores, NonZeroUsize::get))
            .map_err(wrong("devices"))?;
        devices.iter().try_for_each(|device| model::reach(*device)).map_err(wrong("devices"))?;
        let tls_server = public.map(Server::load).transpose().map_err(wrong("tls-cert"))?;
        std::fs::create_dir_all(&args.output).map_err(wrong("output"))?;
        let output = args.output.canonicalize().map_err(wrong("output"))?;
        Ok(Self {
            id: TrainerId::parse(id).map_err(wrong("id"))?,
            etcd: Settings { endpoints: args.etcd, cluster, tls },
            listen: args.listen,
            advertise: args.advertise,
            admin: args.admin,
            roots: roots((&args.data_root, &args.data_uri), &output, args.data_cache_bytes)?,
            output,
            devices,
            keep_finished: args.keep_finished,
            threads,
            key: args.key_file.map(Arc::new),
            dialer: dialer(
                (args.gateway_ca, args.gateway_cert, args.gateway_key),
                args.gateway_name.as_deref(),
            )?,
            tls: tls_server.map(Arc::new),
            log_format: args.log_format.parse().map_err(wrong("log-format"))?,
            log: args.log,
            otlp_endpoint: args.otlp_endpoint,
            stdin: if args.exit_on_stdin_eof.unwrap_or(false) { Stdin::Watched } else { Stdin::Ignored },
        })
    }
}

/// Where jobs read. Copies of objects are kept beside the directories of jobs, so that trainers share them too.
fn roots(
    (directories, urls): (&[PathBuf], &[String]),
    output: &Path,
    bytes: u64,
) -> Result<Roots, InvalidConfig> {
    let roots = Roots::open(directories).map_err(wrong("data-root"))?;
    if urls.is_empty() {
        return Ok(roots);
    }
    let settings = std::env::vars_os().collect();
    let open = |url: &String| Source::open(url, &settings).map_err(wrong("data-uri"));
    let sources = urls.iter().map(open).collect::<Result<_, _>>()?;
    Ok(roots.with_sources(sources, Copies::open(&output.join(".data"), bytes).map_err(wrong("output"))?))
}

/// How gateways are reached.
fn dialer(
    (ca, cert, key): (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>),
    name: Option<&str>,
) -> Result<Dialer, InvalidConfig> {
    let Some(ca) = ca else { return Ok(Dialer::default()) };
    let files = ClientFiles::of(Some(ca), cert, key)
        .map_err(|_| "gateway-cert and gateway-key go together")
        .map_err(wrong("gateway-cert"))?;
    let client = Client::load(files).map_err(wrong("gateway-ca"))?;
    Dialer::secured(Arc::new(client), name).map_err(wrong("gateway-name"))
}

fn wrong<E: ToString>(field: &'static str) -> impl FnOnce(E) -> InvalidConfig {
    move |error| InvalidConfig { field, reason: error.to_string() }
}
