//! Workers: they hold what the cluster wants, as far as it fits, say what is ready, and what they cannot run. As in the
//! worker's own `prepare`, what is ready is said by its place in etcd, and a word on a checkpoint until it was heard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use super::member::Member;
use super::sabotage::Rule;
use super::world::name;
use crate::desired::{Desired, Wish, desired};
use crate::keys::Key;
use crate::ledger::Entries;
use crate::membership::Registration;
use crate::name::WorkerId;
use crate::record::{Nack, NackReason, Ready, Record, Worker};
use crate::transaction::{Transaction, Write};
use crate::view::View;

/// A model and a checkpoint of it.
pub(super) type Id = (String, String);

#[derive(Debug)]
pub(super) struct SimWorker {
    pub(super) id: WorkerId,
    pub(super) is_up: bool,
    /// How many checkpoints of a model fit.
    room: usize,
    /// Which process it is.
    pub(super) boots: u32,
    pub(super) member: Member,
    pub(super) view: Arc<View>,
    pub(super) loaded: BTreeSet<Id>,
    /// Of what is loaded, what is on its way out: no longer said to be ready from that version on.
    withdrawn: BTreeMap<Id, u64>,
    loading: Option<Loading>,
    /// What it could not load, and does not try again.
    setbacks: BTreeMap<Id, Setback>,
    /// What the cluster is being told of checkpoints.
    words: BTreeMap<Id, Word>,
}

#[derive(Debug)]
struct Loading {
    id: Id,
    swap_id: Option<String>,
    made_room: bool,
}

#[derive(Debug)]
struct Setback {
    reason: NackReason,
    swap_id: Option<String>,
    made_room: bool,
}

#[derive(Debug)]
struct Word {
    write: Write,
    /// Its last try, and since when an answer is awaited.
    flight: Option<(u64, u64)>,
}

fn record(id: &WorkerId, boots: u32) -> Worker {
    Worker {
        id: id.clone(),
        address: String::new(),
        boot_id: boots.to_string(),
        device: String::new(),
        memory: 0,
        draining: false,
        serves: None,
    }
}

fn entries(worker: Worker, ready: &BTreeSet<Id>) -> Entries {
    let of = |(model, digest): &Id| {
        let ready = Ready { boot_id: worker.boot_id.clone(), load_ms: 0, golden_cosine: None };
        (name(model), name(digest), ready)
    };
    let ready = ready.iter().map(of).collect();
    Registration { worker, ready }.entries()
}

impl SimWorker {
    /// A process that has `loaded` checkpoints.
    pub(super) fn new((id, room): (WorkerId, usize), boots: u32, loaded: BTreeSet<Id>, now: Instant) -> Self {
        let entries = entries(record(&id, boots), &loaded);
        Self {
            member: Member::new((Key::Worker(id.clone()), entries), now),
            id,
            is_up: true,
            room,
            boots,
            view: Arc::default(),
            loaded,
            withdrawn: BTreeMap::new(),
            loading: None,
            setbacks: BTreeMap::new(),
            words: BTreeMap::new(),
        }
    }

    /// Another process in its place, with nothing loaded. The keys of the one before stay until its lease is over.
    pub(super) fn restart(&mut self, now: Instant) {
        let is_cut_off = self.member.is_cut_off;
        *self = Self::new((self.id.clone(), self.room), self.boots + 1, BTreeSet::new(), now);
        self.member.is_cut_off = is_cut_off;
    }

    pub(super) fn reaches_etcd(&self) -> bool {
        self.is_up && !self.member.is_cut_off
    }

    /// Has etcd say what it has. Answers which version of what it says that is.
    fn say(&mut self, now: Instant, broken: Option<Rule>) -> u64 {
        let mut ready: BTreeSet<Id> =
            self.loaded.iter().filter(|id| !self.withdrawn.contains_key(*id)).cloned().collect();
        if broken == Some(Rule::ReadyIsLoaded) {
            ready.extend(self.loading.iter().map(|loading| loading.id.clone()));
        }
        self.member.say(entries(record(&self.id, self.boots), &ready), now)
    }

