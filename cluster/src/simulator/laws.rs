//! What holds whatever happens.

use std::collections::BTreeMap;

use super::tally::Met;
use super::world::{Model, World};
use crate::keys::Key;
use crate::name::{GatewayId, Name};
use crate::record::{Alias, Record, Swap, SwapMode, SwapState};
use crate::transaction::{Transaction, Write};

/// A law that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("committed {digest} with {ready} workers ready, and {wanted} must be")]
    TooFewReady { digest: String, ready: usize, wanted: usize },
    #[error("committed {digest} with {ready} workers ready, and {counted} were to be when it was taken up")]
    BelowHalf { digest: String, ready: usize, counted: u32 },
    #[error("a write of a leader elected at {of} took effect, and the leader is {now:?}")]
    NotTheLeader { of: i64, now: Option<i64> },
    #[error("the name went from {from} to {to} without a new epoch")]
    EpochStays { from: String, to: String },
    #[error("the epoch went from {from} to {to}")]
    EpochJumps { from: u64, to: u64 },
    #[error("epoch {epoch} has another meaning by now")]
    OtherMeaning { epoch: u64 },
    #[error("answered by {digest} at epoch {epoch}, which the name did not mean")]
    NotMeant { digest: String, epoch: u64 },
    #[error("answered by {got}, and {asked} was insisted on")]
    NotAsked { asked: String, got: String },
    #[error("client {client} was answered by {first} and by {then} at epoch {epoch}")]
    Split { client: usize, epoch: u64, first: String, then: String },
    #[error("a client saw epoch {seen}, then {got}")]
    EpochFell { seen: u64, got: u64 },
    #[error("let go of {digest}, and gateway {gateway} has a call on it")]
    InUse { digest: String, gateway: String },
    #[error("{serving} workers serve {digest}, and {floor} must while others make room")]
    BelowTheFloor { digest: String, serving: usize, floor: usize },
    #[error("{digests:?} are loaded for one name")]
    TooManyLoaded { digests: Vec<String> },
    #[error("all is well, and nobody leads")]
    NobodyLeads,
    #[error("all is well, and the swap stays {state}")]
    NeverEnds { state: String },
    #[error("all is well, and {left:?} are never let go")]
    NeverLeft { left: Vec<String> },
    #[error("all is well, and nobody serves {digest}")]
    NobodyServes { digest: String },
    #[error("all is well, and worker {worker} does not follow to {digest}")]
    Behind { worker: String, digest: String },
    #[error("all is well, and {calls} calls are not answered")]
    NotAnswered { calls: usize },
    #[error("worker {worker} is said to be ready with {digest}, which it has not loaded")]
    NotLoaded { worker: String, digest: String },
}

/// Each epoch that there was, and what the name meant.
pub(super) type Meanings = BTreeMap<u64, Alias>;

/// Holds that the name meant `digest` at `epoch`, for some callers at least.
pub(super) fn legitimate(meanings: &Meanings, digest: &str, epoch: u64) -> Result<(), Broken> {
    let canary = |alias: &Alias| alias.canary.as_ref().is_some_and(|canary| canary.digest == digest);
    match meanings.get(&epoch) {
        Some(alias) if alias.digest == digest || canary(alias) => Ok(()),
        _ => Err(Broken::NotMeant { digest: digest.to_owned(), epoch }),
    }
}

/// What of a name and its swap a transaction found, to be held against what it left.
pub(super) struct Before {
    model: usize,
    alias: Option<Alias>,
    swap: Option<Swap>,
    leader: Option<i64>,
    /// Who is ready with what.
    ready: Vec<(String, String)>,
}

impl Before {
    /// Who was ready with `digest`: worker by worker.
    fn ready_with<'a>(&'a self, digest: &'a str) -> impl Iterator<Item = &'a (String, String)> {
        self.ready.iter().filter(move |(with, _)| with == digest)
    }
}

impl World {
    /// The number of the model of this name.
    pub(super) fn number_of(&self, name: &Name) -> usize {
        self.models.iter().position(|model| model.name == *name).expect("one of the models")
    }

