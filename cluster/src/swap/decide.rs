//! What the leader does next about each model. Pure, and level-triggered: it looks at a whole view, every time anew.

use std::collections::BTreeSet;

use super::memory::{Memory, Moment};
use super::moves::Move;
use super::prepare::{Fleet, Waves, count, stragglers, widen};
use super::release::{SwapSettings, released};
use super::room::{to_make_room, why_not_beside};
use super::step::Standing;
use super::trial::{Verdict, judge};
use crate::name::Name;
use crate::record::{Alias, Comparison, Swap, SwapMode, SwapState};
use crate::view::View;

/// The next move of each model of `view` that has one, and how the model stands.
pub(super) fn decide<'a>(
    view: &'a View,
    memory: &Memory,
    now: Moment,
    settings: SwapSettings,
) -> Vec<(Standing<'a>, Move)> {
    let models: BTreeSet<&String> = view.aliases.keys().chain(view.swaps.keys()).collect();
    models
        .into_iter()
        // A name that could be no key was read from none.
        .filter_map(|model| Name::parse(model.as_str()).ok())
        .filter_map(|model| {
            let case = Case { view, memory, now, settings, standing: Standing::of(view, model) };
            let next = case.next()?;
            Some((case.standing, next))
        })
        .collect()
}

/// One model, and all that its next move may rest on.
struct Case<'v, 'm> {
    view: &'v View,
    memory: &'m Memory,
    now: Moment,
    settings: SwapSettings,
    standing: Standing<'v>,
}

