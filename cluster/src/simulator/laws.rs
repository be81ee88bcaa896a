//! What holds whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{MODEL, World, name};
use crate::keys::Key;
use crate::name::GatewayId;
use crate::record::{Alias, Record, Swap, SwapMode, SwapState};
use crate::transaction::{Transaction, Write};
use crate::view::View;

/// A law that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("committed {digest} with {ready} workers ready, and {wanted} must be")]
    TooFewReady { digest: String, ready: usize, wanted: usize },
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

/// What of the name and its swap a transaction found, to be held against what it left.
pub(super) struct Before {
    alias: Option<Alias>,
    swap: Option<Swap>,
    leader: Option<i64>,
    ready: Vec<(String, String)>,
}

impl Before {
    /// Who was ready with `digest`: worker by worker.
    fn ready_with<'a>(&'a self, digest: &'a str) -> impl Iterator<Item = &'a (String, String)> {
        self.ready.iter().filter(move |(with, _)| with == digest)
    }
}

impl World {
    pub(super) fn before(&self) -> Before {
        let ready = |key: &Key| match key {
            Key::Ready { digest, worker, .. } => Some((digest.to_string(), worker.to_string())),
            _ => None,
        };
        Before {
            alias: self.etcd.alias(&self.alias_key).cloned(),
            swap: self.etcd.swap(&self.swap_key).cloned(),
            leader: self.etcd.entry(&Key::Leader).map(|entry| entry.revision.created),
            ready: self.etcd.keys().filter_map(ready).collect(),
        }
    }