    /// Takes one step towards what is wanted: withdraws, takes that back, or begins to load. Answers what it did.
    pub(super) fn step(&mut self, now: Instant, broken: Option<Rule>) -> Option<String> {
        let wishes = desired(&self.view, &record(&self.id, self.boots));
        // Of a model that is not known everything stays.
        let is_surplus = |(model, digest): &Id| wishes.get(model).is_some_and(|of| !of.holds(digest));
        let loads = |of: &Desired, digest: &str| of.load.iter().any(|wish| wish.digest == digest);
        let is_wanted = |(model, digest): &Id| wishes.get(model).is_some_and(|of| loads(of, digest));
        if self.loading.as_ref().is_some_and(|loading| !is_wanted(&loading.id)) {
            let Loading { id, .. } = self.loading.take()?;
            self.setbacks.remove(&id);
        }
        let leaving = self.loaded.iter().find(|id| is_surplus(id) && !self.withdrawn.contains_key(*id));
        if let Some(id) = leaving.cloned() {
            self.withdrawn.insert(id.clone(), u64::MAX);
            let version = self.say(now, broken);
            let said = format!("withdraws {}", id.1);
            self.withdrawn.insert(id, version);
            return Some(said);
        }
        if let Some(id) = self.withdrawn.keys().find(|id| is_wanted(id)).cloned() {
            self.withdrawn.remove(&id);
            self.say(now, broken);
            return Some(format!("offers {} again", id.1));
        }
        let said = self.begin(&wishes)?;
        self.say(now, broken);
        Some(said)
    }

    /// Begins to load what is wanted most: one checkpoint at a time, the first of each model before the second of any.
    fn begin(&mut self, wishes: &BTreeMap<String, Desired>) -> Option<String> {
        if self.loading.is_some() {
            return None;
        }
        let ranked = wishes.iter().flat_map(|(model, of)| {
            of.load.iter().enumerate().map(move |(rank, wish)| (rank, model, of, wish))
        });
        let (_, model, of, wish) = ranked
            .filter(|(_, model, of, wish)| self.may_begin((model, of), wish))
            .min_by_key(|(rank, model, ..)| (*rank, *model))?;
        let id = (model.clone(), wish.digest.clone());
        let said = format!("loads {}", wish.digest);
        self.loading = Some(Loading { id, swap_id: wish.swap_id.clone(), made_room: of.make_room });
        Some(said)
    }

    fn may_begin(&self, (model, of): (&String, &Desired), wish: &Wish) -> bool {
        let id = (model.clone(), wish.digest.clone());
        let is_in_the_way =
            |(other, digest): &Id| other == model && !of.load.iter().any(|wish| wish.digest == *digest);
        let waits_for_room = of.make_room && self.loaded.iter().any(is_in_the_way);
        let is_refused = self.setbacks.get(&id).is_some_and(|setback| {
            let has_room = setback.reason == NackReason::Memory && of.make_room && !setback.made_room;
            setback.swap_id == wish.swap_id && !has_room
        });
        !self.loaded.contains(&id) && !waits_for_room && !is_refused
    }

    /// What is being loaded is there; or it is not, and why is to be said in etcd.
    pub(super) fn finish_loading(
        &mut self,
        is_broken: bool,
        now: Instant,
        broken: Option<Rule>,
    ) -> Option<String> {
        let Loading { id, swap_id, made_room } = self.loading.take()?;
        let of_model = self.loaded.iter().filter(|(model, _)| *model == id.0).count();
        let reason = match (is_broken, of_model < self.room) {
            (true, _) => NackReason::Golden,
            (false, false) => NackReason::Memory,
            (false, true) => {
                let said = format!("has loaded {}", id.1);
                self.succeed(id);
                self.say(now, broken);
                return Some(said);
            }
        };
        self.say(now, broken);
        let said = format!("cannot load {}: {reason}", id.1);
        let boot_id = self.boots.to_string();
        let nack = Nack { reason, detail: String::new(), swap_id: swap_id.clone(), boot_id, made_room };
        self.speak(&id, Write::Put(self.nack_key(&id), Record::Nack(nack)));
        self.setbacks.insert(id, Setback { reason, swap_id, made_room });
        Some(said)
    }

