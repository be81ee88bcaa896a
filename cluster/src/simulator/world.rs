//! The world of a schedule: who there is, and what happens to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::calls::{Call, Client};
use super::etcd::Etcd;
use super::gateway::SimGateway;
use super::laws::{Broken, Meanings};
use super::member::Who;
use super::random::Random;
use super::sabotage::Rule;
use super::tally::{Met, Tally};
use super::wire::{Flight, Purpose, Request};
use super::worker::SimWorker;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::name::{GatewayId, Name, WorkerId};
use crate::record::{Alias, Leader, Pin, Record};
use crate::swap::Moment;

pub(super) const MODEL: &str = "m";
/// Most schedules have the first alone.
pub(super) const MODELS: [&str; 2] = [MODEL, "n"];
const DIGESTS: [[&str; 4]; 2] = [["d0", "d1", "d2", "d3"], ["e0", "e1", "e2", "e3"]];

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

/// A model, and what is held against what becomes of it.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: Name,
    pub(super) digests: [&'static str; 4],
    pub(super) alias_key: Key,
    pub(super) swap_key: Key,
    pub(super) meanings: Meanings,
    /// How many workers must be ready, as it was written when the last swap was taken up; with the swap.
    pub(super) counted: Option<(String, u32)>,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) random: Random,
    pub(super) broken: Option<Rule>,
    pub(super) etcd: Etcd,
    pub(super) models: Vec<Model>,
    pub(super) workers: Vec<SimWorker>,
    pub(super) gateways: Vec<SimGateway>,
    pub(super) clients: Vec<Client>,
    /// What answered each client at each epoch of a model.
    pub(super) answered_by: BTreeMap<(usize, usize, u64), String>,
    pub(super) calls: Vec<Call>,
    pub(super) wire: Vec<Flight>,
    /// The last flight that there was when something was first written under a lease.
    pub(super) used_since: BTreeMap<LeaseId, u64>,
    /// Since when gateways are not registered.
    pub(super) vanished: BTreeMap<GatewayId, u64>,
    /// Who was elected last.
    pub(super) elected: Option<GatewayId>,
    /// The revision of etcd at which readiness was last held against what is loaded.
    pub(super) checked: i64,
    /// In milliseconds.
    pub(super) now: u64,
    start: Instant,
    /// Of a hundred answers so many are lost.
    pub(super) trouble: u64,
    pub(super) ids: u64,
    pub(super) tally: Tally,
    told: Option<String>,
}

impl World {
    pub(super) fn new(seed: u64, broken: Option<Rule>, told: bool) -> Self {
        let (mut random, start) = (Random::new(seed), Instant::now());
        let models = if random.percent(30) { 2 } else { 1 };
        let models: Vec<Model> = MODELS.into_iter().zip(DIGESTS).take(models).map(Model::new).collect();
        let first: BTreeSet<_> =
            models.iter().map(|model| (model.name.to_string(), model.digests[0].to_owned())).collect();
        let workers = 1 + random.below(4);
        let workers = (0..workers).map(|i| {
            let room = if random.percent(20) { 1 } else { 2 };
            let id = WorkerId::parse(format!("w{i}")).expect("a name");
            SimWorker::new((id, room), 0, first.clone(), start)
        });
        let workers = workers.collect();
        let gateways = 1 + random.below(3);
        let gateways = (0..gateways).map(|i| GatewayId::parse(format!("g{i}")).expect("a name"));
        let gateways = gateways.map(|id| SimGateway::new(id, 0, start, broken)).collect();
        let mut world = Self {
            random,
            broken,
            etcd: Etcd::default(),
            models,
            workers,
            gateways,
            clients: vec![Client::default(); 3],
            answered_by: BTreeMap::new(),
            calls: Vec::new(),
            wire: Vec::new(),
            used_since: BTreeMap::new(),
            vanished: BTreeMap::new(),
            elected: None,
            checked: 0,
            now: 1_000,
            start,
            trouble: 0,
            ids: 0,
            tally: Tally::default(),
            told: told.then(String::new),
        };
        world.begin();
        world
    }

