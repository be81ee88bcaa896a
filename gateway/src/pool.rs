//! Owns the links to all workers: one task that hears of workers from the cluster and from themselves.
//!
//! The directory says where workers are and what names mean; each worker's own health stream says whether it lives
//! and what it has. So a worker whose registration vanished stays in use while it reports, and one that is still
//! registered gets nothing while it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::{Freshness, Sight, View};
use proto::worker::v1::{AliasSeen, HealthReport};
use tls::Dialer;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::departures::Departures;
use crate::fleet::{Fleet, Member, Standing};
use crate::link::{self, Link, Seat, Sign};
use crate::names::Names;

/// Signs that may wait for the pool: some for each of many workers.
const SIGNS: usize = 256;

/// What the pool is told of the cluster.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Who is registered, and what names mean.
    pub views: watch::Receiver<Arc<View>>,
    /// How well that is known.
    pub sight: watch::Receiver<Sight>,
}

/// Where calls tell the pool what answers said of a name.
#[derive(Clone, Debug)]
pub struct Gossip(mpsc::Sender<AliasSeen>);

impl Gossip {
    /// A way to the pool, and its other end for [`run`].
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<AliasSeen>) {
        let (told, heard) = mpsc::channel(SIGNS);
        (Self(told), heard)
    }

    /// Tells the pool, if it has time: where it has none, the next report will.
    pub fn tell(&self, seen: AliasSeen) {
        // A pool that is gone needs no news.
        let _ = self.0.try_send(seen);
    }
}

/// Keeps `fleet` current until `stop`. Workers are reached through `dialer`.
pub async fn run(
    mut sources: Sources,
    mut gossip: mpsc::Receiver<AliasSeen>,
    fleet: watch::Sender<Arc<Fleet>>,
    dialer: Dialer,
    stop: CancellationToken,
) {
    let (signs, mut heard) = mpsc::channel(SIGNS);
    let mut pool = Pool::new(dialer, signs);
    let keeping = async {
        loop {
            if sources.sight.borrow_and_update().freshness != Freshness::Unseen {
                pool.read(&sources.views.borrow_and_update().clone());
            }
            fleet.send_replace(Arc::new(pool.picture()));
            // All arms are cancel safe. A source that is gone has said its last.
            let mut changed = false;
            while !changed {
                changed = tokio::select! {
                    Ok(()) = sources.views.changed() => true,
                    Ok(()) = sources.sight.changed() => true,
                    Some((seat, sign)) = heard.recv() => pool.notice(&seat, sign),
                    Some(seen) = gossip.recv() => pool.names.hear(&seen),
                };
            }
        }
    };
    stop.run_until_cancelled(keeping).await;
    pool.close().await;
}

struct Pool {
    tenants: BTreeMap<Seat, Tenant>,
    /// The last view, once there was one.
    view: Option<Arc<View>>,
    names: Names,
    /// Makes connections to them.
    dialer: Dialer,
    signs: mpsc::Sender<(Seat, Sign)>,
    tasks: TaskTracker,
}

struct Tenant {
    link: Arc<Link>,
    standing: Standing,
    /// Whether the directory has it.
    listed: bool,
    /// Ends the task that follows its health.
    stop: CancellationToken,
}

impl Pool {
    fn new(dialer: Dialer, signs: mpsc::Sender<(Seat, Sign)>) -> Self {
        let (tenants, names) = (BTreeMap::new(), Names::default());
        Self { tenants, view: None, names, dialer, signs, tasks: TaskTracker::new() }
    }

    /// Takes in a view: newcomers are followed from now on, and those that left only lose their listing.
    fn read(&mut self, view: &Arc<View>) {
        if self.view.as_ref().is_some_and(|old| Arc::ptr_eq(old, view)) {
            return;
        }
        self.view = Some(Arc::clone(view));
        self.names.read(&view.aliases);
        for tenant in self.tenants.values_mut() {
            tenant.listed = false;
        }
        for worker in view.workers.values() {
            let seat = Seat { id: worker.id.clone(), address: worker.address.clone() };
            match self.tenants.get_mut(&seat) {
                Some(tenant) => tenant.listed = true,
                None => self.move_in(seat),
            }
        }
        self.move_out();
    }

    fn move_in(&mut self, seat: Seat) {
        let link = match Link::new(seat.clone(), &self.dialer) {
            Ok(link) => Arc::new(link),
            Err(error) => {
                tracing::warn!(worker = %seat, %error, "the directory has an address that is none");
                return;
            }
        };
        let stop = CancellationToken::new();
        self.tasks.spawn(link::follow(Arc::clone(&link), self.signs.clone(), stop.clone()));
        let tenant = Tenant { link, standing: Standing::Unreachable, listed: true, stop };
        self.tenants.insert(seat, tenant);
    }

