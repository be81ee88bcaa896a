//! What the etcd in memory does with a transaction, a real one does; and what a leader orders that was replaced, or lets
//! go of while somebody comes, changes nothing in a real one.

#[path = "../../tests/support/etcd.rs"]
mod server;

use std::collections::BTreeMap;
use std::time::Duration;

use server::EtcdServer;

use super::etcd::Etcd as Simulated;
use super::random::Random;
use super::world::{MODEL, leader, name};
use crate::dial::Settings;
use crate::directory::Directory as _;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::name::GatewayId;
use crate::record::{Alias, Gateway, Ready, Record, Seen, Swap, SwapPlan, SwapState};
use crate::swap::{Campaign, Fence, Helm, Moment, Order, SwapSettings, Task, campaign};
use crate::transaction::{Fact, Outcome, Transaction, Write};
use crate::view::tests::{id, worker};

/// Transactions that both are given.
const STEPS: usize = 400;

fn connect(server: &EtcdServer) -> Etcd {
    let endpoints = vec![server.endpoint()];
    Etcd::connect(Settings { endpoints, cluster: name("sim"), tls: None }).unwrap()
}

fn gateway(text: &str) -> GatewayId {
    GatewayId::parse(text).unwrap()
}

fn ready(digest: &str, worker: &str) -> Key {
    Key::Ready { model: name(MODEL), digest: name(digest), worker: id(worker) }
}

fn seen(model: &str, by: &str) -> Key {
    Key::Seen { model: name(model), gateway: gateway(by) }
}

/// What a gateway says that has taken in `epoch` and has calls on `busy`.
fn word(epoch: u64, busy: &[&str]) -> Record {
    let busy = busy.iter().map(ToString::to_string).collect();
    Record::Seen(Box::new(Seen { epoch, busy, trial: None }))
}

fn ready_record() -> Record {
    Record::Ready(Ready { boot_id: "boot".into(), load_ms: 1, golden_cosine: None })
}

async fn done(etcd: &Etcd, then: Vec<Write>) -> i64 {
    match etcd.transact("set the scene", &Transaction { when: vec![], then }).await.unwrap() {
        Outcome::Done(revision) => revision,
        Outcome::Conflict => panic!("nothing was compared"),
    }
}

/// Both etcds, with the same in them.
struct Twins {
    random: Random,
    simulated: Simulated,
    real: Etcd,
    /// By how much the real one's revisions are ahead.
    ahead: i64,
    /// By the simulated one's.
    leases: BTreeMap<LeaseId, LeaseId>,
}

impl Twins {
    async fn grant(&mut self) {
        let lease = self.real.grant_lease(Duration::from_secs(300)).await.unwrap();
        self.leases.insert(self.simulated.grant(u64::MAX), lease);
    }

    fn key(&mut self) -> Key {
        let keys = [
            Key::Leader,
            Key::Alias(name(MODEL)),
            Key::Gateway(gateway("g1")),
            Key::Gateway(gateway("g2")),
            ready("d", "w1"),
            ready("d", "w2"),
            ready("e", "w1"),
            seen(MODEL, "g1"),
            seen(MODEL, "g2"),
            // Its folder begins as that of the model does.
            seen("m2", "g1"),
        ];
        self.random.one_of(&keys).clone()
    }

    fn record(&mut self, key: &Key) -> Record {
        let number = self.random.below(3) as u64;
        match key {
            Key::Leader => Record::Leader(leader(&gateway(&format!("g{number}")))),
            Key::Gateway(_) => Record::Gateway(Gateway { address: number.to_string(), ..Gateway::default() }),
            Key::Ready { .. } => ready_record(),
            Key::Seen { .. } => word(number, &[]),
            _ => Record::Alias(Alias::of("d", number)),
        }
    }

    /// One of the revisions there were lately, or none.
    fn revision(&mut self, last: i64) -> i64 {
        let back = i64::try_from(self.random.below(12)).unwrap();
        if self.random.percent(15) { 0 } else { (last - back).max(0) }
    }

