//! Who is ready for a swap, who cannot be, and who makes room.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::makes_room;
use crate::keys::Key;
use crate::name::{Name, WorkerId};
use crate::record::{Alias, Nack, NackReason, Refusal, Swap, SwapMode, Worker};
use crate::transaction::Fact;
use crate::view::View;

/// Readiness that one transaction compares: etcd takes 128 comparisons.
const COMPARED: usize = 100;

/// The workers that may serve a model and are not about to leave, and how they are with a swap of it.
pub(super) struct Fleet<'a> {
    model: &'a Name,
    eligible: BTreeMap<&'a WorkerId, &'a Worker>,
    /// Ready with the new checkpoint.
    pub(super) ready: BTreeSet<&'a WorkerId>,
    /// Ready with the old one.
    pub(super) serving: BTreeSet<&'a WorkerId>,
    /// Not ready with the new one, and have said why.
    pub(super) refusing: BTreeMap<&'a WorkerId, &'a Nack>,
}

impl<'a> Fleet<'a> {
    /// How the workers of `view` are with `swap` of `model`.
    pub(super) fn of(view: &'a View, model: &'a Name, swap: &Swap) -> Self {
        let takes_part = |worker: &&Worker| !worker.draining && worker.may_serve(model.as_str());
        let eligible: BTreeMap<_, _> =
            view.workers.values().filter(takes_part).map(|worker| (&worker.id, worker)).collect();
        let with = |digest: &str| -> BTreeSet<&WorkerId> {
            let ready = view.ready.get(&(model.to_string(), digest.to_owned()));
            ready.into_iter().flatten().filter(|id| eligible.contains_key(id)).collect()
        };
        let ready = with(&swap.to);
        let serving = swap.from.as_deref().map(with).unwrap_or_default();
        let alias = view.aliases.get(model.as_str());
        let nacks = view.nacks.get(&(model.to_string(), swap.to.clone()));
        let counts = |(id, nack): &(&WorkerId, &Nack)| {
            !ready.contains(id) && eligible.get(id).is_some_and(|worker| counts(nack, swap, alias, worker))
        };
        let refusing = nacks.into_iter().flatten().filter(counts).collect();
        Self { model, eligible, ready, serving, refusing }
    }

    /// How many workers take part in the swap.
    pub(super) fn size(&self) -> usize {
        self.eligible.len()
    }

    /// How many workers serve the name now; of a new name or one that nobody serves, how many would.
    pub(super) fn served_by(&self) -> usize {
        if self.serving.is_empty() { self.size() } else { self.serving.len() }
    }

    /// Who is neither ready nor has said why not.
    pub(super) fn working(&self) -> impl Iterator<Item = &'a WorkerId> {
        let undecided = |id: &&&WorkerId| !self.ready.contains(**id) && !self.refusing.contains_key(**id);
        self.eligible.keys().filter(undecided).copied()
    }

    /// Who could if the old checkpoint made room.
    pub(super) fn short_of_memory(&self) -> BTreeSet<&'a WorkerId> {
        let is_short =
            |(_, nack): &(&&WorkerId, &&Nack)| nack.reason == NackReason::Memory && !nack.made_room;
        self.refusing.iter().filter(is_short).map(|(id, _)| *id).collect()
    }

    /// Who has no room for the new one, whether or not the old one made some.
    pub(super) fn out_of_memory(&self) -> BTreeSet<&'a WorkerId> {
        let is_out = |(_, nack): &(&&WorkerId, &&Nack)| nack.reason == NackReason::Memory;
        self.refusing.iter().filter(is_out).map(|(id, _)| *id).collect()
    }

    /// Who cannot, room or not.
    pub(super) fn incapable(&self) -> usize {
        self.refusing.len() - self.short_of_memory().len()
    }

    /// What those who cannot have said.
    pub(super) fn refusals(&self) -> Vec<Refusal> {
        let refusal = |(id, nack): (&&WorkerId, &&Nack)| Refusal {
            worker: (*id).clone(),
            reason: nack.reason,
            detail: nack.detail.clone(),
        };
        self.refusing.iter().map(refusal).collect()
    }

    /// Those who have not said anything.
    pub(super) fn late(&self) -> impl Iterator<Item = Refusal> {
        self.working().map(|id| Refusal {
            worker: id.clone(),
            reason: NackReason::Timeout,
            detail: "was not ready in time".to_owned(),
        })
    }

    /// That as many of those who are ready with the new checkpoint still are as must be.
    pub(super) fn still_ready(&self, swap: &Swap) -> Vec<Fact> {
        self.still(&self.ready, &swap.to, swap.min_ready)
    }

    /// That `least` of those who serve the old checkpoint and are not in `wave` still do.
    fn still_serving(&self, from: &str, (wave, least): (&BTreeSet<WorkerId>, u32)) -> Vec<Fact> {
        let serving = self.serving.iter().filter(|id| !wave.contains(**id)).copied().collect();
        self.still(&serving, from, least)
    }

    fn still(&self, workers: &BTreeSet<&WorkerId>, digest: &str, least: u32) -> Vec<Fact> {
        let least = usize::try_from(least).unwrap_or(usize::MAX).min(COMPARED);
        let digest = Name::parse(digest).ok();
        let present = |(worker, digest): (&&WorkerId, &Name)| {
            let worker = (*worker).clone();
            Fact::Present(Key::Ready { model: self.model.clone(), digest: digest.clone(), worker })
        };
        workers
            .iter()
            .take(least)
            .filter_map(|worker| digest.as_ref().map(|d| (worker, d)))
            .map(present)
            .collect()
    }
}

