//! The world of a schedule: who there is, and what happens to them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::calls::{Call, Client};
use super::etcd::Etcd;
use super::gateway::SimGateway;
use super::laws::{Broken, Meanings};
use super::random::Random;
use super::sabotage::Rule;
use super::wire::Flight;
use super::worker::SimWorker;
use crate::keys::Key;
use crate::name::{GatewayId, Name, WorkerId};
use crate::record::{Alias, Leader, Pin, Record, Swap, SwapMode, SwapState};
use crate::swap::Moment;

pub(super) const MODEL: &str = "m";
pub(super) const DIGESTS: [&str; 4] = ["d0", "d1", "d2", "d3"];

/// Longer than any call lasts.
pub(super) const GRACE: Duration = Duration::from_secs(4);

/// For so many milliseconds a call lasts at most.
pub(super) const CALL: u64 = 3_000;

/// Rounds without trouble after which all must be well.
const CALM: u32 = 80;

pub(super) fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

pub(super) fn leader(gateway: &GatewayId) -> Leader {
    Leader { gateway: gateway.clone(), address: String::new() }
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) random: Random,
    pub(super) broken: Option<Rule>,
    pub(super) etcd: Etcd,
    pub(super) workers: Vec<SimWorker>,
    pub(super) gateways: Vec<SimGateway>,
    pub(super) clients: Vec<Client>,
    /// What answered each client at each epoch.
    pub(super) answered_by: BTreeMap<(usize, u64), String>,
    /// When each client was last answered.
    pub(super) last_answer: Vec<u64>,
    pub(super) calls: Vec<Call>,
    pub(super) wire: Vec<Flight>,
    pub(super) meanings: Meanings,
    /// How many workers must be ready, as it was written when the last swap was taken up; with the swap.
    pub(super) counted: Option<(String, u32)>,
    /// Since when gateways are not registered.
    pub(super) vanished: BTreeMap<GatewayId, u64>,
    /// Who was elected last.
    pub(super) elected: Option<GatewayId>,
    pub(super) alias_key: Key,
    pub(super) swap_key: Key,
    /// In milliseconds.
    pub(super) now: u64,
    /// Of a hundred answers so many are lost.
    pub(super) trouble: u64,
    ids: u64,
    pub(super) tally: Tally,
    told: Option<String>,
}

impl World {
    pub(super) fn new(seed: u64, broken: Option<Rule>, told: bool) -> Self {
        let mut random = Random::new(seed);
        let room = |random: &mut Random| if random.percent(20) { 1 } else { 2 };
        let workers = 1 + random.below(4);
        let workers =
            (0..workers).map(|i| (WorkerId::parse(format!("w{i}")).expect("a name"), room(&mut random)));
        let workers: Vec<_> = workers.map(|(id, room)| SimWorker::new(id, room)).collect();
        let gateways = 1 + random.below(3);
        let gateways = (0..gateways).map(|i| GatewayId::parse(format!("g{i}")).expect("a name"));
        let gateways = gateways.map(|id| SimGateway::new(id, broken)).collect();
        let mut world = Self {
            random,
            broken,
            etcd: Etcd::default(),
            workers,
            gateways,
            clients: vec![Client::default(); 3],
            answered_by: BTreeMap::new(),
            last_answer: vec![0; 3],
            calls: Vec::new(),
            wire: Vec::new(),
            meanings: Meanings::new(),
            counted: None,
            vanished: BTreeMap::new(),
            elected: None,
            alias_key: Key::Alias(name(MODEL)),
            swap_key: Key::Swap(name(MODEL)),
            now: 1_000,
            trouble: 20,
            ids: 0,
            tally: Tally::default(),
            told: told.then(String::new),
        };
        world.begin();
        world
    }

    /// A cluster that serves its first checkpoint, and versions to promote.
    fn begin(&mut self) {
        for digest in DIGESTS {
            // What it says is read by nobody here; that it is there is compared.
            let key = Key::Version { model: name(MODEL), digest: name(digest) };
            self.etcd.put(key, Record::Pin(Pin { since_unix_ms: 0 }), 0);
        }
        let alias = Alias::of(DIGESTS[0], 1);
        self.meanings.insert(1, alias.clone());
        self.etcd.put(self.alias_key.clone(), Record::Alias(alias), 0);
        for worker in &mut self.workers {
            worker.loaded.insert(DIGESTS[0].to_owned());
            worker.register(&mut self.etcd, None);
        }
        for gateway in &mut self.gateways {
            gateway.see(&mut self.etcd, None);
            gateway.compose(&[], &self.etcd, None);
            gateway.register(&mut self.etcd);
        }
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { unix_ms: self.now, uptime: Duration::from_millis(self.now) }
    }

