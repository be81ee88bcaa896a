//! An etcd, gateways and workers, each a process of its own.

use std::path::PathBuf;
use std::time::Duration;

use ::cluster::{Directory as _, Etcd, Name, Settings, View};
use proto::v1::cluster_client::ClusterClient;
use proto::v1::models_client::ModelsClient;
use proto::v1::{ListModelsRequest, ListWorkersRequest, Worker, WorkerState};
use tempfile::TempDir;
use tokio::time::{self, Instant};
use tonic::transport::Channel;

use crate::history::Digest;
use crate::{EtcdServer, PATIENCE, Process, Proxy, channel};

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Gateways.
    pub gateways: usize,
    /// Workers.
    pub workers: usize,
    /// What each worker loads: `[NAME=]DIR`.
    pub models: Vec<String>,
    /// Settings of every gateway.
    pub gateway_flags: Vec<String>,
    /// Settings of every worker.
    pub worker_flags: Vec<String>,
    /// Whether there is a store, and a cache of each worker's own where its settings name none.
    pub store: bool,
    /// Where the store is, and what the environment of who uses it says; none: in a folder.
    pub bucket: Option<(String, Vec<(String, String)>)>,
    /// Who finds etcd behind [`Cluster::link`].
    pub linked: Linked,
}

/// Whose way to etcd leads through [`Cluster::link`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Linked {
    /// There is no link.
    #[default]
    Nobody,
    /// Workers still tell gateways what they have learnt of etcd.
    Gateways,
    /// Gateways and workers.
    All,
}

impl Default for Plan {
    /// One gateway, and nothing else.
    fn default() -> Self {
        Self {
            gateways: 1,
            workers: 0,
            models: Vec::new(),
            gateway_flags: Vec::new(),
            worker_flags: Vec::new(),
            store: false,
            bucket: None,
            linked: Linked::Nobody,
        }
    }
}

/// One etcd, some gateways, some workers.
#[derive(Debug)]
pub struct Cluster {
    /// Ends last.
    pub etcd: EtcdServer,
    /// Where calls go; in the order in which they were started.
    pub gateways: Vec<Process>,
    /// In the order in which they were started.
    pub workers: Vec<Process>,
    /// What the way to etcd leads through for those who were planned so.
    pub link: Option<Proxy>,
    plan: Plan,
    started: usize,
    /// Workers that were ever started: of two with one name neither would keep its place.
    hired: usize,
    dir: TempDir,
}

impl Cluster {
    /// Starts a cluster of one gateway and waits until every worker serves.
    pub async fn start(workers: usize, models: &[String]) -> Self {
        Self::of(Plan { workers, models: models.to_vec(), ..Plan::default() }).await
    }

    /// Starts a cluster and waits until every worker serves.
    pub async fn of(plan: Plan) -> Self {
        let (etcd, dir) = (EtcdServer::start().await, TempDir::with_prefix("beige-cluster-").unwrap());
        let (gateways, workers) = (plan.gateways, plan.workers);
        let link = match plan.linked {
            Linked::Nobody => None,
            Linked::Gateways | Linked::All => Some(Proxy::start(etcd.endpoint()).await),
        };
        let (started, hired) = (0, 0);
        let mut cluster = Self { etcd, gateways: vec![], workers: vec![], link, plan, started, hired, dir };
        for _ in 0..gateways {
            let gateway = cluster.another_gateway(&[]).await;
            cluster.gateways.push(gateway);
        }
        for _ in 0..workers {
            cluster.add_worker(&[]).await;
        }
        cluster.wait_for(workers, WorkerState::Serving).await;
        cluster.named().await;
        cluster
    }

    /// Another gateway to the same workers.
    pub async fn another_gateway(&mut self, flags: &[&str]) -> Process {
        let etcd = self.etcd_for(true);
        self.gateway_through(&etcd, flags).await
    }