/// Whether a refusal of `swap` is about it and about the process that `worker` is now, and not mended since.
fn counts(nack: &Nack, swap: &Swap, alias: Option<&Alias>, worker: &Worker) -> bool {
    let mended = nack.reason == NackReason::Memory && !nack.made_room && makes_room(swap, alias, worker);
    nack.swap_id.as_deref() == Some(&swap.swap_id) && nack.boot_id == worker.boot_id && !mended
}

/// What becomes of a swap whose checkpoints do not fit beside each other.
pub(super) enum Waves {
    /// It goes on like this, as long as enough workers keep the old checkpoint.
    Wider(Box<Swap>, Vec<Fact>),
    /// It goes on as it does.
    Same,
    /// Too few workers can be spared.
    Hopeless,
}

/// Puts as many of those who are short of memory into the wave as can be spared.
///
/// While the wave makes room, at least half of the workers, rounded up, serve the old checkpoint; so at the commit no
/// more can be required to be ready than the rest, and those who hold both.
pub(super) fn widen(swap: &Swap, fleet: &Fleet<'_>) -> Waves {
    let Some(from) = swap.from.as_deref() else { return Waves::Hopeless };
    let floor = match swap.mode {
        SwapMode::Beside => count(fleet.served_by().div_ceil(2)),
        SwapMode::Waves => swap.floor,
    };
    let mut wave = swap.wave.clone();
    let short = fleet.short_of_memory();
    for worker in &short {
        let stays = |id: &&&WorkerId| !wave.contains(**id) && *id != worker;
        if count(fleet.serving.iter().filter(stays).count()) >= floor {
            wave.insert((*worker).clone());
        }
    }
    let left_out = short.iter().filter(|id| !wave.contains(**id)).count();
    let attainable = count(fleet.size() - left_out);
    if attainable < swap.plan.min_ready.unwrap_or(1) {
        return Waves::Hopeless;
    }
    let min_ready = swap.min_ready.min(attainable);
    if swap.mode == SwapMode::Waves && wave == swap.wave && min_ready == swap.min_ready {
        return Waves::Same;
    }
    let rests_on = fleet.still_serving(from, (&wave, floor));
    let swap = Swap { mode: SwapMode::Waves, wave, floor, min_ready, ..swap.clone() };
    Waves::Wider(Box::new(swap), rests_on)
}

/// After the commit of `swap`: the wave with those who serve the old checkpoint, have no room for the new one, and can
/// be spared, and what that rests on; none where there is nobody new.
///
/// Nobody asks for the old checkpoint any more but calls that began before; a rollback would. So at least half of those
/// who had it, rounded up, keep it.
pub(super) fn stragglers(swap: &Swap, fleet: &Fleet<'_>) -> Option<(BTreeSet<WorkerId>, Vec<Fact>)> {
    let from = swap.from.as_deref()?;
    let mut wave = swap.wave.clone();
    let keep = |wave: &BTreeSet<WorkerId>| fleet.serving.iter().filter(|id| !wave.contains(**id)).count();
    let floor = (keep(&wave) + swap.wave.len()).div_ceil(2).max(1);
    let short = fleet.short_of_memory();
    for worker in short.iter().filter(|id| fleet.serving.contains(**id)) {
        if !wave.contains(*worker) && keep(&wave) > floor {
            wave.insert((*worker).clone());
        }
    }
    if wave == swap.wave {
        return None;
    }
    let rests_on = fleet.still_serving(from, (&wave, count(floor)));
    Some((wave, rests_on))
}

/// A number of workers.
pub(super) fn count(workers: usize) -> u32 {
    u32::try_from(workers).unwrap_or(u32::MAX)
}
