//! How settings are given, before anything is held against anything else.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use clap::Parser;
use serde::Deserialize;

use super::BatchTokens;

/// How each setting is given: a flag, a variable, or a key of the file.
#[derive(Clone, Debug, Default, Parser, Deserialize)]
#[command(
    name = "beige-worker",
    version,
    about = "Serves checkpoints on one device to the gateways of a cluster"
)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Args {
    /// A TOML file with any of these settings, named as the flags are
    #[arg(long, env = "BEIGE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(super) config: Option<PathBuf>,
    /// Name of this worker, unique in the cluster [default: random]
    #[arg(long, env = "BEIGE_ID", value_name = "NAME")]
    pub(super) id: Option<String>,
    /// Members of etcd: host:port, <http://host:port> or <https://host:port>; without them the worker is registered
    /// nowhere
    #[arg(long, env = "BEIGE_ETCD", value_delimiter = ',', value_name = "URL")]
    pub(super) etcd: Option<Vec<String>>,
    /// Authorities, in PEM: etcd is reached over TLS, and must show a certificate of one of them [default: none where
    /// etcd is reached in the clear, those that the system trusts for <https://host:port>]
    #[arg(long, env = "BEIGE_ETCD_CA", value_name = "FILE")]
    pub(super) etcd_ca: Option<PathBuf>,
    /// The certificate that etcd is shown, in PEM
    #[arg(long, env = "BEIGE_ETCD_CERT", value_name = "FILE")]
    pub(super) etcd_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_ETCD_KEY", value_name = "FILE")]
    pub(super) etcd_key: Option<PathBuf>,
    /// The name that the certificate of every member of etcd has [default: the host of its endpoint]
    #[arg(long, env = "BEIGE_ETCD_NAME", value_name = "NAME")]
    pub(super) etcd_name: Option<String>,
    /// The cluster to be part of [default: default]
    #[arg(long, env = "BEIGE_CLUSTER", value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Where gateways connect; port 0 takes any free port [default: 127.0.0.1:0]
    #[arg(long, env = "BEIGE_LISTEN", value_name = "ADDRESS")]
    pub(super) listen: Option<SocketAddr>,
    /// The address that gateways are told, where it is another one [default: the one listened on]
    #[arg(long, env = "BEIGE_ADVERTISE", value_name = "HOST:PORT")]
    pub(super) advertise: Option<String>,
    /// Where operators connect: /livez, /readyz, /metrics [default: 127.0.0.1:9090]
    #[arg(long, env = "BEIGE_ADMIN", value_name = "ADDRESS")]
    pub(super) admin: Option<SocketAddr>,
    /// A checkpoint to bring along: a directory in the Hugging Face layout, under its own name or another, as in
    /// [NAME=]DIR[,pooling=cls|mean|last][,max_tokens=N]. Repeat it for more; in the environment, separate them by
    /// semicolons. None is needed where there is a store
    #[arg(long, env = "BEIGE_MODEL", value_delimiter = ';', value_name = "[NAME=]DIR[,OPTION=…]")]
    pub(super) model: Option<Vec<String>>,
    /// The models that it may serve, by name; the cluster decides which checkpoints [default: all]
    #[arg(long, env = "BEIGE_SERVE", value_delimiter = ',', value_name = "NAME")]
    pub(super) serve: Option<Vec<String>>,
    /// Where the cluster's checkpoints are: <file:///directory>, <s3://bucket/prefix>,
    /// <gs://bucket/prefix>
    /// [default: nowhere, and only checkpoints that are brought along are served]
    #[arg(long, env = "BEIGE_STORE", value_name = "URL")]
    pub(super) store: Option<String>,
    /// Where checkpoints out of the store are kept on this host, for all its workers [default: beige/checkpoints in
    /// the user's cache directory]
    #[arg(long, env = "BEIGE_CACHE_DIR", value_name = "DIR")]
    pub(super) cache: Option<PathBuf>,
    /// Bytes that the cache may take [default: 34359738368, which is 32 GiB]
    #[arg(long, env = "BEIGE_CACHE_BYTES", value_name = "BYTES")]
    pub(super) cache_bytes: Option<NonZeroU64>,
    /// Bytes of memory that checkpoints may take: of the process on a CPU, of the device otherwise [default: what the
    /// control group or the machine has, or the device]
    #[arg(long, env = "BEIGE_MEMORY_LIMIT", value_name = "BYTES")]
    pub(super) memory_limit: Option<NonZeroU64>,
    /// Where models run: auto, cpu, cuda:K [default: auto]
    #[arg(long, env = "BEIGE_DEVICE", value_name = "DEVICE")]
    pub(super) device: Option<String>,
    /// Arithmetic of the models: auto, f32, bf16, f16 [default: auto]
    #[arg(long, env = "BEIGE_DTYPE", value_name = "DTYPE")]
    pub(super) dtype: Option<String>,
    /// Threads that one batch runs on, on a CPU [default: one per core]
    #[arg(long, env = "BEIGE_THREADS", value_name = "COUNT")]
    pub(super) threads: Option<NonZeroUsize>,
    /// Work in one batch, in tokens; auto measures what suits the device [default: auto]
    #[arg(long, env = "BEIGE_BATCH_TOKENS", value_name = "TOKENS|auto")]
    pub(super) batch_tokens: Option<BatchTokens>,
    /// Tokens that may wait for the device; calls beyond are refused [default: 1000000]
    #[arg(long, env = "BEIGE_MAX_QUEUED_TOKENS", value_name = "TOKENS")]
    pub(super) max_queued_tokens: Option<NonZeroUsize>,
    /// Threads that tokenise [default: one for two cores]
    #[arg(long, env = "BEIGE_TOKENIZER_THREADS", value_name = "COUNT")]
    pub(super) tokenizer_threads: Option<NonZeroUsize>,
    /// A call that would wait longer for its first batch is refused [default: 60000]
    #[arg(long, env = "BEIGE_MAX_WAIT_MS", value_name = "MILLISECONDS")]
    pub(super) max_wait_ms: Option<u64>,
    /// A text that has waited longer goes before others, whatever its priority [default: 10000]
    #[arg(long, env = "BEIGE_MAX_AGE_MS", value_name = "MILLISECONDS")]
    pub(super) max_age_ms: Option<u64>,
    /// How long the worker still takes calls after it has said that it leaves, while gateways notice
    /// [default: 500ms]
    #[arg(long, env = "BEIGE_SETTLE", value_name = "TIME")]
    pub(super) settle: Option<String>,
    /// How long calls that are running may take after that [default: 30s]
    #[arg(long, env = "BEIGE_GRACE", value_name = "TIME")]
    pub(super) grace: Option<String>,
    /// The certificate that gateways are shown, with those between it and its authority, in PEM [default: none, and
    /// calls in the clear]
    #[arg(long, env = "BEIGE_TLS_CERT", value_name = "FILE")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_TLS_KEY", value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,
    /// Authorities, in PEM: gateways must show a certificate of one of them [default: they need none]
    #[arg(long, env = "BEIGE_TLS_CLIENT_CA", value_name = "FILE")]
    pub(super) tls_client_ca: Option<PathBuf>,
    /// How log lines look: human or json [default: human]
    #[arg(long, env = "BEIGE_LOG_FORMAT", value_name = "FORMAT")]
    pub(super) log_format: Option<String>,
    /// What is logged, such as info,worker=debug [default: info]
    #[arg(long, env = "BEIGE_LOG", value_name = "FILTER")]
    pub(super) log: Option<String>,
    /// Where spans go, such as <http://collector:4317> [default: nowhere]
    #[arg(long, env = "BEIGE_OTLP_ENDPOINT", value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
    /// Leave when standard input ends: for a supervisor that may die
    #[arg(long, env = "BEIGE_EXIT_ON_STDIN_EOF", num_args = 0..=1, default_missing_value = "true")]
    pub(super) exit_on_stdin_eof: Option<bool>,
}

impl Args {
    /// These settings, and those of `file` where there are none.
    pub(super) fn over(self, file: Self) -> Self {
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
            serve: self.serve.or(file.serve),
            store: self.store.or(file.store),
            cache: self.cache.or(file.cache),
            cache_bytes: self.cache_bytes.or(file.cache_bytes),
            memory_limit: self.memory_limit.or(file.memory_limit),
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