    /// What `transaction`, which is about one model, if any, is about to find.
    pub(super) fn before(&self, transaction: &Transaction) -> Before {
        let model = transaction.then.iter().find_map(|write| match write {
            Write::Put(Key::Alias(name) | Key::Swap(name), _) => Some(self.number_of(name)),
            _ => None,
        });
        let leader = self.etcd.entry(&Key::Leader).map(|entry| entry.revision.created);
        let Some(model) = model else {
            return Before { model: 0, alias: None, swap: None, leader, ready: Vec::new() };
        };
        let Model { name, alias_key, swap_key, .. } = &self.models[model];
        let ready = |key: &Key| match key {
            Key::Ready { model, digest, worker } if model == name => {
                Some((digest.to_string(), worker.to_string()))
            }
            _ => None,
        };
        Before {
            model,
            alias: self.etcd.alias(alias_key).cloned(),
            swap: self.etcd.swap(swap_key).cloned(),
            leader,
            ready: self.etcd.keys().filter_map(ready).collect(),
        }
    }

    /// Holds the laws to `transaction`, which has just taken effect, by a leader elected at `fence` or by somebody else.
    pub(super) fn check(
        &mut self,
        before: &Before,
        transaction: &Transaction,
        fence: Option<i64>,
    ) -> Result<(), Broken> {
        if let Some(of) = fence.filter(|of| Some(*of) != before.leader) {
            return Err(Broken::NotTheLeader { of, now: before.leader });
        }
        for write in &transaction.then {
            match write {
                Write::Put(Key::Alias(_), Record::Alias(alias)) => self.check_alias(before, alias)?,
                Write::Put(Key::Swap(_), Record::Swap(swap)) => self.check_swap(before, swap)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn check_alias(&mut self, before: &Before, new: &Alias) -> Result<(), Broken> {
        let meanings = &mut self.models[before.model].meanings;
        let Some(old) = &before.alias else {
            meanings.insert(new.epoch, new.clone());
            return Ok(());
        };
        let answers = |alias: &Alias| (alias.digest.clone(), alias.canary.clone());
        if answers(old) != answers(new) && new.epoch == old.epoch {
            return Err(Broken::EpochStays { from: old.digest.clone(), to: new.digest.clone() });
        }
        if new.epoch != old.epoch && new.epoch != old.epoch + 1 {
            return Err(Broken::EpochJumps { from: old.epoch, to: new.epoch });
        }
        if meanings.get(&new.epoch).is_some_and(|meant| answers(meant) != answers(new)) {
            return Err(Broken::OtherMeaning { epoch: new.epoch });
        }
        meanings.insert(new.epoch, new.clone());
        let kept = new.keeps();
        let gone: Vec<&str> = old.keeps().into_iter().filter(|digest| !kept.contains(digest)).collect();
        let others = self.models.iter().filter(|model| model.name != self.models[before.model].name);
        let is_on_trial =
            |model: &Model| self.etcd.alias(&model.alias_key).is_some_and(|alias| alias.canary.is_some());
        let during_trial = others.into_iter().any(is_on_trial);
        self.tally.count_if(during_trial && !gone.is_empty(), Met::LetGoDuringTrial);
        gone.into_iter().try_for_each(|digest| self.check_unused(before.model, digest))
    }

    /// Nobody who is registered has a call on what is let go, and of those who are not, nobody has one that began while
    /// it was. A call that insists on it may come at any time, and is kept once etcd was told of it.
    fn check_unused(&self, model: usize, digest: &str) -> Result<(), Broken> {
        let uses = |call: &&super::calls::Call| {
            let vanished = self.vanished.get(&call.gateway).copied();
            let counts = !call.insists || self.is_said_to_use(&call.gateway, (model, digest));
            call.model == model
                && call.digest == digest
                && counts
                && vanished.is_none_or(|since| call.since <= since)
        };
        match self.calls.iter().find(uses) {
            Some(call) => Err(Broken::InUse { digest: digest.to_owned(), gateway: call.gateway.to_string() }),
            None => Ok(()),
        }
    }

    fn is_said_to_use(&self, gateway: &GatewayId, (model, digest): (usize, &str)) -> bool {
        let key = Key::Seen { model: self.models[model].name.clone(), gateway: gateway.clone() };
        let is_busy = |record: &Record| matches!(record, Record::Seen(seen) if seen.busy.contains(digest));
        self.etcd.entry(&key).is_some_and(|entry| is_busy(&entry.record))
    }

    /// Enough are ready with `new`: as many as it says and was asked for, and half of what was counted when it was taken
    /// up, whatever became of that since.
    fn check_enough(&mut self, before: &Before, new: &Swap) -> Result<(), Broken> {
        let (digest, ready) = (new.to.clone(), before.ready_with(&new.to).count());
        let wanted = new.min_ready.max(new.plan.min_ready.unwrap_or(1)).max(1) as usize;
        if ready < wanted {
            return Err(Broken::TooFewReady { digest, ready, wanted });
        }
        let counted = self.models[before.model].counted.as_ref().filter(|(id, _)| *id == new.swap_id);
        let counted = counted.map_or(0, |(_, counted)| *counted);
        // In waves no more can be than make room, and hold both.
        if new.plan.min_ready.is_none() && new.mode == SwapMode::Beside {
            if ready < counted.div_ceil(2) as usize {
                return Err(Broken::BelowHalf { digest, ready, counted });
            }
            self.tally.count_if(ready < counted as usize, Met::FleetShrank);
        }
        Ok(())
    }

    fn check_swap(&mut self, before: &Before, new: &Swap) -> Result<(), Broken> {
        let old = before.swap.as_ref().filter(|old| old.swap_id == new.swap_id);
        let state = old.map(|old| old.state);
        self.tally.count_swap(state, new);
        if new.state == SwapState::Committed && state != Some(SwapState::Committed) {
            self.check_enough(before, new)?;
        }
        let is_wider = old.is_none_or(|old| old.wave.len() < new.wave.len());
        if new.mode == SwapMode::Waves && new.state == SwapState::Preparing && is_wider {
            let from = new.from.clone().unwrap_or_default();
            let in_wave = |worker: &str| new.wave.iter().any(|id| id.as_str() == worker);
            let serving = before.ready_with(&from).filter(|(_, worker)| !in_wave(worker)).count();
            if serving < new.floor as usize {
                return Err(Broken::BelowTheFloor { digest: from, serving, floor: new.floor as usize });
            }
        }
        if new.mode == SwapMode::Beside && new.state == SwapState::Committed && is_wider {
            self.check_stragglers(before, new)?;
        }
        if new.state == SwapState::Preparing && state == Some(SwapState::Requested) {
            self.models[before.model].counted = Some((new.swap_id.clone(), new.min_ready));
            Self::check_two_at_most(before, new)?;
        }
        Ok(())
    }

    /// Whoever follows after the commit leaves somebody to roll back to.
    fn check_stragglers(&mut self, before: &Before, new: &Swap) -> Result<(), Broken> {
        if new.wave.is_empty() {
            return Ok(());
        }
        self.tally.count(Met::Straggler);
        let digest = new.from.clone().unwrap_or_default();
        let in_wave = |worker: &str| new.wave.iter().any(|id| id.as_str() == worker);
        let serving = before.ready_with(&digest).filter(|(_, worker)| !in_wave(worker)).count();
        if serving == 0 { Err(Broken::BelowTheFloor { digest, serving, floor: 1 }) } else { Ok(()) }
    }

    /// A swap is taken up only when nothing is kept for the name but what it means and is to mean.
    fn check_two_at_most(before: &Before, new: &Swap) -> Result<(), Broken> {
        let keeps = before.alias.iter().flat_map(|alias| alias.keeps());
        let mut kept: Vec<String> = keeps.map(ToOwned::to_owned).chain([new.to.clone()]).collect();
        kept.sort();
        kept.dedup();
        if kept.len() > 2 { Err(Broken::TooManyLoaded { digests: kept }) } else { Ok(()) }
    }

    /// Whoever says that it is ready, and lives, has it: calls are sent to whoever says so, and swaps committed.
    pub(super) fn check_readiness(&mut self) -> Result<(), Broken> {
        if std::mem::replace(&mut self.checked, self.etcd.revision()) == self.etcd.revision() {
            return Ok(());
        }
        for (key, entry) in self.etcd.entries() {
            let (Key::Ready { model, digest, worker }, Record::Ready(ready)) = (key, &entry.record) else {
                continue;
            };
            let speaks = |other: &&super::worker::SimWorker| {
                other.id == *worker && other.is_up && other.boots.to_string() == ready.boot_id
            };
            let id = (model.to_string(), digest.to_string());
            if self.workers.iter().find(speaks).is_some_and(|worker| !worker.has(&id)) {
                return Err(Broken::NotLoaded { worker: worker.to_string(), digest: id.1 });
            }
        }
        Ok(())
    }
}
