//! A gateway whose cluster is what a test says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Alias, Etcd, Freshness, Name, Settings, Sight, View};
use gateway::config::Serving;
use gateway::fleet::Fleet;
use gateway::guard::Guard;
use gateway::pool::Sources;
use gateway::{Ends, Exit};
use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::reranking_client::RerankingClient;
use store::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::{Channel, Endpoint};

use super::{FakeWorker, digest};

/// A gateway that runs in the test's process.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
    pub(crate) views: watch::Sender<Arc<View>>,
    pub(crate) sight: watch::Sender<Sight>,
    fleet: watch::Receiver<Arc<Fleet>>,
    record: watch::Receiver<cluster::Gateway>,
    pub(crate) stop: CancellationToken,
    served: JoinHandle<Result<(), Exit>>,
}

/// A noisy machine may take this long for anything that ends at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Limits for tests: no long waits at the end, unless calls have not ended.
pub(crate) fn serving() -> Serving {
    Serving { settle: Duration::from_millis(100), grace: PATIENCE, ..Serving::default() }
}

/// A view of `workers` in which `mini` means the checkpoint of this digit.
pub(crate) fn view(workers: &[&FakeWorker], mini: char, epoch: u64) -> View {
    let worker = |worker: &&FakeWorker| (worker.id(), worker.record());
    let alias = Alias::of(digest(mini), epoch);
    View {
        workers: workers.iter().map(worker).collect(),
        aliases: [("mini".to_owned(), alias)].into(),
        ..View::default()
    }
}

/// An etcd that does not answer.
fn nowhere() -> Etcd {
    let settings = Settings {
        endpoints: vec!["127.0.0.1:1".into()],
        cluster: Name::parse("nowhere").unwrap(),
        tls: None,
    };
    Etcd::connect(settings).unwrap()
}

impl Gateway {
    /// A gateway with `workers`, all of them reporting; `mini` means checkpoint `a`.
    pub(crate) async fn start(workers: &[&FakeWorker]) -> Self {
        Self::start_with(workers, serving()).await
    }

    pub(crate) async fn start_with(workers: &[&FakeWorker], serving: Serving) -> Self {
        let gateway = Self::begin(view(workers, 'a', 1), serving).await;
        gateway.until(|fleet| fleet.ready(&digest('a').as_str().into()).len() == workers.len()).await;
        gateway
    }

    /// A gateway that has seen `view`, and perhaps no worker yet.
    pub(crate) async fn begin(view: View, serving: Serving) -> Self {
        Self::guarded(view, serving, Guard::default()).await
    }

    /// The same, and not everybody is let in.
    pub(crate) async fn guarded(view: View, serving: Serving, guard: Guard) -> Self {
        let (views, viewed) = watch::channel(Arc::new(view));
        let control = (nowhere(), None);
        Self::run((views, viewed), control, serving, guard).await
    }

    pub(crate) async fn run(
        (views, viewed): (watch::Sender<Arc<View>>, watch::Receiver<Arc<View>>),
        (etcd, store): (Etcd, Option<Store>),
        serving: Serving,
        guard: Guard,
    ) -> Self {
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let operators = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, admin) = (public.local_addr().unwrap(), operators.local_addr().unwrap());
        let (sight, seen) = watch::channel(Sight { freshness: Freshness::Current, refusals: 0 });
        let (picture, fleet) = watch::channel(Arc::default());
        let sources = Sources { views: viewed, sight: seen };
        let (record, told) = watch::channel(cluster::Gateway::default());
        let ends = Ends { public, admin: operators, sources, fleet: picture, record, guard, etcd, store };
        let stop = CancellationToken::new();
        let served = TaskTracker::new().spawn(gateway::run(ends, serving, stop.clone()));
        Self { address, admin, views, sight, fleet, record: told, stop, served }
    }

    /// Waits until the gateway sees what it should.
    pub(crate) async fn until(&self, condition: impl Fn(&Fleet) -> bool) {
        let mut fleet = self.fleet.clone();
        let seen = fleet.wait_for(|fleet| condition(fleet));
        time::timeout(PATIENCE, seen).await.expect("it never saw that").unwrap();
    }

    /// What the gateway says of itself.
    pub(crate) fn record(&self) -> watch::Receiver<cluster::Gateway> {
        self.record.clone()
    }

    /// Waits until the gateway says of itself what it should.
    pub(crate) async fn until_says(&self, condition: impl Fn(&cluster::Gateway) -> bool) -> cluster::Gateway {
        let mut record = self.record.clone();
        let said = record.wait_for(|record| condition(record));
        time::timeout(PATIENCE, said).await.expect("it never said that").unwrap().clone()
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn embeddings(&self) -> EmbeddingsClient<Channel> {
        let client = EmbeddingsClient::new(self.connect().await);
        client.max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX)
    }

    pub(crate) async fn reranking(&self) -> RerankingClient<Channel> {
        RerankingClient::new(self.connect().await)
    }

    /// What the admin port says at `path`, headers and all.
    pub(crate) async fn ask(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The value of one metric, with its labels as they are shown.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let shown = self.ask("/metrics").await;
        let line = shown.lines().find(|line| line.starts_with(name))?;
        line.rsplit_once(' ')?.1.parse().ok()
    }

    /// Waits until a metric is as it should be.
    pub(crate) async fn until_metric(&self, name: &str, wanted: f64) {
        let mut found = None;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            found = self.metric(name).await;
            if found.is_some_and(|found| (found - wanted).abs() < 1e-9) {
                return;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} is {found:?}, not {wanted}");
    }

    /// Ends it, and answers how it ended.
    pub(crate) async fn end(self) -> Result<(), Exit> {
        self.stop.cancel();
        self.served.await.unwrap()
    }
}