    /// Another gateway, that finds etcd at `etcd`.
    pub async fn gateway_through(&mut self, etcd: &str, flags: &[&str]) -> Process {
        let name = format!("gateway-{}", self.next());
        let mut arguments =
            vec!["--id", &name, "--etcd", etcd, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let store = self.store_url();
        if self.plan.store {
            arguments.extend(["--store", &store]);
        }
        arguments.extend(self.plan.gateway_flags.iter().map(String::as_str));
        arguments.extend(flags);
        let settings = (&arguments[..], self.environment());
        Process::spawn_with("beige-gateway", &name, settings, self.dir.path()).await
    }

    /// Starts one more worker; it serves when [`Cluster::wait_for`] says so.
    pub async fn add_worker(&mut self, flags: &[&str]) {
        let etcd = self.etcd_for(self.plan.linked == Linked::All);
        let models = self.plan.models.clone();
        self.worker_through(&etcd, &models, flags).await;
    }

    /// Starts one more worker, that finds etcd at `etcd` and has the directories of `models`.
    pub async fn worker_through(&mut self, etcd: &str, models: &[String], flags: &[&str]) {
        let id = format!("worker-{}", self.hired);
        self.hired += 1;
        let mut arguments = vec!["--id", &id, "--etcd", etcd, "--device", "cpu", "--threads", "1"];
        // As golden vectors were made: a processor may be quicker in bf16.
        arguments.extend(["--dtype", "f32", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        arguments.extend(models.iter().flat_map(|model| ["--model", model]));
        let (store, cache) = (self.store_url(), self.dir.path().join(format!("cache-{id}")));
        if self.plan.store {
            arguments.extend(["--store", &store]);
            let names_one = self.plan.worker_flags.iter().map(String::as_str).chain(flags.iter().copied());
            if !names_one.into_iter().any(|flag| flag == "--cache") {
                arguments.extend(["--cache", cache.to_str().unwrap()]);
            }
        }
        arguments.extend(self.plan.worker_flags.iter().map(String::as_str));
        arguments.extend(flags);
        let settings = (&arguments[..], self.environment());
        self.workers.push(Process::spawn_with("beige-worker", &id, settings, self.dir.path()).await);
    }

    /// Where a process finds etcd that `is_linked`, if there is a link.
    fn etcd_for(&self, is_linked: bool) -> String {
        let link = self.link.as_ref().filter(|_| is_linked);
        link.map_or_else(|| self.etcd.endpoint(), Proxy::endpoint)
    }

    fn next(&mut self) -> usize {
        self.started += 1;
        self.started - 1
    }

    /// The folder of the store, where it has one of its own.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn store_url(&self) -> String {
        let folder = || format!("file://{}", self.store().display());
        self.plan.bucket.as_ref().map_or_else(folder, |(url, _)| url.clone())
    }

    fn environment(&self) -> &[(String, String)] {
        self.plan.bucket.as_ref().map_or(&[], |(_, environment)| environment)
    }

    /// A connection to the first gateway.
    pub fn channel(&self) -> Channel {
        channel(&self.gateways[0])
    }

    /// What etcd says, read there and then. An etcd that is slow to answer is asked again.
    pub async fn view(&self) -> View {
        let endpoints = vec![self.etcd.endpoint()];
        let settings = Settings { endpoints, cluster: Name::parse("default").unwrap(), tls: None };
        let (etcd, begun) = (Etcd::connect(settings).unwrap(), Instant::now());
        loop {
            match etcd.directory().list().await {
                Ok(view) => return view,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        }
    }

    /// Waits until `wanted` holds of what etcd says.
    #[track_caller]
    pub fn until(&self, wanted: impl Fn(&View) -> bool) -> impl Future<Output = View> {
        let asked = std::panic::Location::caller();
        async move {
            let begun = Instant::now();
            loop {
                let view = self.view().await;
                if wanted(&view) {
                    return view;
                }
                assert!(begun.elapsed() < PATIENCE, "{asked}: etcd says {view:#?}");
                time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// The place of the gateway that leads, once one does.
    pub async fn leader(&self) -> usize {
        let place = |view: &View| {
            let leader = view.leader.as_ref()?.gateway.as_str();
            self.gateways.iter().position(|gateway| gateway.name == leader)
        };
        let view = self.until(|view| place(view).is_some()).await;
        place(&view).expect("as it was found")
    }

    /// What the first gateway knows of its workers.
    pub async fn fleet(&self) -> Vec<Worker> {
        fleet(&self.gateways[0]).await
    }

    /// Waits until every gateway sees `count` workers in `state`.
    pub async fn wait_for(&self, count: usize, state: WorkerState) {
        self.wait_for_workers(count, |worker| worker.state() == state).await;
    }

    /// Waits until every gateway sees `count` workers that serve, and have the checkpoint `digest`.
    pub async fn wait_for_checkpoint(&self, count: usize, digest: &Digest) {
        let has = |worker: &Worker| worker.models.iter().any(|model| model.digest == digest.as_str());
        self.wait_for_workers(count, |worker| worker.state() == WorkerState::Serving && has(worker)).await;
    }

    async fn wait_for_workers(&self, count: usize, wanted: impl Fn(&Worker) -> bool) {
        for gateway in &self.gateways {
            let seen = async {
                while fleet(gateway).await.iter().filter(|worker| wanted(worker)).count() != count {
                    time::sleep(Duration::from_millis(50)).await;
                }
            };
            let seen = time::timeout(PATIENCE, seen).await;
            assert!(seen.is_ok(), "{}: not {count} such workers: {:?}", gateway.name, fleet(gateway).await);
        }
    }

    /// Waits until every gateway knows what the names mean that workers brought along: they are claimed once workers are
    /// registered.
    async fn named(&self) {
        let names: Vec<&str> = self.plan.models.iter().map(|model| name(model)).collect();
        for gateway in self.gateways.iter().filter(|_| self.plan.workers > 0) {
            let mut client = ModelsClient::new(channel(gateway));
            let begun = Instant::now();
            loop {
                let known = client.list(ListModelsRequest {}).await.map(|known| known.into_inner().models);
                let is_listed = |name: &&str| known.iter().flatten().any(|model| model.name == **name);
                if names.iter().all(is_listed) {
                    break;
                }
                assert!(begun.elapsed() < PATIENCE, "{}: {known:?}, and not {names:?}", gateway.name);
                time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// What a gateway knows of its workers.
async fn fleet(gateway: &Process) -> Vec<Worker> {
    let mut client = ClusterClient::new(channel(gateway));
    client.list_workers(ListWorkersRequest {}).await.unwrap().into_inner().workers
}

/// The name of `[NAME=]DIR`.
fn name(model: &str) -> &str {
    let of_directory = || model.rsplit('/').next().expect("there is a first part");
    model.split_once('=').map_or_else(of_directory, |(name, _)| name)
}