    /// Something to compare, as often as not what is the case.
    fn fact(&mut self, last: i64) -> Fact {
        let key = self.key();
        let entry = self.simulated.entry(&key).cloned();
        let guess = self.revision(last);
        let (is_so, which) = (self.random.percent(50), self.random.below(7));
        match (which, entry) {
            (0, entry) => {
                let modified = entry.filter(|_| is_so).map_or(guess, |entry| entry.revision.modified);
                Fact::Unchanged { key, modified }
            }
            (1, _) => Fact::Present(key),
            (2, Some(entry)) if is_so => Fact::Is { key, record: entry.record, lease: entry.lease },
            (2, _) => Fact::Is { record: self.record(&key), key, lease: 0 },
            (3, entry) => {
                let created = entry.filter(|_| is_so).map_or(guess, |entry| entry.revision.created);
                Fact::Since { key, created }
            }
            (4, _) => Fact::NobodyReady { model: name(MODEL), digest: name(if is_so { "d" } else { "e" }) },
            (5, _) => Fact::NoGatewaySince(guess),
            _ => Fact::QuietSince { model: name(MODEL), revision: guess },
        }
    }

    fn writes(&mut self) -> Vec<Write> {
        let (key, other) = (self.key(), self.key());
        let (record, lease) = (self.record(&key), self.leases.keys().next_back().copied());
        let put = match lease.filter(|_| self.random.percent(30)) {
            Some(lease) => Write::PutUnder(lease, key.clone(), record),
            None => Write::Put(key.clone(), record),
        };
        if self.random.percent(15) {
            // There may be nothing to take away, and then nothing is written.
            return vec![Write::Delete(other)];
        }
        let takes_away = other != key && self.random.percent(40);
        [put].into_iter().chain(takes_away.then_some(Write::Delete(other))).collect()
    }

    /// The same for the real one: its revisions and leases are others.
    fn translate(&self, transaction: &Transaction) -> Transaction {
        let shifted = |revision: i64| if revision == 0 { 0 } else { revision + self.ahead };
        let lease = |lease: LeaseId| self.leases.get(&lease).copied().unwrap_or(lease);
        let fact = |fact: &Fact| match fact.clone() {
            Fact::Unchanged { key, modified } => Fact::Unchanged { key, modified: shifted(modified) },
            Fact::Since { key, created } => Fact::Since { key, created: shifted(created) },
            Fact::Is { key, record, lease: under } => Fact::Is { key, record, lease: lease(under) },
            Fact::NoGatewaySince(revision) => Fact::NoGatewaySince(shifted(revision)),
            Fact::QuietSince { model, revision } => Fact::QuietSince { model, revision: shifted(revision) },
            fact @ (Fact::Present(_) | Fact::NobodyReady { .. }) => fact,
        };
        let write = |write: &Write| match write.clone() {
            Write::PutUnder(under, key, record) => Write::PutUnder(lease(under), key, record),
            write @ (Write::Put(..) | Write::Delete(_)) => write,
        };
        Transaction {
            when: transaction.when.iter().map(fact).collect(),
            then: transaction.then.iter().map(write).collect(),
        }
    }
}

