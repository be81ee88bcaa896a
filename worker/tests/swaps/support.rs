//! A cluster without gateways.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cluster::{
    Etcd, Follow, Gateway, GatewayId, Golden, GoldenSource, MembershipOptions, ModelKind, Name, Pace,
    Presence, Settings, Sight, Swap, SwapPlan, SwapSettings, SwapState, Version, View, WorkerId, follow,
    lead,
};
use manifest::{Manifest, ManifestFile};
use model::{Checkpoint, Overrides};
use proto::v1::{CheckpointFile, EmbedRequest};
use proto::worker::v1::worker_client::WorkerClient;
use proto::worker::v1::{
    EmbedShard, EmbedShardResult, HealthReport, HealthRequest, ShardOrigin, TrialRequest, Tried, trial_report,
};
use store::{Publication, Store};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::transport::Channel;

use crate::etcd::EtcdServer;

/// A noisy machine may take this long for anything that ends at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster: an etcd, a store, and a leader.
pub(crate) struct Scene {
    pub(crate) etcd: Etcd,
    pub(crate) store: Store,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) dir: TempDir,
    pub(crate) server: EtcdServer,
    presence: Presence,
    stop: CancellationToken,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Scene {
    pub(crate) async fn set() -> Self {
        let (server, dir) = (EtcdServer::start().await, TempDir::new().unwrap());
        let settings =
            Settings { endpoints: vec![server.endpoint()], cluster: Name::parse("test").unwrap(), tls: None };
        let etcd = Etcd::connect(settings).unwrap();
        let store = Store::open(&url(dir.path()), &store::Settings::default()).unwrap();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (views, view) = watch::channel(Arc::default());
        let sight = watch::channel(Sight::default()).0;
        let options = Follow { pace: Pace::default(), still_answers: |_: &WorkerId| true, sight };
        tasks.spawn(follow(etcd.directory(), views, options, stop.clone()));
        let id = GatewayId::parse("g").unwrap();
        let options = MembershipOptions::default();
        let said = Gateway { address: "g".into(), ..Gateway::default() };
        let presence = Presence::join(etcd.clone(), (id, &said), options, &tasks, stop.clone());
        let settings = SwapSettings { grace: Duration::ZERO };
        tasks.spawn(lead(etcd.clone(), presence.candidate(), view.clone(), settings, stop.clone()));
        Self { etcd, store, view, dir, server, presence, stop }
    }

    /// Says, as a gateway would, that the epoch of `m` was seen and nobody needs anything older.
    pub(crate) fn say(&self, epoch: u64) {
        let epochs = BTreeMap::from([("m".to_owned(), epoch)]);
        self.presence.update(&Gateway { address: "g".into(), epochs, ..Gateway::default() });
    }

    /// Waits until the view is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&View) -> bool) -> Arc<View> {
        let mut view = self.view.clone();
        let seen = time::timeout(PATIENCE, view.wait_for(|view| wanted(view))).await;
        seen.unwrap_or_else(|_| panic!("never: {what}; {:?}", self.view.borrow())).unwrap().clone()
    }

    /// Waits until the swap of `m` is in `state`.
    pub(crate) async fn until_swap(&self, state: SwapState) -> Arc<View> {
        let in_state = |swap: &Swap| swap.state == state;
        self.until(&format!("{state:?}"), |view| view.swaps.get("m").is_some_and(in_state)).await
    }

    pub(crate) async fn swap(&self, digest: &str) -> Swap {
        let plan = SwapPlan { new_space: true, deadline_ms: 50_000, ..SwapPlan::default() };
        self.etcd.request_swap("m", digest, &plan).await.unwrap()
    }

    /// Starts a worker that may take checkpoints from the store, with more `flags`.
    pub(crate) async fn worker(&self, id: &str, flags: &[&str]) -> Worker {
        let (url, cache) = (url(self.dir.path()), self.dir.path().join("cache"));
        let endpoint = self.server.endpoint();
        let own =
            ["--id", id, "--etcd", &endpoint, "--cluster", "test", "--device", "cpu", "--settle", "50ms"];
        let stored = ["--store", &url, "--cache", cache.to_str().unwrap(), "--admin", "127.0.0.1:0"];
        Worker::spawn(&[&own[..], &stored, flags].concat(), self.dir.path().join(format!("{id}.log"))).await
    }

    /// Publishes the checkpoint in `dir` as a gateway does, with the help of `worker`.
    pub(crate) async fn publish(&self, dir: &Path, worker: &Worker) -> Published {
        let files = files(dir);
        let publication = self.upload(dir, &files).await;
        let tried = worker.try_out(request(&files)).await.unwrap();
        let manifest = Manifest::parse(tried.manifest.as_bytes()).unwrap();
        let digest = publication.finish(&manifest).await.unwrap();
        let version = version(manifest, &tried);
        self.etcd.put_version("m", &version, None).await.unwrap();
        Published { digest, version }
    }

    /// Brings the files into the store.
    pub(crate) async fn upload(&self, dir: &Path, files: &[ManifestFile]) -> Publication {
        let mut publication = self.store.publish(files).await.unwrap();
        for wanted in publication.wanted() {
            let file = files.iter().find(|file| file.sha256 == wanted.sha256).unwrap();
            let bytes = fs::read(dir.join(&file.path)).unwrap();
            publication.write(&wanted.sha256, 0, bytes.into()).await.unwrap();
        }
        publication
    }
}