    fn succeed(&mut self, id: Id) {
        self.setbacks.remove(&id);
        if self.view.nacks.get(&id).is_some_and(|nacks| nacks.contains_key(&self.id)) {
            self.speak(&id, Write::Delete(self.nack_key(&id)));
        }
        self.loaded.insert(id);
    }

    /// Lets go of what is withdrawn, once etcd is known not to say any more that it is ready. With that there is room, and
    /// what was refused for want of it is tried again.
    pub(super) fn let_go(&mut self, broken: Option<Rule>) -> Option<String> {
        let written = if broken == Some(Rule::WithdrawnFirst) { u64::MAX - 1 } else { self.member.written() };
        let (id, _) = self.withdrawn.iter().find(|(_, version)| **version <= written)?;
        let id = id.clone();
        self.withdrawn.remove(&id);
        self.loaded.remove(&id);
        let short = self.setbacks.iter().filter(|(_, setback)| setback.reason == NackReason::Memory);
        for id in short.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.setbacks.remove(&id);
            self.speak(&id, Write::Delete(self.nack_key(&id)));
        }
        Some(format!("lets go of {}", id.1))
    }

    fn nack_key(&self, (model, digest): &Id) -> Key {
        Key::Nack { model: name(model), digest: name(digest), worker: self.id.clone() }
    }

    /// Says it until it was heard, or until there is another word on the same. What was said before may still arrive.
    fn speak(&mut self, id: &Id, write: Write) {
        self.words.insert(id.clone(), Word { write, flight: None });
    }

    /// What is to be said now.
    pub(super) fn unsaid(&self) -> Option<(Id, Transaction)> {
        let (id, word) = self.words.iter().find(|(_, word)| word.flight.is_none())?;
        Some((id.clone(), Transaction { when: Vec::new(), then: vec![word.write.clone()] }))
    }

    /// It is on its way.
    pub(super) fn said(&mut self, id: &Id, flight: (u64, u64)) {
        if let Some(word) = self.words.get_mut(id) {
            word.flight = Some(flight);
        }
    }

    /// What came of it: whether it was heard.
    pub(super) fn heard(&mut self, id: &Id, (flight, is_heard): (u64, bool)) {
        let is_it = |word: &&mut Word| word.flight.is_some_and(|(last, _)| last == flight);
        let Some(word) = self.words.get_mut(id).filter(is_it) else { return };
        word.flight = None;
        if is_heard {
            self.words.remove(id);
        }
    }

    /// Words whose last try was not answered since before `then`, each with that.
    pub(super) fn words_since_before(&self, then: u64) -> Vec<(Id, u64)> {
        let flights = self.words.iter().filter_map(|(id, word)| Some((id, word.flight?)));
        let old = flights.filter(|(_, (_, since))| *since <= then);
        old.map(|(id, (flight, _))| (id.clone(), flight)).collect()
    }

    /// An hour passes: what was refused may be tried again, and who has not heard of it does not need to.
    pub(super) fn forget_refusals(&mut self) {
        self.setbacks.clear();
        self.words.retain(|_, word| matches!(word.write, Write::Delete(_)));
    }

    /// Whether it stands by what etcd says it refused, or etcd is about to hear that it does not.
    pub(super) fn stands_by(&self, id: &Id) -> bool {
        self.setbacks.contains_key(id) || self.words.contains_key(id)
    }

    pub(super) fn has(&self, id: &Id) -> bool {
        self.is_up && self.loaded.contains(id)
    }
}