    /// A cluster that serves its first checkpoints, and versions to promote.
    fn begin(&mut self) {
        for model in &mut self.models {
            for digest in model.digests {
                // What it says is read by nobody here; that it is there is compared.
                let key = Key::Version { model: model.name.clone(), digest: name(digest) };
                self.etcd.put(key, Record::Pin(Pin { since_unix_ms: 0 }), 0);
            }
            let alias = Alias::of(model.digests[0], 1);
            model.meanings.insert(1, alias.clone());
            self.etcd.put(model.alias_key.clone(), Record::Alias(alias), 0);
        }
        self.tally.count_if(self.models.len() > 1, Met::TwoModels);
        for which in 0..self.workers.len() {
            self.tend(Who::Worker(which)).expect("nothing is wrong yet");
        }
        for which in 0..self.gateways.len() {
            self.follow_as_gateway(which);
            self.compose(which);
            self.tend(Who::Gateway(which)).expect("nothing is wrong yet");
        }
        self.trouble = 20;
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { unix_ms: self.now, uptime: Duration::from_millis(self.now) }
    }

    pub(super) fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    pub(super) fn any_model(&mut self) -> usize {
        self.random.below(self.models.len())
    }

    /// Whether etcd takes longer to answer than it takes others to do something.
    pub(super) fn is_slow(&mut self) -> bool {
        self.trouble > 0 && self.random.percent(15)
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
        for _ in 0..200 + self.random.below(500) {
            self.happen()?;
            self.check_readiness()?;
        }
        self.calm_down()?;
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
            0..=36 => self.pass_time()?,
            37..=64 | 986..=989 => self.ask(),
            65..=184 => self.follow_as_worker(worker),
            185..=269 => self.finish_loading(worker),
            270..=359 => self.tend(Who::Worker(worker))?,
            360..=389 => self.let_go(worker),
            390..=414 => self.speak(worker)?,
            415..=524 => self.take_in(gateway)?,
            525..=574 => self.compose(gateway),
            575..=649 => self.tend(Who::Gateway(gateway))?,
            650..=749 => self.steer(gateway)?,
            750..=859 => self.arrive(self.trouble)?,
            860..=869 => self.give_up(gateway)?,
            870..=919 => self.call(),
            920..=959 => self.answer()?,
            960..=969 => self.start()?,
            970..=976 => self.cut_off_gateway(gateway),
            977..=979 => self.cut_off_worker(worker),
            980..=985 => self.expire(),
            990..=993 => self.kill_or_start_worker(worker),
            _ => self.kill_or_start_gateway(gateway),
        }
        Ok(())
    }

    fn pass_time(&mut self) -> Result<(), Broken> {
        self.now += *self.random.one_of(&[10, 10, 100, 300, 300, 1_000, 2_500, 6_000]);
        self.expire_calls();
        self.time_out()?;
        // Most of them have woken up in time.
        let workers = (0..self.workers.len()).map(Who::Worker);
        for who in workers.chain((0..self.gateways.len()).map(Who::Gateway)).collect::<Vec<_>>() {
            if self.random.percent(80) {
                self.tend(who)?;
            }
        }
        self.run_out();
        Ok(())
    }

    pub(super) fn follow_as_worker(&mut self, which: usize) {
        let (now, broken) = (self.instant(), self.broken);
        let worker = &mut self.workers[which];
        if !worker.is_up {
            return;
        }
        if worker.reaches_etcd() {
            worker.view = self.etcd.view();
        }
        if let Some(did) = worker.step(now, broken) {
            let id = worker.id.clone();
            self.tell(|| format!("{id} {did}"));
        }
    }

    fn finish_loading(&mut self, which: usize) {
        let (now, broken) = (self.instant(), self.broken);
        let is_broken = self.trouble > 0 && self.random.percent(3);
        let worker = &mut self.workers[which];
        if let Some(did) = worker.finish_loading(is_broken, now, broken) {
            let id = worker.id.clone();
            self.tell(|| format!("{id} {did}"));
        }
    }

    fn let_go(&mut self, which: usize) {
        let broken = self.broken;
        let worker = &mut self.workers[which];
        if let Some(did) = worker.let_go(broken) {
            let id = worker.id.clone();
            self.checked = 0;
            self.tell(|| format!("{id} {did}"));
        }
    }

    /// A worker says what it cannot run, or that it can after all.
    fn speak(&mut self, which: usize) -> Result<(), Broken> {
        let worker = &self.workers[which];
        let boots = worker.boots;
        let Some((about, transaction)) = worker.unsaid().filter(|_| worker.reaches_etcd()) else {
            return Ok(());
        };
        self.tally.count_if(takes_back(&transaction), Met::TakenBack);
        let purpose = Purpose::Word { worker: which, boots, about: about.clone() };
        let flight = self.send(purpose, Request::Transact(transaction));
        self.workers[which].said(&about, (flight, self.now));
        if self.is_slow() { Ok(()) } else { self.arrive_now(flight, self.trouble) }
    }

    /// A gateway sees what etcd says, and as often as not says so before anything else happens.
    fn take_in(&mut self, which: usize) -> Result<(), Broken> {
        self.follow_as_gateway(which);
        if self.random.percent(50) {
            self.compose(which);
            self.tend(Who::Gateway(which))?;
        }
        Ok(())
    }

    pub(super) fn follow_as_gateway(&mut self, which: usize) {
        let gateway = &mut self.gateways[which];
        if gateway.reaches_etcd() {
            gateway.see(&mut self.etcd, self.broken);
        }
    }

    pub(super) fn compose(&mut self, which: usize) {
        let now = self.instant();
        let gateway = &mut self.gateways[which];
        if gateway.is_up {
            gateway.compose(&self.calls, (&self.models, &self.etcd), now, self.broken);
        }
    }

    /// Everybody does what there is to do, and two seconds pass.
    fn round(&mut self) -> Result<(), Broken> {
        self.run_out();
        while !self.wire.is_empty() {
            self.arrive(0)?;
        }
        for which in 0..self.workers.len() {
            self.follow_as_worker(which);
            self.finish_loading(which);
            self.speak(which)?;
            self.tend(Who::Worker(which))?;
            self.let_go(which);
            self.tend(Who::Worker(which))?;
        }
        for which in 0..self.gateways.len() {
            self.follow_as_gateway(which);
            self.count_a_call(which);
            self.compose(which);
            self.tend(Who::Gateway(which))?;
            self.steer(which)?;
            while !self.wire.is_empty() {
                self.arrive(0)?;
            }
            self.give_up(which)?;
        }
        for _ in 0..4 * self.calls.len() * self.workers.len() {
            self.answer()?;
        }
        self.check_readiness()?;
        self.now += 2_000;
        self.expire_calls();
        self.time_out()?;
        Ok(())
    }

    /// Trials go on being called.
    fn count_a_call(&mut self, which: usize) {
        for (number, model) in self.models.iter().enumerate() {
            self.gateways[which].count(number, model.digests[0]);
        }
    }
}

fn takes_back(transaction: &crate::transaction::Transaction) -> bool {
    transaction.then.iter().any(|write| matches!(write, crate::transaction::Write::Delete(_)))
}

impl Model {
    fn new((text, digests): (&str, [&'static str; 4])) -> Self {
        let name = name(text);
        let (alias_key, swap_key) = (Key::Alias(name.clone()), Key::Swap(name.clone()));
        Self { name, digests, alias_key, swap_key, meanings: Meanings::new(), counted: None }
    }
}