    /// Remembers what happened, where the schedule is to be told.
    pub(super) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(told) = &mut self.told {
            writeln!(told, "{:>7} ms  {}", self.now, what()).expect("a string takes all");
        }
    }

    pub(super) fn told(&self) -> &str {
        self.told.as_deref().unwrap_or_default()
    }

    /// Trouble for a while, then calm, in which everything must come to an end.
    pub(super) fn run(&mut self) -> Result<(), Broken> {
        for _ in 0..150 + self.random.below(450) {
            self.happen()?;
            self.check_readiness()?;
        }
        self.calm_down();
        for round in 1..=CALM {
            self.round()?;
            match self.check_calm() {
                Err(broken) if round == CALM => return Err(broken),
                // Calm for a moment may be chance: a swap just asked for is not seen yet.
                Ok(()) if self.wire.is_empty() => break,
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Something happens to somebody.
    fn happen(&mut self) -> Result<(), Broken> {
        let worker = self.random.below(self.workers.len());
        let gateway = self.random.below(self.gateways.len());
        match self.random.below(1_000) {
            0..=44 => self.pass_time(),
            45..=64 => self.ask(),
            65..=204 => self.follow_as_worker(worker),
            205..=304 => self.finish_loading(worker),
            305..=394 => self.register_worker(worker),
            395..=429 => self.let_go(worker),
            430..=549 => self.follow_as_gateway(gateway),
            550..=599 => self.compose(gateway),
            600..=649 => self.register_gateway(gateway),
            650..=749 => self.steer(gateway),
            750..=869 => self.arrive(self.trouble)?,
            870..=879 => self.give_up(gateway),
            880..=924 => self.call(),
            925..=969 => self.answer()?,
            970..=979 => self.start(),
            980..=986 => self.cut_off(gateway),
            987..=993 => self.expire(),
            994..=996 => self.kill_or_start_worker(worker),
            _ => self.kill_or_start_gateway(gateway),
        }
        Ok(())
    }

    fn pass_time(&mut self) {
        self.now += *self.random.one_of(&[10, 100, 300, 300, 1_000, 1_000, 2_500, 6_000]);
        self.expire_calls();
    }

    fn follow_as_worker(&mut self, which: usize) {
        let worker = &mut self.workers[which];
        if !worker.is_up {
            return;
        }
        worker.view = self.etcd.view();
        if let Some(did) = worker.step() {
            let id = worker.id.clone();
            self.tell(|| format!("{id} {did}"));
        }
    }

    fn finish_loading(&mut self, which: usize) {
        let is_broken = self.trouble > 0 && self.random.percent(3);
        let worker = &mut self.workers[which];
        if let Some(did) = worker.finish_loading(is_broken, &mut self.etcd) {
            let id = worker.id.clone();
            self.tell(|| format!("{id} {did}"));
        }
    }

    fn register_worker(&mut self, which: usize) {
        let worker = &mut self.workers[which];
        if worker.is_up {
            worker.register(&mut self.etcd, self.broken);
        }
    }

    fn let_go(&mut self, which: usize) {
        let worker = &mut self.workers[which];
        if let Some(did) = worker.let_go(&mut self.etcd, self.broken) {
            let id = worker.id.clone();
            self.tell(|| format!("{id} {did}"));
        }
    }

    fn follow_as_gateway(&mut self, which: usize) {
        let gateway = &mut self.gateways[which];
        if gateway.reaches_etcd() {
            gateway.see(&mut self.etcd, self.broken);
        }
    }

    fn compose(&mut self, which: usize) {
        let gateway = &mut self.gateways[which];
        if gateway.is_up {
            gateway.compose(&self.calls, &self.etcd, self.broken);
        }
    }

    fn register_gateway(&mut self, which: usize) {
        let gateway = &mut self.gateways[which];
        if gateway.reaches_etcd() && gateway.register(&mut self.etcd) {
            let (id, epoch) = (gateway.id.clone(), gateway.known.as_ref().map(|alias| alias.epoch));
            self.vanished.remove(&id);
            self.tell(|| format!("{id} says what it has seen and needs; it knows epoch {epoch:?}"));
        }
    }

    /// Somebody who died starts again.
    fn start(&mut self) {
        if let Some(which) = self.workers.iter().position(|worker| !worker.is_up) {
            self.kill_or_start_worker(which);
        }
        if let Some(which) = self.gateways.iter().position(|gateway| !gateway.is_up) {
            self.kill_or_start_gateway(which);
        }
        if self.random.percent(30) {
            (0..self.gateways.len()).for_each(|which| self.come_back(which));
        }
    }

    /// A gateway reaches etcd again. It may say what it knew while it was away before it hears of anything.
    fn come_back(&mut self, which: usize) {
        let gateway = &mut self.gateways[which];
        let was_away = std::mem::take(&mut gateway.is_cut_off);
        if was_away && gateway.is_up && self.random.percent(50) {
            self.compose(which);
            self.register_gateway(which);
        }
    }

    /// Somebody who was away is back just when something is about to be let go, and is called.
    pub(super) fn intrude(&mut self) {
        let is_away = |gateway: &SimGateway| {
            let is_registered = gateway.lease.is_some_and(|lease| self.etcd.is_alive(lease));
            gateway.is_up && gateway.known.is_some() && !is_registered
        };
        let Some(which) = self.gateways.iter().position(is_away) else { return };
        self.gateways[which].is_cut_off = false;
        self.compose(which);
        self.register_gateway(which);
        self.call_at(which);
    }

    /// A gateway reaches etcd no more, and sooner or later is not registered any more.
    fn cut_off(&mut self, which: usize) {
        let gateway = &mut self.gateways[which];
        gateway.is_cut_off = true;
        let (id, lease) = (gateway.id.clone(), gateway.lease);
        self.tell(|| format!("{id} is cut off from etcd"));
        if let (true, Some(lease)) = (self.random.percent(70), lease) {
            self.end_lease(lease);
        }
    }

    /// A lease runs out, whether its holder lives or not.
    fn expire(&mut self) {
        let of_workers = self.workers.iter().filter_map(|worker| worker.lease);
        let leases: Vec<_> =
            of_workers.chain(self.gateways.iter().filter_map(|gateway| gateway.lease)).collect();
        if leases.is_empty() {
            return;
        }
        let lease = *self.random.one_of(&leases);
        self.end_lease(lease);
    }

    fn end_lease(&mut self, lease: i64) {
        self.etcd.expire(lease);
        self.lose_older_than(lease);
        let gone = self.gateways.iter().filter(|gateway| gateway.lease == Some(lease));
        let gone: Vec<GatewayId> = gone.map(|gateway| gateway.id.clone()).collect();
        for id in gone {
            self.vanished.entry(id).or_insert(self.now);
        }
        self.tell(|| format!("lease {lease} runs out"));
    }

    fn kill_or_start_worker(&mut self, which: usize) {
        let worker = &mut self.workers[which];
        let (id, was_up, lease) = (worker.id.clone(), worker.is_up, worker.lease);
        if was_up {
            worker.is_up = false;
        } else {
            worker.restart();
        }
        self.tell(|| format!("{id} {}", if was_up { "dies" } else { "starts" }));
        // Its lease runs out while nobody holds it, sooner or later.
        if let (false, Some(lease)) = (was_up, lease)
            && self.random.percent(70)
        {
            self.end_lease(lease);
        }
    }

    fn kill_or_start_gateway(&mut self, which: usize) {
        let broken = self.broken;
        let gateway = &mut self.gateways[which];
        let (id, was_up, lease) = (gateway.id.clone(), gateway.is_up, gateway.lease);
        if was_up {
            gateway.is_up = false;
            self.calls.retain(|call| call.gateway != id);
        } else {
            gateway.restart(broken);
        }
        self.tell(|| format!("{id} {}", if was_up { "dies" } else { "starts" }));
        if let (false, Some(lease)) = (was_up, lease) {
            self.end_lease(lease);
        }
    }

    /// Everybody comes back, everything that is on its way arrives or never will, and nobody asks for anything.
    fn calm_down(&mut self) {
        self.trouble = 0;
        self.tell(|| "from here on all is well".to_owned());
        for which in 0..self.workers.len() {
            if !self.workers[which].is_up {
                self.kill_or_start_worker(which);
            }
        }
        for which in 0..self.gateways.len() {
            self.gateways[which].is_cut_off = false;
            if !self.gateways[which].is_up {
                self.kill_or_start_gateway(which);
            }
        }
        for digest in DIGESTS {
            self.etcd.delete(&Key::Pin { model: name(MODEL), digest: name(digest) });
        }
        // Refusals last an hour.
        let refusals: Vec<Key> =
            self.etcd.keys().filter(|key| matches!(key, Key::Nack { .. })).cloned().collect();
        for key in &refusals {
            self.etcd.delete(key);
        }
    }

    /// Everybody does what there is to do, and two seconds pass.
    fn round(&mut self) -> Result<(), Broken> {
        for which in 0..self.workers.len() {
            self.follow_as_worker(which);
            self.finish_loading(which);
            self.register_worker(which);
            self.let_go(which);
            self.register_worker(which);
        }
        for which in 0..self.gateways.len() {
            self.follow_as_gateway(which);
            self.compose(which);
            self.register_gateway(which);
            self.steer(which);
            while !self.wire.is_empty() {
                self.arrive(0)?;
            }
            self.give_up(which);
        }
        for _ in 0..4 * self.calls.len() * self.workers.len() {
            self.answer()?;
        }
        self.check_readiness()?;
        self.now += 2_000;
        self.expire_calls();
        Ok(())
    }
}

/// What happened, over schedules.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) commits: u64,
    pub(super) aborts: u64,
    pub(super) rollbacks: u64,
    pub(super) retired: u64,
    pub(super) trials: u64,
    pub(super) waves: u64,
    pub(super) answers: u64,
    pub(super) started_again: u64,
    /// Calls that insisted on a checkpoint that the name did not mean, and were answered.
    pub(super) insisted: u64,
    /// Workers without room for both that follow after a commit.
    pub(super) stragglers: u64,
    /// Elections of another gateway than the one before.
    pub(super) leader_changes: u64,
    /// Of those, while a swap was open.
    pub(super) in_mid_swap: u64,
}

impl Tally {
    /// Counts what a swap that was in `old` has come to.
    pub(super) fn count(&mut self, old: Option<SwapState>, new: &Swap) {
        if old == Some(new.state) {
            return;
        }
        let waves = u64::from(new.mode == SwapMode::Waves);
        match new.state {
            SwapState::Requested | SwapState::Preparing => {}
            SwapState::Trial => self.trials += 1,
            SwapState::Committed => {
                self.commits += 1;
                self.waves += waves;
            }
            SwapState::Retired => self.retired += 1,
            SwapState::Aborted => self.aborts += 1,
            SwapState::RolledBack => self.rollbacks += 1,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.commits += other.commits;
        self.aborts += other.aborts;
        self.rollbacks += other.rollbacks;
        self.retired += other.retired;
        self.trials += other.trials;
        self.waves += other.waves;
        self.answers += other.answers;
        self.started_again += other.started_again;
        self.insisted += other.insisted;
        self.stragglers += other.stragglers;
        self.leader_changes += other.leader_changes;
        self.in_mid_swap += other.in_mid_swap;
    }

    /// Laws hold easily where nothing happens.
    pub(super) fn assert_everything_happens(&self, schedules: u64) {
        let Self { commits, aborts, rollbacks, retired, trials, waves, answers, started_again, .. } = *self;
        let Self { insisted, stragglers, leader_changes, in_mid_swap, .. } = *self;
        for (what, count, one_in) in [
            ("commits", commits, 2),
            ("aborts", aborts, 20),
            ("rollbacks", rollbacks, 50),
            ("retired", retired, 10),
            ("trials", trials, 20),
            ("waves", waves, 100),
            ("answers", answers, 1),
            ("calls that started again", started_again, 100),
            ("answers by what the name does not mean", insisted, 20),
            ("workers that follow after a commit", stragglers, 1_000),
            ("leader changes", leader_changes, 4),
            ("leader changes in mid swap", in_mid_swap, 10),
        ] {
            assert!(count * one_in >= schedules, "too few {what}: {count} in {schedules} schedules");
        }
    }
}
