//! Whole Beige clusters for tests: a real etcd, real gateways, real workers, each a process of its own; those who call
//! them, and those who operate them.
//!
//! Programs are found beside the test itself, and built first where they are not up to date. Everything started
//! here ends with the value that stands for it, also when a test panics; logs are printed then.

#![allow(
    clippy::unwrap_used,
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::print_stderr,
    reason = "a test's own code: it fails by panicking, and shows why"
)]

mod cluster;
mod golden;
pub mod history;
mod lingering;
mod operator;
mod process;
mod stage;
mod tmpfs;
mod variants;

#[path = "../../cluster/tests/support/etcd.rs"]
mod etcd;
#[path = "../../cluster/tests/support/proxy.rs"]
mod proxy;
#[path = "../../store/tests/support/s3.rs"]
mod s3;

use std::path::PathBuf;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

pub use cluster::{Cluster, Linked, Plan};
pub use etcd::{EtcdServer, EtcdTls};
pub use golden::{Golden, floats};
pub use lingering::Lingering;
pub use operator::{Operator, is_decided};
pub use process::{Process, program};
pub use proxy::{Fault, Proxy};
pub use s3::S3Server;
pub use stage::{Scene, Stage};
pub use tmpfs::Tmpfs;
pub use variants::{Distance, deep_variant, heavy_variant, variant};

/// How long a noisy machine may take over what should be done in a second. To load a deep checkpoint in a development build,
/// beside other tests, has taken more than one minute.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A lazy connection to a gateway.
pub fn channel(gateway: &Process) -> Channel {
    Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap().connect_lazy()
}

/// A checkpoint that the repository carries.
pub fn checkpoint(name: &str) -> String {
    repository().join("tests/golden/checkpoints").join(name).to_str().unwrap().to_owned()
}

/// The default model, which set-up fetches.
pub fn minilm() -> String {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("beige");
    let cache = std::env::var_os("BEIGE_CACHE").map_or_else(cache, PathBuf::from);
    let dir = cache.join("models/all-MiniLM-L6-v2");
    assert!(dir.exists(), "{} is not there; run `make setup`", dir.display());
    dir.to_str().unwrap().to_owned()
}

/// The checkout.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
