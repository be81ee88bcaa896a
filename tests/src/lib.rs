//! A whole Beige cluster for tests: a real etcd, a real gateway, real workers, each a process of its own.
//!
//! Programs are found beside the test itself, and built first where they are not up to date. Everything started
//! here ends with the value that stands for it, also when a test panics; logs are printed then.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    clippy::print_stderr,
    reason = "a test's own code: it fails by panicking, and shows why"
)]

mod golden;
mod load;
mod process;

#[path = "../../cluster/tests/support/etcd.rs"]
mod etcd;
#[path = "../../cluster/tests/support/proxy.rs"]
mod proxy;

use std::path::PathBuf;
use std::time::Duration;

use proto::v1::cluster_client::ClusterClient;
use proto::v1::{ListWorkersRequest, Worker, WorkerState};
use tempfile::TempDir;
use tokio::time;
use tonic::transport::{Channel, Endpoint};

pub use etcd::EtcdServer;
pub use golden::{Golden, floats};
pub use load::{Load, Outcome};
pub use process::{Process, program};
pub use proxy::{Fault, Proxy};

/// How long a noisy machine may take over what should be done in a second.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One etcd, one gateway, some workers.
#[derive(Debug)]
pub struct Cluster {
    /// Ends last.
    pub etcd: EtcdServer,
    /// Where calls go.
    pub gateway: Process,
    /// In the order in which they were started.
    pub workers: Vec<Process>,
    /// What each worker loads: `[NAME=]DIR`.
    models: Vec<String>,
    started: usize,
    logs: TempDir,
}

impl Cluster {
    /// Starts a cluster and waits until every worker serves.
    pub async fn start(workers: usize, models: &[String]) -> Self {
        let etcd = EtcdServer::start().await;
        let logs = TempDir::with_prefix("beige-logs-").unwrap();
        let gateway = Self::spawn_gateway(&etcd, &logs, &[]).await;
        let mut cluster = Self { etcd, gateway, workers: vec![], models: models.to_vec(), started: 0, logs };
        for _ in 0..workers {
            cluster.add_worker(&[]).await;
        }
        cluster.wait_for(workers, WorkerState::Serving).await;
        cluster
    }

    /// Another gateway to the same workers.
    pub async fn another_gateway(&self, flags: &[&str]) -> Process {
        Self::spawn_gateway(&self.etcd, &self.logs, flags).await
    }

    async fn spawn_gateway(etcd: &EtcdServer, logs: &TempDir, flags: &[&str]) -> Process {
        let endpoint = etcd.endpoint();
        let common = ["--etcd", &endpoint, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        Process::spawn("beige-gateway", "gateway", &[&common, flags].concat(), logs.path()).await
    }

    /// Starts one more worker; it serves when [`Cluster::wait_for`] says so.
    pub async fn add_worker(&mut self, flags: &[&str]) {
        let (id, endpoint) = (format!("worker-{}", self.started), self.etcd.endpoint());
        self.started += 1;
        let mut arguments = vec!["--id", &id, "--etcd", &endpoint, "--device", "cpu", "--threads", "1"];
        arguments.extend(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        arguments.extend(self.models.iter().flat_map(|model| ["--model", model]));
        arguments.extend(flags);
        self.workers.push(Process::spawn("beige-worker", &id, &arguments, self.logs.path()).await);
    }

    /// A connection to the gateway.
    pub fn channel(&self) -> Channel {
        channel(&self.gateway)
    }

    /// What the gateway knows of its workers.
    pub async fn fleet(&self) -> Vec<Worker> {
        let mut client = ClusterClient::new(self.channel());
        client.list_workers(ListWorkersRequest {}).await.unwrap().into_inner().workers
    }

    /// Waits until the gateway sees `count` workers in `state`.
    pub async fn wait_for(&self, count: usize, state: WorkerState) {
        let seen = async {
            loop {
                let fleet = self.fleet().await;
                if fleet.iter().filter(|worker| worker.state() == state).count() == count {
                    return;
                }
                time::sleep(Duration::from_millis(50)).await;
            }
        };
        let seen = time::timeout(PATIENCE, seen).await;
        assert!(seen.is_ok(), "not {count} workers in {state:?}: {:?}", self.fleet().await);
    }
}

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