/// Which kind of fact it is.
fn kind(fact: &Fact) -> &'static str {
    match fact {
        Fact::Unchanged { .. } => "unchanged",
        Fact::Present(_) => "present",
        Fact::Is { .. } => "is",
        Fact::Since { .. } => "since",
        Fact::NobodyReady { .. } => "nobody ready",
        Fact::NoGatewaySince(_) => "no gateway since",
        Fact::QuietSince { .. } => "quiet since",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_etcd_in_memory_takes_and_refuses_what_a_real_one_does() {
    let server = EtcdServer::start().await;
    let (random, leases) = (Random::new(1), BTreeMap::new());
    let real = connect(&server);
    let mut twins = Twins { random, simulated: Simulated::default(), real, ahead: 0, leases };
    let first = Write::Put(Key::Alias(name(MODEL)), Record::Alias(Alias::of("d", 1)));
    let begun = Transaction { when: vec![], then: vec![first.clone()] };
    let Some(Outcome::Done(mut last)) = twins.simulated.transact(&begun) else { panic!("it takes all") };
    twins.ahead = done(&twins.real, vec![first]).await - last;

    // Of each kind of fact alone, how often it held, and how often not.
    let mut outcomes: BTreeMap<&str, [u32; 2]> = BTreeMap::new();
    for step in 0..STEPS {
        if step % 40 == 0 {
            if let Some((&simulated, &real)) = twins.leases.iter().next_back() {
                twins.simulated.expire(simulated);
                twins.real.revoke_lease(real).await.unwrap();
                // A lease that held something cost a revision.
                let then = vec![Write::Put(Key::Leader, twins.record(&Key::Leader))];
                let begun = Transaction { when: vec![], then: then.clone() };
                let Some(Outcome::Done(now)) = twins.simulated.transact(&begun) else {
                    panic!("it takes all")
                };
                assert_eq!(done(&twins.real, then).await, now + twins.ahead, "after a lease was over");
                last = now;
            }
            twins.leases.clear();
            twins.grant().await;
        }
        let facts = if twins.random.percent(20) { 2 } else { 1 };
        let when: Vec<_> = (0..facts).map(|_| twins.fact(last)).collect();
        let transaction = Transaction { when, then: twins.writes() };
        let expected = twins.simulated.transact(&transaction).expect("its lease lasts");
        let found = twins.real.transact("do the same", &twins.translate(&transaction)).await.unwrap();
        match (expected, found) {
            (Outcome::Done(simulated), Outcome::Done(real)) if simulated + twins.ahead == real => {
                last = simulated;
            }
            (Outcome::Conflict, Outcome::Conflict) => {}
            _ => panic!("step {step}: {expected:?} here, {found:?} there, {}: {transaction:#?}", twins.ahead),
        }
        if let [fact] = &transaction.when[..] {
            outcomes.entry(kind(fact)).or_default()[usize::from(expected == Outcome::Conflict)] += 1;
        }
    }
    let is_seldom = |counts: &[u32; 2]| counts.iter().any(|count| *count < 5);
    assert!(outcomes.len() == 7 && !outcomes.values().any(is_seldom), "{outcomes:?}");
}

/// A leader, elected under a lease of its own, in a cluster of which it knows all.
struct Reign {
    etcd: Etcd,
    lease: LeaseId,
    helm: Helm,
    _server: EtcdServer,
}

impl Reign {
    /// `g1` leads where worker `w1` is ready with `d` and `e`, and `m` means `alias`, by `swap`.
    async fn begin(alias: Alias, swap: Swap) -> Self {
        let server = EtcdServer::start().await;
        let etcd = connect(&server);
        let epoch = alias.epoch;
        let scene = vec![
            Write::Put(Key::Worker(id("w1")), Record::Worker(worker("w1"))),
            Write::Put(ready("d", "w1"), ready_record()),
            Write::Put(ready("e", "w1"), ready_record()),
            Write::Put(Key::Gateway(gateway("g1")), Record::Gateway(Gateway::default())),
            Write::Put(seen(MODEL, "g1"), word(epoch, &[])),
            Write::Put(Key::Alias(name(MODEL)), Record::Alias(alias)),
            Write::Put(Key::Swap(name(MODEL)), Record::Swap(Box::new(swap))),
        ];
        done(&etcd, scene).await;
        let lease = etcd.grant_lease(Duration::from_secs(300)).await.unwrap();
        let helm = Helm::new(gateway("g1"), SwapSettings { grace: Duration::ZERO });
        let mut reign = Self { etcd, lease, helm, _server: server };
        let created = reign.elect("g1", lease).await;
        reign.helm.campaigned((lease, Campaign::Won(Fence { created })), now(), 0.0);
        reign
    }

    async fn elect(&self, who: &str, lease: LeaseId) -> i64 {
        match self.etcd.transact("stand", &campaign(&leader(&gateway(who)), lease)).await.unwrap() {
            Outcome::Done(created) => created,
            Outcome::Conflict => panic!("somebody leads"),
        }
    }

    /// What the leader orders now that it sees all there is.
    async fn order(&mut self) -> Order {
        let view = self.etcd.directory().list().await.unwrap();
        match self.helm.look(&view, Some(self.lease), now()) {
            Task::Steer(mut orders) if orders.len() == 1 => orders.remove(0),
            task => panic!("{task:?}"),
        }
    }

    /// Holds that `order` changes nothing, and that but for the facts that `is_it` picks it would.
    async fn is_in_vain(&self, order: Order, is_it: fn(&Fact) -> bool) {
        let keys = [&Key::Alias(name(MODEL)), &Key::Swap(name(MODEL))];
        let before = self.etcd.read("look", keys).await.unwrap();
        let Order { what, mut transaction, .. } = order;
        let outcome = self.etcd.transact("order", &transaction).await.unwrap();
        assert_eq!(outcome, Outcome::Conflict, "{what}");
        assert_eq!(self.etcd.read("look", keys).await.unwrap(), before, "{what}");
        let facts = transaction.when.len();
        transaction.when.retain(|fact| !is_it(fact));
        assert_eq!(transaction.when.len(), facts - 1, "{what}");
        let outcome = self.etcd.transact("order", &transaction).await.unwrap();
        assert!(matches!(outcome, Outcome::Done(_)), "{what}: something else is against it as well");
        assert_ne!(self.etcd.read("look", keys).await.unwrap(), before, "{what}");
    }
}

fn now() -> Moment {
    Moment { unix_ms: 1_000, uptime: Duration::from_secs(3_600) }
}

fn swap(state: SwapState) -> Swap {
    let plan = SwapPlan { min_ready: Some(1), deadline_ms: 60_000, ..SwapPlan::default() };
    let swap = Swap::requested("s".into(), (Some("d".into()), "e".into()), plan, 0);
    Swap { state, min_ready: 1, ..swap }
}

/// A leader that is about to let go of `d`, from before `m` meant `e`.
async fn about_to_let_go() -> Reign {
    let alias = Alias { prev: Some("d".into()), ..Alias::of("e", 2) };
    let retired = Swap { retire_requested: true, committed_unix_ms: Some(1), ..swap(SwapState::Committed) };
    Reign::begin(alias, retired).await
}

#[tokio::test]
async fn a_commit_by_a_leader_that_was_replaced_changes_nothing() {
    let mut reign = Reign::begin(Alias::of("d", 1), swap(SwapState::Preparing)).await;
    let order = reign.order().await;
    assert!(order.what.starts_with("committed"), "{}", order.what);
    // Its order is on its way when it is taken for dead.
    reign.etcd.revoke_lease(reign.lease).await.unwrap();
    let lease = reign.etcd.grant_lease(Duration::from_secs(300)).await.unwrap();
    reign.elect("g2", lease).await;
    reign.is_in_vain(order, |fact| matches!(fact, Fact::Since { key: Key::Leader, .. })).await;
}

#[tokio::test]
async fn a_checkpoint_is_not_let_go_under_a_gateway_that_has_just_come() {
    let mut reign = about_to_let_go().await;
    let order = reign.order().await;
    assert_eq!(order.what, "d is let go");
    let news = Write::Put(Key::Gateway(gateway("g2")), Record::Gateway(Gateway::default()));
    done(&reign.etcd, vec![news]).await;
    reign.is_in_vain(order, |fact| matches!(fact, Fact::NoGatewaySince(_))).await;
}

#[tokio::test]
async fn a_checkpoint_is_not_let_go_under_a_gateway_that_has_just_said_that_it_needs_it() {
    let mut reign = about_to_let_go().await;
    let order = reign.order().await;
    assert_eq!(order.what, "d is let go");
    done(&reign.etcd, vec![Write::Put(seen(MODEL, "g1"), word(2, &["d"]))]).await;
    reign.is_in_vain(order, |fact| matches!(fact, Fact::QuietSince { .. })).await;
}