/// A checkpoint that was published.
pub(crate) struct Published {
    pub(crate) digest: String,
    pub(crate) version: Version,
}

fn url(dir: &Path) -> String {
    format!("file://{}", dir.join("store").display())
}

/// The files that make the checkpoint in `dir`.
pub(crate) fn files(dir: &Path) -> Vec<ManifestFile> {
    Checkpoint::open(dir, &Overrides::default()).unwrap().manifest().files.clone()
}

pub(crate) fn request(files: &[ManifestFile]) -> TrialRequest {
    let file = |file: &ManifestFile| CheckpointFile {
        path: file.path.clone(),
        size: file.size,
        sha256: file.sha256.clone(),
    };
    TrialRequest { model: "m".into(), files: files.iter().map(file).collect(), ..TrialRequest::default() }
}

pub(crate) fn version(manifest: Manifest, tried: &Tried) -> Version {
    let checkpoint = tried.checkpoint.as_ref().unwrap();
    Version {
        manifest,
        stored: true,
        kind: ModelKind::Embedder,
        architecture: checkpoint.architecture.clone(),
        index_space: checkpoint.index_space.clone(),
        tokenizer_sha256: tried.tokenizer_sha256.clone(),
        parent: None,
        evaluation: BTreeMap::new(),
        golden: Some(Golden::new(
            tried.golden_texts.clone(),
            &floats(&tried.golden_vectors),
            GoldenSource::Trial,
        )),
        job: None,
        created_unix_ms: 1,
    }
}

pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// A worker process.
pub(crate) struct Worker {
    pub(crate) client: WorkerClient<Channel>,
    admin: String,
    log: std::path::PathBuf,
    _child: Child,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

impl Worker {
    async fn spawn(flags: &[&str], log: std::path::PathBuf) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_beige-worker"));
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = async |prefix: &str| {
            let line = time::timeout(PATIENCE, lines.next_line()).await.ok()?.ok()??;
            Some(line.strip_prefix(prefix)?.to_owned())
        };
        let (Some(address), Some(admin)) = (said("listening on ").await, said("admin on ").await) else {
            panic!("it does not listen: {}", fs::read_to_string(&log).unwrap_or_default());
        };
        let client = Channel::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        Self { client: WorkerClient::new(client), admin, log, _child: child }
    }

    /// Waits until a health report is as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&HealthReport) -> bool) -> HealthReport {
        let mut last = HealthReport::default();
        let look = async {
            loop {
                // A worker that still loads takes connections and answers later.
                let Ok(reports) = self.client.clone().health(HealthRequest {}).await else {
                    time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let mut reports = reports.into_inner();
                while let Ok(Some(report)) = reports.message().await {
                    last = report;
                    if wanted(&last) {
                        return;
                    }
                }
            }
        };
        let seen = time::timeout(PATIENCE, look).await;
        assert!(seen.is_ok(), "never: {what}; {last:?}");
        last
    }

    /// Waits until it is ready with exactly these checkpoints of `m`.
    pub(crate) async fn until_ready(&self, digests: &[&str]) -> HealthReport {
        let mut wanted = digests.to_vec();
        wanted.sort_unstable();
        self.until(&format!("ready with {digests:?}"), |report| ready(report) == wanted).await
    }

    /// Embeds a text by a checkpoint of `m`.
    pub(crate) async fn embed(&self, digest: &str, text: &str) -> Result<EmbedShardResult, Status> {
        let origin = ShardOrigin { digest: digest.into(), model: "m".into(), ..ShardOrigin::default() };
        let request = EmbedRequest { inputs: vec![text.into()], ..EmbedRequest::default() };
        let shard = EmbedShard { origin: Some(origin), request: Some(request) };
        Ok(self.client.clone().embed(shard).await?.into_inner())
    }

    /// Tries a checkpoint out, to the last word.
    pub(crate) async fn try_out(&self, request: TrialRequest) -> Result<Tried, Status> {
        let mut reports = self.client.clone().trial(request).await?.into_inner();
        while let Some(report) = reports.message().await? {
            if let Some(trial_report::Step::Tried(tried)) = report.step {
                return Ok(tried);
            }
        }
        panic!("the trial ended without a word")
    }

    /// A page of its plain port.
    pub(crate) async fn page(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(&self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until a page has a `part`.
    pub(crate) async fn until_page(&self, path: &str, part: &str) {
        self.until_page_is(path, part, |page| page.contains(part)).await;
    }

    /// Waits until a page has it no more.
    pub(crate) async fn until_page_lacks(&self, path: &str, part: &str) {
        self.until_page_is(path, part, |page| !page.contains(part)).await;
    }

    async fn until_page_is(&self, path: &str, what: &str, wanted: impl Fn(&str) -> bool) {
        let look = async {
            while !wanted(&self.page(path).await) {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        let seen = time::timeout(PATIENCE, look).await;
        assert!(seen.is_ok(), "never as wanted, {what:?} at {path}: {}", self.page(path).await);
    }
}

/// Digests of `m` that a report says are ready, in order.
pub(crate) fn ready(report: &HealthReport) -> Vec<&str> {
    let of_m = report.ready.iter().filter(|ready| ready.model == "m");
    let mut digests: Vec<&str> =
        of_m.map(|ready| ready.checkpoint.as_ref().unwrap().digest.as_str()).collect();
    digests.sort_unstable();
    digests
}