impl<'v> Case<'v, '_> {
    fn next(&self) -> Option<Move> {
        if self.view.overtaken.contains_key(self.model()) {
            // Once the name is put back there is something to rest on again.
            return None;
        }
        let of_swap = self.standing.swap.and_then(|swap| match swap.state {
            SwapState::Requested => self.requested(swap),
            SwapState::Preparing => self.preparing(swap),
            SwapState::Trial => self.trial(swap),
            SwapState::Committed => self.committed(swap),
            SwapState::Retired | SwapState::Aborted | SwapState::RolledBack => self.over(swap),
        });
        of_swap.or_else(|| self.let_go_of_what_leaves())
    }

    /// Takes the swap up, once nothing is left of the one before.
    fn requested(&self, swap: &Swap) -> Option<Move> {
        if self.is_overtaken(swap) {
            return Some(Move::abort(swap, "the name was moved meanwhile", self.now.unix_ms));
        }
        match self.before() {
            Some((alias, prev)) if self.is_to_go(swap, prev) => self.make_way(swap, (alias, prev)),
            Some(_) | None => self.prepare_when_nothing_leaves(swap),
        }
    }

    /// What answered somebody before the last swap counts among what is loaded until it is let go.
    fn prepare_when_nothing_leaves(&self, swap: &Swap) -> Option<Move> {
        let alias = self.standing.alias;
        let mut leaving = alias.into_iter().flat_map(|alias| alias.leaving.iter().map(move |it| (alias, it)));
        match leaving.find(|(_, digest)| **digest != swap.to) {
            Some((alias, digest)) if self.is_late(swap) => Some(self.held_up(swap, (alias, digest))),
            Some(_) => None,
            None => Some(self.prepare(swap)),
        }
    }

    /// Lets go of what the name meant before the last swap, so that never more than two are loaded for a swap.
    fn make_way(&self, swap: &Swap, (alias, prev): (&Alias, &str)) -> Option<Move> {
        match released(self.view, (&self.standing.model, alias, prev), self.quiet()) {
            Ok(facts) => Some(Move::let_go((alias, prev), Some(swap), facts, self.now.unix_ms)),
            Err(_) if self.is_late(swap) => Some(self.held_up(swap, (alias, prev))),
            Err(_) => None,
        }
    }

    /// Gives the swap up, and says what keeps `older`, from before the last swap, from being let go.
    fn held_up(&self, swap: &Swap, (alias, older): (&Alias, &str)) -> Move {
        let held = released(self.view, (&self.standing.model, alias, older), self.quiet()).err();
        let why = held.map_or_else(|| " in time".to_owned(), |held| format!(": {held}"));
        let reason = format!("{older}, from before the last swap, could not be let go{why}");
        Move::abort(swap, reason, self.now.unix_ms)
    }

    fn prepare(&self, swap: &Swap) -> Move {
        let fleet = Fleet::of(self.view, &self.standing.model, swap);
        let min_ready = swap.plan.min_ready.unwrap_or_else(|| three_quarters(&fleet));
        Move::prepare(swap, (count(fleet.size()), min_ready), self.now.unix_ms)
    }

    /// Waits for workers, makes room for them, and goes on when enough are ready and the others had their chance.
    fn preparing(&self, swap: &Swap) -> Option<Move> {
        if self.is_overtaken(swap) {
            return Some(Move::abort(swap, "the name was moved meanwhile", self.now.unix_ms));
        }
        let fleet = Fleet::of(self.view, &self.standing.model, swap);
        let swap = &Swap { min_ready: wanted(swap, &fleet), ..swap.clone() };
        let enough = count(fleet.ready.len()) >= swap.min_ready;
        if !fleet.short_of_memory().is_empty() {
            match self.waves(swap, &fleet) {
                Waves::Wider(swap, rests_on) => return Some(Move::widen(&swap, rests_on, self.now.unix_ms)),
                Waves::Hopeless if !enough => {
                    return Some(self.give_up(swap, &fleet, why_not_beside(swap, self.is_pinned(swap))));
                }
                Waves::Hopeless | Waves::Same => {}
            }
        }
        if enough && (fleet.working().next().is_none() || self.is_half_over(swap)) {
            return Some(self.enough_are_ready(swap, &fleet));
        }
        self.is_hopeless(swap, &fleet).map(|reason| self.give_up(swap, &fleet, reason))
    }

    /// What becomes of the swap where some hold the old checkpoint and have no room for the new one.
    fn waves(&self, swap: &Swap, fleet: &Fleet<'_>) -> Waves {
        if self.is_pinned(swap) { Waves::Hopeless } else { widen(swap, fleet) }
    }

    /// Whether the old checkpoint is kept whatever happens.
    fn is_pinned(&self, swap: &Swap) -> bool {
        let from = swap.from.clone().unwrap_or_default();
        self.view.pins.contains_key(&(self.model().to_owned(), from))
    }

    /// Why there will not be enough workers, where that is sure.
    fn is_hopeless(&self, swap: &Swap, fleet: &Fleet<'_>) -> Option<String> {
        let incapable = count(fleet.incapable());
        let capable = swap.workers.max(count(fleet.size())).saturating_sub(incapable);
        let (ready, min_ready) = (fleet.ready.len(), swap.min_ready);
        if self.is_late(swap) {
            Some(format!("{ready} of {min_ready} workers were ready in time"))
        } else if incapable > 0 && capable < min_ready {
            Some(format!("{min_ready} workers must be ready, and {incapable} cannot be"))
        } else {
            None
        }
    }

    /// Aborts, and says why each worker was not ready, and what would make room where it is that.
    fn give_up(&self, swap: &Swap, fleet: &Fleet<'_>, mut reason: String) -> Move {
        if let Some(hint) = to_make_room(self.view, self.model(), fleet) {
            reason = format!("{reason}; {hint}");
        }
        let mut refusals = fleet.refusals();
        if self.is_late(swap) {
            refusals.extend(fleet.late());
        }
        Move::abort(&Swap { refusals, ..swap.clone() }, reason, self.now.unix_ms)
    }

    /// Begins the trial if there is to be one, else commits.
    fn enough_are_ready(&self, swap: &Swap, fleet: &Fleet<'_>) -> Move {
        let wants_trial = swap.plan.canary.is_some() || swap.plan.shadow_per_mille > 0;
        match self.standing.alias {
            Some(alias) if wants_trial && !swap.commit_requested => {
                // As it was counted: it is lowered anew for those that die during the trial.
                let min_ready = self.standing.swap.map_or(swap.min_ready, |swap| swap.min_ready);
                let counted = Swap { min_ready, ..swap.clone() };
                Move::begin_trial(alias, &counted, fleet.still_ready(swap), self.now.unix_ms)
            }
            alias => Move::commit(alias, swap, fleet, self.now.unix_ms),
        }
    }

    /// Ends the trial when it has shown enough.
    fn trial(&self, swap: &Swap) -> Option<Move> {
        let sample = self.memory.sample(self.model());
        let fleet = Fleet::of(self.view, &self.standing.model, swap);
        let (comparison, min_ready) = (Some(Comparison::from(&sample)), wanted(swap, &fleet));
        let tried = Swap { min_ready, comparison, ..swap.clone() };
        let end = |reason: &str| Some(Move::end_trial(self.standing.alias, &tried, reason, self.now.unix_ms));
        if self.is_overtaken(swap) {
            return end("the name was moved meanwhile");
        }
        if swap.plan.canary.is_some() && fleet.ready.is_empty() {
            // Its callers are answered by nobody until the trial ends.
            return end("no worker is ready with the new checkpoint any more");
        }
        let since = swap.trial_since_unix_ms.unwrap_or(swap.requested_unix_ms);
        match judge(swap, &sample, &self.memory.lately(self.model()), (since, self.now.unix_ms)) {
            Verdict::GoOn => None,
            Verdict::Against(fault) => end(&fault.to_string()),
            Verdict::For => {
                if count(fleet.ready.len()) >= min_ready {
                    return Some(Move::commit(self.standing.alias, &tried, &fleet, self.now.unix_ms));
                }
                let too_few = || end("too few workers were still ready at its end");
                self.is_late(swap).then(too_few).flatten()
            }
        }
    }

    /// Lets go of what the name meant before, when it is time and no call can be left on it.
    fn committed(&self, swap: &Swap) -> Option<Move> {
        let Some(before) = self.before() else { return Some(Move::close(swap, self.now.unix_ms)) };
        if self.is_to_go(swap, before.1) { self.retire(swap, before) } else { self.follow(swap) }
    }

    /// Has workers follow that came in mid swap and have no room for both.
    fn follow(&self, swap: &Swap) -> Option<Move> {
        let (alias, prev) = self.before()?;
        let is_pinned = self.view.pins.contains_key(&(self.model().to_owned(), prev.to_owned()));
        if is_pinned || alias.digest != swap.to || swap.from.as_deref() != Some(prev) {
            return None;
        }
        let fleet = Fleet::of(self.view, &self.standing.model, swap);
        let (wave, rests_on) = stragglers(swap, &fleet)?;
        Some(Move::follow(&Swap { wave, ..swap.clone() }, rests_on, self.now.unix_ms))
    }

    /// Lets go of what the name meant before a swap that came to nothing, if somebody asked for it.
    fn over(&self, swap: &Swap) -> Option<Move> {
        self.before()
            .filter(|(_, prev)| self.is_to_go(swap, prev))
            .and_then(|before| self.retire(swap, before))
    }

    fn retire(&self, swap: &Swap, (alias, prev): (&Alias, &str)) -> Option<Move> {
        let facts = released(self.view, (&self.standing.model, alias, prev), self.quiet()).ok()?;
        Some(Move::let_go((alias, prev), Some(swap), facts, self.now.unix_ms))
    }

    /// Lets go of what answered somebody once and no call can be left on.
    fn let_go_of_what_leaves(&self) -> Option<Move> {
        let alias = self.standing.alias?;
        alias.leaving.iter().find_map(|digest| {
            let facts = released(self.view, (&self.standing.model, alias, digest), self.quiet()).ok()?;
            Some(Move::let_go((alias, digest), None, facts, self.now.unix_ms))
        })
    }

    /// Whether it is time for `prev` to be let go.
    fn is_to_go(&self, swap: &Swap, prev: &str) -> bool {
        swap.lets_go_from(prev).is_some_and(|from| self.now.unix_ms >= from)
    }

    /// Whether the name means something else than when the swap was asked for.
    fn is_overtaken(&self, swap: &Swap) -> bool {
        self.standing.alias.map(|alias| &alias.digest) != swap.from.as_ref()
    }

    fn is_late(&self, swap: &Swap) -> bool {
        self.now.unix_ms >= swap.deadline_unix_ms
    }

    fn is_half_over(&self, swap: &Swap) -> bool {
        let half = swap.deadline_unix_ms.saturating_sub(swap.requested_unix_ms) / 2;
        self.now.unix_ms >= swap.requested_unix_ms.saturating_add(half)
    }

    fn model(&self) -> &str {
        self.standing.model.as_str()
    }

    /// The alias, and what it meant before.
    fn before(&self) -> Option<(&'v Alias, &'v str)> {
        let alias = self.standing.alias?;
        Some((alias, alias.prev.as_deref()?))
    }

    fn quiet(&self) -> (&Memory, Moment, SwapSettings) {
        (self.memory, self.now, self.settings)
    }
}

/// How many must be ready where nobody said: three quarters of those that serve the name, rounded up.
fn three_quarters(fleet: &Fleet<'_>) -> u32 {
    count((3 * fleet.served_by()).div_ceil(4).max(1))
}

/// How many must be ready by now. Where nobody said, those that died since it was counted are not waited for, down to half
/// of what was counted: a fleet that shrinks goes on, and one that is lost from sight does not.
fn wanted(swap: &Swap, fleet: &Fleet<'_>) -> u32 {
    if swap.plan.min_ready.is_some() || swap.mode == SwapMode::Waves {
        return swap.min_ready;
    }
    swap.min_ready.min(three_quarters(fleet).max(swap.min_ready.div_ceil(2)))
}

#[cfg(test)]
mod tests;