    /// Forgets those that neither the directory knows nor themselves say a word.
    fn move_out(&mut self) {
        self.tenants.retain(|seat, tenant| {
            let stays = tenant.listed || tenant.standing != Standing::Unreachable;
            if !stays {
                tracing::info!(worker = %seat, "a worker left");
                tenant.link.give_up();
                tenant.stop.cancel();
            }
            stays
        });
    }

    /// Takes in a sign of a worker; answers whether calls must know.
    fn notice(&mut self, seat: &Seat, sign: Sign) -> bool {
        let Some(tenant) = self.tenants.get_mut(seat) else { return false };
        let changed = match sign {
            Sign::Report(report) => {
                // Whoever else was given its port may be of another cluster.
                let own = report.worker_id == seat.id.as_str();
                let moved = own && self.names.hear_all(&report.aliases);
                tenant.hear(Arc::from(report)) || moved
            }
            Sign::Silent | Sign::Broken => tenant.stand(Standing::Unreachable),
            Sign::Lost => {
                tenant.link.give_up();
                tenant.stand(Standing::Unreachable)
            }
        };
        if changed {
            self.move_out();
        }
        changed
    }

    fn picture(&self) -> Fleet {
        let member = |tenant: &Tenant| Member { link: Arc::clone(&tenant.link), standing: tenant.standing };
        let names = self.view.is_some().then(|| self.names.all());
        let gateways = self.view.as_ref().map_or(0, |view| view.gateways.len());
        let departures = self.view.as_deref().map(Departures::of).unwrap_or_default();
        let members = self.tenants.values().map(member).collect();
        Fleet::new(names, members).among(gateways).without(departures)
    }

