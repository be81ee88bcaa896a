//! The crate against a real etcd: each test starts its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/etcd.rs"]
mod server;

mod aliases;
mod compaction;
mod entries;
mod following;
mod jobs;
mod leader_changes;
mod lost_history;
mod lost_leases;
mod members_down;
mod outages;
mod registration;
mod secured;
mod silence;
mod slow;
mod swaps;
mod versions;

use std::sync::Arc;
use std::time::Duration;

use cluster::{
    Etcd, Follow, Membership, MembershipOptions, Name, Pace, Ready, Registration, Settings, Sight, View,
    Worker, WorkerId, follow,
};
use proxy::{Fault, Proxy};
use server::EtcdServer;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A noisy machine may take this long for anything that ends at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lease where leases are the subject: short, and yet no pause of a noisy machine should outlast it.
const TTL: Duration = Duration::from_secs(3);

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

fn id(text: &str) -> WorkerId {
    WorkerId::parse(text).unwrap()
}

fn connect_to(endpoints: Vec<String>) -> Etcd {
    Etcd::connect(Settings { endpoints, cluster: name("test"), tls: None }).unwrap()
}

fn connect(server: &EtcdServer) -> Etcd {
    connect_to(vec![server.endpoint()])
}

/// For what only a test does: revoking others' leases, writing nonsense, compacting.
async fn client(server: &EtcdServer) -> etcd_client::Client {
    etcd_client::Client::connect([server.endpoint()], None).await.unwrap()
}

/// A worker that is ready with `m` at each of `digests`.
fn registration(worker: &str, digests: &[&str]) -> Registration {
    let boot_id = format!("boot of {worker}");
    let ready = Ready { boot_id: boot_id.clone(), load_ms: 3, golden_cosine: Some(0.999_9) };
    Registration {
        worker: Worker {
            id: id(worker),
            address: "127.0.0.1:7001".into(),
            boot_id,
            device: "cpu".into(),
            memory: 1 << 30,
            draining: false,
            serves: None,
        },
        ready: digests.iter().map(|digest| (name("m"), name(digest), ready.clone())).collect(),
    }
}

/// Joins with a lease that no noise can cost it.
fn join(etcd: &Etcd, registration: Registration) -> Membership {
    join_for(etcd, registration, Duration::from_secs(300))
}

fn join_for(etcd: &Etcd, registration: Registration, ttl: Duration) -> Membership {
    let options = MembershipOptions { ttl };
    Membership::join(etcd.clone(), registration, options, &TaskTracker::new(), CancellationToken::new())
}

/// Waits until `condition` holds of what `watched` shows.
#[track_caller]
fn until<T: Clone>(
    mut watched: watch::Receiver<T>,
    condition: impl Fn(&T) -> bool,
) -> impl Future<Output = T> {
    let asked = std::panic::Location::caller();
    async move {
        match time::timeout(PATIENCE, watched.wait_for(|value| condition(value))).await {
            Ok(Ok(value)) => value.clone(),
            Ok(Err(closed)) => panic!("{asked}: {closed}"),
            Err(elapsed) => panic!("{asked}: {elapsed}"),
        }
    }
}

/// Somebody who follows the cluster, until dropped.
struct Follower {
    views: watch::Receiver<Arc<View>>,
    sight: watch::Receiver<Sight>,
    _stop: tokio_util::sync::DropGuard,
}

/// Follows with a quick re-list; `answering` is what it knows of each worker without etcd.
fn watch_over(etcd: &Etcd, answering: impl Fn(&WorkerId) -> bool + Send + Sync + 'static) -> Follower {
    let (tell_views, views) = watch::channel(Arc::default());
    let (tell_sight, sight) = watch::channel(Sight::default());
    let pace = Pace { relist: Duration::from_secs(2), ..Pace::default() };
    let options = Follow { pace, still_answers: answering, sight: tell_sight };
    let stop = CancellationToken::new();
    TaskTracker::new().spawn(follow(etcd.directory(), tell_views, options, stop.clone()));
    Follower { views, sight, _stop: stop.drop_guard() }
}

impl Follower {
    /// Waits for a view with exactly these workers.
    #[track_caller]
    fn sees(&self, workers: &[&str]) -> impl Future<Output = Arc<View>> + use<> {
        let workers: Vec<WorkerId> = workers.iter().map(|text| id(text)).collect();
        until(self.views.clone(), move |view| view.workers.keys().eq(workers.iter()))
    }
}

/// Notes how few workers any view had, until `stop`.
fn note_fewest(views: watch::Receiver<Arc<View>>, stop: &CancellationToken) -> watch::Receiver<usize> {
    note_least(views, stop, |view| view.workers.len())
}

/// Notes the least that `measure` was of any view, until `stop`.
fn note_least<N: Copy + Ord + Send + Sync + 'static>(
    mut views: watch::Receiver<Arc<View>>,
    stop: &CancellationToken,
    measure: impl Fn(&View) -> N + Send + 'static,
) -> watch::Receiver<N> {
    let (tell, least) = watch::channel(measure(&views.borrow()));
    let stop = stop.clone();
    TaskTracker::new().spawn(stop.run_until_cancelled_owned(async move {
        while views.changed().await.is_ok() {
            let now = measure(&views.borrow_and_update());
            tell.send_modify(|least| *least = now.min(*least));
        }
    }));
    least
}

/// Which lease `key` is under.
async fn lease_of(client: &mut etcd_client::Client, key: &str) -> i64 {
    let found = client.get(key, None).await.unwrap();
    found.kvs().first().unwrap_or_else(|| panic!("no {key}")).lease()
}

/// Notes whether `flag` was ever false, until `stop`.
fn note_falls(mut flag: watch::Receiver<bool>, stop: &CancellationToken) -> watch::Receiver<bool> {
    let (tell, fell) = watch::channel(!*flag.borrow());
    let stop = stop.clone();
    TaskTracker::new().spawn(stop.run_until_cancelled_owned(async move {
        while flag.changed().await.is_ok() {
            let fallen = !*flag.borrow_and_update();
            tell.send_modify(|fell| *fell |= fallen);
        }
    }));
    fell
}