    /// Holds the laws to `transaction`, which has just taken effect, by a leader elected at `fence` or by an operator.
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
        let Some(old) = &before.alias else {
            self.meanings.insert(new.epoch, new.clone());
            return Ok(());
        };
        let answers = |alias: &Alias| (alias.digest.clone(), alias.canary.clone());
        if answers(old) != answers(new) && new.epoch == old.epoch {
            return Err(Broken::EpochStays { from: old.digest.clone(), to: new.digest.clone() });
        }
        if new.epoch != old.epoch && new.epoch != old.epoch + 1 {
            return Err(Broken::EpochJumps { from: old.epoch, to: new.epoch });
        }
        if self.meanings.get(&new.epoch).is_some_and(|meant| answers(meant) != answers(new)) {
            return Err(Broken::OtherMeaning { epoch: new.epoch });
        }
        self.meanings.insert(new.epoch, new.clone());
        let kept = new.keeps();
        let gone: Vec<&str> = old.keeps().into_iter().filter(|digest| !kept.contains(digest)).collect();
        gone.into_iter().try_for_each(|digest| self.check_unused(digest))
    }

    /// Nobody who is registered has a call on what is let go, and of those who are not, nobody has one that began while
    /// it was. A call that insists on it may come at any time, and is kept once etcd was told of it.
    fn check_unused(&self, digest: &str) -> Result<(), Broken> {
        let uses = |call: &&super::calls::Call| {
            let vanished = self.vanished.get(&call.gateway).copied();
            let counts = !call.insists || self.is_said_to_use(&call.gateway, digest);
            call.digest == digest && counts && vanished.is_none_or(|since| call.since <= since)
        };
        match self.calls.iter().find(uses) {
            Some(call) => Err(Broken::InUse { digest: digest.to_owned(), gateway: call.gateway.to_string() }),
            None => Ok(()),
        }
    }

    fn is_said_to_use(&self, gateway: &GatewayId, digest: &str) -> bool {
        let key = Key::Seen { model: name(MODEL), gateway: gateway.clone() };
        let is_busy = |record: &Record| matches!(record, Record::Seen(seen) if seen.busy.contains(digest));
        self.etcd.entry(&key).is_some_and(|entry| is_busy(&entry.record))
    }

    /// How many must be ready for `new` to be committed, by what was asked for and by what was counted when it was taken
    /// up, whatever became of that since.
    fn must_be_ready(&self, new: &Swap) -> usize {
        let of_swap = |(id, _): &&(String, u32)| *id == new.swap_id;
        let counted = self.counted.as_ref().filter(of_swap).map_or(0, |(_, counted)| *counted);
        let least = match (new.plan.min_ready, new.mode) {
            (Some(planned), _) => planned,
            (None, SwapMode::Beside) => counted.div_ceil(2),
            // No more can be than make room, and hold both.
            (None, SwapMode::Waves) => 1,
        };
        new.min_ready.max(least).max(1) as usize
    }

    fn check_swap(&mut self, before: &Before, new: &Swap) -> Result<(), Broken> {
        let old = before.swap.as_ref().filter(|old| old.swap_id == new.swap_id);
        let state = old.map(|old| old.state);
        self.tally.count(state, new);
        if new.state == SwapState::Committed && state != Some(SwapState::Committed) {
            let (ready, wanted) = (before.ready_with(&new.to).count(), self.must_be_ready(new));
            if ready < wanted {
                return Err(Broken::TooFewReady { digest: new.to.clone(), ready, wanted });
            }
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
            self.counted = Some((new.swap_id.clone(), new.min_ready));
            Self::check_two_at_most(before, new)?;
        }
        Ok(())
    }

    /// Whoever follows after the commit leaves somebody to roll back to.
    fn check_stragglers(&mut self, before: &Before, new: &Swap) -> Result<(), Broken> {
        if new.wave.is_empty() {
            return Ok(());
        }
        self.tally.stragglers += 1;
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

    /// Whoever is said to be ready, and is up, has it: calls are sent to whoever is said to be.
    pub(super) fn check_readiness(&mut self) -> Result<(), Broken> {
        let view = self.etcd.view();
        for ((_, digest), workers) in &view.ready {
            for id in workers {
                let has = self.workers.iter().any(|worker| {
                    // A process that died is said to be ready until its lease is over.
                    worker.id == *id && (!worker.is_up || worker.lease.is_none() || worker.has(digest))
                });
                if !has {
                    return Err(Broken::NotLoaded { worker: id.to_string(), digest: digest.clone() });
                }
            }
        }
        Ok(())
    }

    /// Whether more workers than half have what the name meant before its last swap, which somebody may want back.
    fn can_be_spared(&self, view: &View, alias: &Alias) -> bool {
        let Some(prev) = &alias.prev else { return false };
        let last = view.swaps.get(MODEL).filter(|swap| swap.state == SwapState::Committed);
        let is_last = last.is_some_and(|swap| swap.to == alias.digest && swap.from.as_ref() == Some(prev));
        let keep = view.ready.get(&(MODEL.to_owned(), prev.clone())).map_or(0, BTreeSet::len);
        is_last && keep > self.workers.len().div_ceil(2)
    }

    /// What must be the case when nothing has gone wrong for a while.
    pub(super) fn check_calm(&mut self) -> Result<(), Broken> {
        let view = self.etcd.view();
        let leads = view.leader.as_ref().is_some_and(|leader| {
            self.gateways.iter().any(|gateway| gateway.id == leader.gateway && gateway.is_up)
        });
        if !leads {
            return Err(Broken::NobodyLeads);
        }
        if let Some(swap) = view.swaps.get(MODEL).filter(|swap| swap.is_under_way()) {
            return Err(Broken::NeverEnds { state: format!("{:?} ({:?})", swap.state, swap.mode) });
        }
        let Some(alias) = view.aliases.get(MODEL) else { return Ok(()) };
        if !alias.leaving.is_empty() {
            return Err(Broken::NeverLeft { left: alias.leaving.iter().cloned().collect() });
        }
        if !view.ready.contains_key(&(MODEL.to_owned(), alias.digest.clone())) {
            return Err(Broken::NobodyServes { digest: alias.digest.clone() });
        }
        let serving = &view.ready[&(MODEL.to_owned(), alias.digest.clone())];
        // Where what the name meant before is kept for a rollback, who has no room for both keeps that if it is needed.
        let spared = self.can_be_spared(&view, alias);
        let follows = |id| serving.contains(id) || (alias.prev.is_some() && !spared);
        if let Some(behind) = self.workers.iter().find(|worker| !follows(&worker.id)) {
            return Err(Broken::Behind { worker: behind.id.to_string(), digest: alias.digest.clone() });
        }
        let calls = self.calls.len();
        if calls > 0 { Err(Broken::NotAnswered { calls }) } else { Ok(()) }
    }
}
