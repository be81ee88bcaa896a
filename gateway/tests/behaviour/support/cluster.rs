//! A cluster with a real etcd and a store: fake workers that are registered, and gateways that follow.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cluster::{
    Etcd, Follow, Freshness, GatewayId, Membership, MembershipOptions, Nack, Name, Pace, Presence, Ready,
    Registration, Settings, Sight, SwapSettings, View, Wish, Worker, desired,
};
use gateway::config::Serving;
use gateway::control::Collection;
use gateway::guard::Guard;
use proto::v1::models_client::ModelsClient;
use store::Store;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use super::etcd::EtcdServer;
use super::gateway::{Gateway, serving};
use super::worker::{Loads, State};
use super::{FakeWorker, digest};

/// Bytes of a part in the store, so that small files have several.
pub(crate) const PART_BYTES: u64 = 1000;

/// How long nothing is retired after a gateway vanished.
const GRACE: Duration = Duration::from_millis(500);

/// A cluster of which a test holds all ends.
pub(crate) struct Cluster {
    pub(crate) server: EtcdServer,
    pub(crate) etcd: Etcd,
    pub(crate) store: Store,
    folder: TempDir,
    ended: CancellationToken,
    workers: usize,
}

impl Cluster {
    /// A cluster of `workers`, each ready with what it has loaded; `mini` means checkpoint `a`.
    pub(crate) async fn start(workers: &[&FakeWorker]) -> Self {
        let server = EtcdServer::start().await;
        let settings =
            Settings { endpoints: vec![server.endpoint()], cluster: Name::parse("test").unwrap(), tls: None };
        let etcd = Etcd::connect(settings).unwrap();
        let folder = TempDir::with_prefix("beige-test-store-").unwrap();
        let url = format!("file://{}", folder.path().display());
        let store = Store::open(&url, &store::Settings::default()).unwrap().with_part_bytes(PART_BYTES);
        let mut cluster = Self { server, etcd, store, folder, ended: CancellationToken::new(), workers: 0 };
        for worker in workers {
            cluster.join(worker).await;
        }
        cluster::claim_alias(&cluster.etcd, "mini", &digest('a')).await.unwrap();
        cluster
    }

    /// Registers a worker that does from now on what the cluster wants of it.
    async fn join(&mut self, worker: &FakeWorker) {
        let options = MembershipOptions { ttl: Duration::from_secs(300) };
        let record = registration(worker);
        let (etcd, stop) = (self.etcd.clone(), self.ended.clone());
        let membership =
            Membership::join(etcd.clone(), record.clone(), options, &TaskTracker::new(), stop.clone());
        membership.registered().wait_for(|registered| *registered).await.unwrap();
        let servant = Servant { state: worker.state(), record, membership, etcd, views: self.follow().0 };
        TaskTracker::new().spawn(async move { stop.run_until_cancelled(servant.serve()).await });
        self.workers += 1;
    }

    /// The cluster as it is, from now on.
    fn follow(&self) -> (watch::Receiver<Arc<View>>, watch::Receiver<Sight>) {
        let (views, viewed) = watch::channel(Arc::<View>::default());
        let (seen, sight) = watch::channel(Sight::default());
        let follow = Follow { pace: Pace::default(), still_answers: |_: &_| true, sight: seen };
        let following = cluster::follow(self.etcd.directory(), views, follow, self.ended.clone());
        TaskTracker::new().spawn(following);
        (viewed, sight)
    }

    /// A gateway that follows the cluster and has the store.
    pub(crate) async fn gateway(&self) -> Gateway {
        self.gateway_with(Some(self.store.clone())).await
    }

