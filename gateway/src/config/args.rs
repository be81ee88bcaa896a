//! How settings are given: flags, variables and keys of a file, by the same words.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use serde::Deserialize;

/// How one of the settings is given: a flag, a variable, or a key of the file.
#[derive(Clone, Debug, Default, Parser, Deserialize)]
#[command(
    name = "beige-gateway",
    version,
    about = "Routes embed and rerank calls to the workers of a cluster"
)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Args {
    /// A TOML file with any of these settings, named as the flags are
    #[arg(long, env = "BEIGE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub(super) config: Option<PathBuf>,
    /// Members of etcd: host:port, <http://host:port> or <https://host:port>
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
    /// The cluster to serve [default: default]
    #[arg(long, env = "BEIGE_CLUSTER", value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// Where callers connect [default: 127.0.0.1:8080]
    #[arg(long, env = "BEIGE_LISTEN", value_name = "ADDRESS")]
    pub(super) listen: Option<SocketAddr>,
    /// Where operators connect: /livez, /readyz, /metrics [default: 127.0.0.1:9090]
    #[arg(long, env = "BEIGE_ADMIN", value_name = "ADDRESS")]
    pub(super) admin: Option<SocketAddr>,
    /// The name of this gateway, unlike that of any other [default: drawn at random]
    #[arg(long, env = "BEIGE_ID", value_name = "NAME")]
    pub(super) id: Option<String>,
    /// Where callers reach this gateway, for people who look at the cluster [default: where it listens]
    #[arg(long, env = "BEIGE_ADVERTISE", value_name = "HOST:PORT")]
    pub(super) advertise: Option<String>,
    /// Where checkpoints are published: <file:///directory>, <s3://bucket/prefix> or <gs://bucket/prefix>, the clouds
    /// with the variables of their own tools, AWS_… and GOOGLE_… [default: none, and nothing can be published]
    #[arg(long, env = "BEIGE_STORE", value_name = "URL")]
    pub(super) store: Option<String>,
    /// Bytes of the largest checkpoint that is taken [default: 1099511627776]
    #[arg(long, env = "BEIGE_MAX_CHECKPOINT_BYTES", value_name = "BYTES")]
    pub(super) max_checkpoint_bytes: Option<u64>,
    /// What is younger in the store is never collected [default: 1h]
    #[arg(long, env = "BEIGE_COLLECT_GRACE", value_name = "TIME")]
    pub(super) collect_grace: Option<String>,
    /// How long the calls of a gateway may go on after it was last heard of: for so long no checkpoint is retired.
    /// Longer than any deadline [default: 60s]
    #[arg(long, env = "BEIGE_RETIRE_GRACE", value_name = "TIME")]
    pub(super) retire_grace: Option<String>,
    /// The certificate that callers are shown, with those between it and its authority, in PEM [default: none, and
    /// calls in the clear]
    #[arg(long, env = "BEIGE_TLS_CERT", value_name = "FILE")]
    pub(super) tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_TLS_KEY", value_name = "FILE")]
    pub(super) tls_key: Option<PathBuf>,
    /// Authorities, in PEM: callers must show a certificate of one of them [default: callers need none]
    #[arg(long, env = "BEIGE_TLS_CLIENT_CA", value_name = "FILE")]
    pub(super) tls_client_ca: Option<PathBuf>,
    /// A TOML file of API keys, looked at again when it changes [default: none, and everybody may do everything]
    #[arg(long, env = "BEIGE_KEYS", value_name = "FILE")]
    pub(super) keys: Option<PathBuf>,
    /// Authorities, in PEM: workers are talked to over TLS, and must show a certificate of one of them
    /// [default: none, and workers are talked to in the clear]
    #[arg(long, env = "BEIGE_WORKER_CA", value_name = "FILE")]
    pub(super) worker_ca: Option<PathBuf>,
    /// The certificate that workers are shown, in PEM
    #[arg(long, env = "BEIGE_WORKER_CERT", value_name = "FILE")]
    pub(super) worker_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, env = "BEIGE_WORKER_KEY", value_name = "FILE")]
    pub(super) worker_key: Option<PathBuf>,
    /// The name that the certificate of every worker has [default: the host of its address]
    #[arg(long, env = "BEIGE_WORKER_NAME", value_name = "NAME")]
    pub(super) worker_name: Option<String>,
    /// How log lines look: human or json [default: human]
    #[arg(long, env = "BEIGE_LOG_FORMAT", value_name = "FORMAT")]
    pub(super) log_format: Option<String>,
    /// What is logged, such as info,gateway=debug [default: info]
    #[arg(long, env = "BEIGE_LOG", value_name = "FILTER")]
    pub(super) log: Option<String>,
    /// Where spans go, such as <http://collector:4317> [default: nowhere]
    #[arg(long, env = "BEIGE_OTLP_ENDPOINT", value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
    /// Drain and end when standard input ends: for a supervisor that may die
    #[arg(long, env = "BEIGE_EXIT_ON_STDIN_EOF", num_args = 0..=1, default_missing_value = "true")]
    pub(super) exit_on_stdin_eof: Option<bool>,
    /// Bytes of the largest request [default: 33554432]
    #[arg(long, env = "BEIGE_MAX_MESSAGE_BYTES", value_name = "BYTES")]
    pub(super) max_message_bytes: Option<usize>,
    /// Texts of one request; the vectors of so many texts (2,048 numbers each, in f32) are as large as the largest
    /// request [default: 4096]
    #[arg(long, env = "BEIGE_MAX_INPUTS", value_name = "COUNT")]
    pub(super) max_inputs: Option<usize>,
    /// Bytes of one text: what is longer is refused, truncated or not, for no model reads a hundredth of it
    /// [default: 1048576]
    #[arg(long, env = "BEIGE_MAX_TEXT_BYTES", value_name = "BYTES")]
    pub(super) max_text_bytes: Option<usize>,
    /// Tokens that may be outstanding; more are refused [default: 4194304]
    #[arg(long, env = "BEIGE_MAX_QUEUED_TOKENS", value_name = "TOKENS")]
    pub(super) max_queued_tokens: Option<u64>,
    /// How long an answer may take where the caller does not say, such as 60s or 500ms [default: 60s]
    #[arg(long, env = "BEIGE_DEFAULT_DEADLINE", value_name = "TIME")]
    pub(super) default_deadline: Option<String>,
    /// How long to go on as before after the signal to end, while load balancers notice [default: 1s]
    #[arg(long, env = "BEIGE_SETTLE", value_name = "TIME")]
    pub(super) settle: Option<String>,
    /// How long calls that are running may take after that [default: 30s]
    #[arg(long, env = "BEIGE_GRACE", value_name = "TIME")]
    pub(super) grace: Option<String>,
}

impl Args {
    /// These settings, and those of `file` where there are none.
    pub(super) fn over(self, file: Self) -> Self {
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
            id: self.id.or(file.id),
            advertise: self.advertise.or(file.advertise),
            store: self.store.or(file.store),
            max_checkpoint_bytes: self.max_checkpoint_bytes.or(file.max_checkpoint_bytes),
            collect_grace: self.collect_grace.or(file.collect_grace),
            retire_grace: self.retire_grace.or(file.retire_grace),
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