    async fn close(self) {
        for tenant in self.tenants.values() {
            tenant.stop.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Tenant {
    fn hear(&mut self, report: Arc<HealthReport>) -> bool {
        let seat = &self.link.seat;
        if report.worker_id != seat.id.as_str() {
            // Its port was given to another worker, which has a seat of its own.
            tracing::debug!(worker = %seat, found = report.worker_id, "another worker answers there");
            return self.stand(Standing::Unreachable);
        }
        let last = self.link.latest();
        if last.as_ref().is_some_and(|last| last.boot_id != report.boot_id) {
            // The process that had it is no more, even if its connection does not know that.
            tracing::info!(worker = %seat, "a worker was started anew");
            self.link.give_up();
            self.link.record.forget();
        }
        let same_models = last.is_some_and(|last| last.ready == report.ready);
        let standing = if report.draining { Standing::Draining } else { Standing::Serving };
        self.link.heard(report);
        self.stand(standing) || !same_models
    }

    fn stand(&mut self, standing: Standing) -> bool {
        let changed = self.standing != standing;
        if changed {
            tracing::info!(worker = %self.link.seat, ?standing, "a worker's standing changed");
        }
        self.standing = standing;
        changed
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Worker, WorkerId};

    use super::*;
    use crate::checkpoint::Digest;
    use crate::fleet::tests::ready;

    fn pool() -> Pool {
        Pool::new(Dialer::default(), mpsc::channel(1).0)
    }

    fn seat(id: &str, address: &str) -> Seat {
        Seat { id: WorkerId::parse(id).unwrap(), address: address.into() }
    }

    fn view(workers: &[(&str, &str)]) -> Arc<View> {
        let worker = |&(id, address): &(&str, &str)| Worker {
            id: WorkerId::parse(id).unwrap(),
            address: address.into(),
            boot_id: "boot".into(),
            device: "cpu".into(),
            memory: 0,
            draining: false,
            serves: None,
        };
        let workers = workers.iter().map(|entry| (WorkerId::parse(entry.0).unwrap(), worker(entry)));
        Arc::new(View { workers: workers.collect(), ..View::default() })
    }

    fn report(id: &str) -> HealthReport {
        HealthReport { worker_id: id.into(), ready: vec![ready("m", "d")], ..HealthReport::default() }
    }

    fn reports(pool: &mut Pool, seat: &Seat, report: HealthReport) -> bool {
        pool.notice(seat, Sign::Report(Box::new(report)))
    }

    fn ready_workers(pool: &Pool) -> Vec<String> {
        let fleet = pool.picture();
        fleet.ready(&Digest::from("d")).iter().map(|link| link.seat.to_string()).collect()
    }

    #[tokio::test]
    async fn a_worker_is_ready_by_its_own_word_not_the_directorys() {
        let (mut pool, w1) = (pool(), seat("w1", "a:1"));
        pool.read(&view(&[("w1", "a:1")]));
        assert_eq!(ready_workers(&pool), Vec::<String>::new());
        assert!(reports(&mut pool, &w1, report("w1")));
        assert_eq!(ready_workers(&pool), ["w1 at a:1"]);
        assert!(!reports(&mut pool, &w1, report("w1")), "no news");
        assert!(reports(&mut pool, &w1, HealthReport { draining: true, ..report("w1") }));
        assert_eq!(ready_workers(&pool), Vec::<String>::new());
        pool.close().await;
    }

    #[tokio::test]
    async fn a_worker_whose_registration_vanished_stays_while_it_reports() {
        let (mut pool, w1) = (pool(), seat("w1", "a:1"));
        pool.read(&view(&[("w1", "a:1")]));
        reports(&mut pool, &w1, report("w1"));
        pool.read(&view(&[]));
        assert_eq!(ready_workers(&pool), ["w1 at a:1"]);
        assert!(pool.notice(&w1, Sign::Broken));
        assert!(pool.tenants.is_empty());
        assert!(!reports(&mut pool, &w1, report("w1")), "who is forgotten is not heard");
        pool.close().await;
    }

    #[tokio::test]
    async fn a_registered_worker_that_is_silent_gets_nothing_and_is_waited_for() {
        let (mut pool, w1) = (pool(), seat("w1", "a:1"));
        pool.read(&view(&[("w1", "a:1")]));
        reports(&mut pool, &w1, report("w1"));
        for sign in [Sign::Silent, Sign::Lost, Sign::Broken] {
            pool.notice(&w1, sign);
            assert_eq!(ready_workers(&pool), Vec::<String>::new());
        }
        assert!(reports(&mut pool, &w1, report("w1")));
        assert_eq!(ready_workers(&pool), ["w1 at a:1"]);
        pool.close().await;
    }

    #[tokio::test]
    async fn what_another_process_had_is_given_up() {
        let (mut pool, w1) = (pool(), seat("w1", "a:1"));
        pool.read(&view(&[("w1", "a:1")]));
        let boot = |boot: &str| HealthReport { boot_id: boot.into(), ..report("w1") };
        reports(&mut pool, &w1, boot("first"));
        let link = Arc::clone(&pool.tenants[&w1].link);
        let mut given_up = poller(link.given_up());
        reports(&mut pool, &w1, boot("first"));
        assert!(!given_up());
        reports(&mut pool, &w1, boot("second"));
        assert!(given_up());
        pool.close().await;
    }

    /// Polls `future` once now and once whenever asked; answers whether it was ready.
    fn poller(future: impl Future<Output = ()>) -> impl FnMut() -> bool {
        let mut future = Box::pin(future);
        let mut poll = move || {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            future.as_mut().poll(&mut cx).is_ready()
        };
        assert!(!poll(), "it is ready before anything happened");
        poll
    }

    #[tokio::test]
    async fn a_worker_that_moved_is_used_at_both_seats_while_both_report() {
        let (mut pool, old, new) = (pool(), seat("w1", "a:1"), seat("w1", "b:2"));
        pool.read(&view(&[("w1", "a:1")]));
        reports(&mut pool, &old, report("w1"));
        pool.read(&view(&[("w1", "b:2")]));
        reports(&mut pool, &new, report("w1"));
        assert_eq!(ready_workers(&pool), ["w1 at a:1", "w1 at b:2"]);
        pool.notice(&old, Sign::Broken);
        assert_eq!(ready_workers(&pool), ["w1 at b:2"]);
        pool.close().await;
    }

    #[tokio::test]
    async fn who_answers_at_anothers_seat_is_not_counted_there() {
        let mut pool = pool();
        pool.read(&view(&[("w1", "a:1"), ("w2", "a:1")]));
        reports(&mut pool, &seat("w1", "a:1"), report("w2"));
        reports(&mut pool, &seat("w2", "a:1"), report("w2"));
        assert_eq!(ready_workers(&pool), ["w2 at a:1"]);
        pool.close().await;
    }

    #[tokio::test]
    async fn what_is_newly_loaded_is_news() {
        let (mut pool, w1) = (pool(), seat("w1", "a:1"));
        pool.read(&view(&[("w1", "a:1")]));
        reports(&mut pool, &w1, report("w1"));
        let more = HealthReport { ready: vec![ready("m", "d"), ready("m", "e")], ..report("w1") };
        assert!(reports(&mut pool, &w1, more));
        pool.close().await;
    }
}