    pub(crate) async fn gateway_with(&self, store: Option<Store>) -> Gateway {
        let (views, mut sight) = self.follow();
        sight.wait_for(|sight| sight.freshness == Freshness::Current).await.unwrap();
        // A test's own views are those of a gateway without etcd.
        let (unused, _) = watch::channel(Arc::default());
        let control = (self.etcd.clone(), store);
        let collection = Collection { grace: Duration::ZERO, ..Collection::default() };
        let serving = Serving { collection, ..serving() };
        let gateway = Gateway::run((unused, views.clone()), control, serving, Guard::default()).await;
        self.register(&gateway, views).await;
        gateway.until(|fleet| fleet.serving().count() == self.workers).await;
        gateway
    }

    /// The name under which a gateway is registered.
    pub(crate) fn id(gateway: &Gateway) -> GatewayId {
        GatewayId::parse(gateway.address.to_string()).unwrap()
    }

    /// As the process around a gateway does.
    async fn register(&self, gateway: &Gateway, views: watch::Receiver<Arc<View>>) {
        let said = gateway.record();
        let id = Self::id(gateway);
        let own = (id, &said.borrow().clone());
        let options = MembershipOptions { ttl: Duration::from_secs(300) };
        let presence =
            Presence::join(self.etcd.clone(), own, options, &TaskTracker::new(), self.ended.clone());
        let settings = SwapSettings { grace: GRACE };
        let leading =
            cluster::lead(self.etcd.clone(), presence.candidate(), views, settings, self.ended.clone());
        TaskTracker::new().spawn(leading);
        presence.registered().wait_for(|registered| *registered).await.unwrap();
        TaskTracker::new().spawn(gateway::presence::register(presence, said));
    }

    /// Where the store is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

/// Acts for a fake worker towards etcd, as a worker does.
struct Servant {
    state: Arc<State>,
    record: Registration,
    membership: Membership,
    etcd: Etcd,
    views: watch::Receiver<Arc<View>>,
}

impl Servant {
    async fn serve(mut self) {
        loop {
            let view = self.views.borrow_and_update().clone();
            let before = self.state.mood().loaded;
            let after = self.obey(&view, before.clone()).await;
            if after != before {
                // Calls hear of it before the cluster does, and stop before it is gone.
                self.state.load(after.clone());
                self.record.ready = ready(&self.record.worker, after);
                self.membership.update(self.record.clone());
            }
            let _ = time::timeout(Duration::from_millis(50), self.views.changed()).await;
        }
    }

    /// What is loaded after the wishes of `view` were met.
    async fn obey(&self, view: &View, mut loaded: Vec<(String, String)>) -> Vec<(String, String)> {
        let worker = &self.record.worker;
        for (model, desired) in desired(view, worker) {
            loaded.retain(|(name, digest)| *name != model || desired.holds(digest));
            for Wish { digest, swap_id } in desired.load {
                let entry = (model.clone(), digest);
                match self.state.mood().loads {
                    _ if loaded.contains(&entry) => {}
                    Loads::Willingly => loaded.push(entry),
                    Loads::Later => {}
                    Loads::Never(reason) => {
                        let (detail, boot_id) = ("it is a fake".to_owned(), worker.boot_id.clone());
                        let nack = Nack { reason, detail, swap_id, boot_id, made_room: false };
                        self.etcd.put_nack((&entry.0, &entry.1), &worker.id, &nack).await.unwrap();
                    }
                }
            }
        }
        loaded
    }
}

/// What a fake says of itself in etcd.
fn registration(worker: &FakeWorker) -> Registration {
    let record = worker.record();
    let ready = ready(&record, worker.state().mood().loaded);
    Registration { worker: record, ready }
}

fn ready(worker: &Worker, loaded: Vec<(String, String)>) -> Vec<(Name, Name, Ready)> {
    let ready = |(model, digest): (String, String)| {
        let ready = Ready { boot_id: worker.boot_id.clone(), load_ms: 1, golden_cosine: None };
        (Name::parse(model).unwrap(), Name::parse(digest).unwrap(), ready)
    };
    loaded.into_iter().map(ready).collect()
}

impl Gateway {
    pub(crate) async fn models(&self) -> ModelsClient<Channel> {
        ModelsClient::new(self.connect().await)
    }
}
