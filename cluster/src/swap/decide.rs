//! What the leader does next about each model. Pure, and level-triggered: it looks at a whole view, every time anew.

use std::collections::BTreeSet;

use super::memory::{Memory, Moment};
use super::moves::Move;
use super::prepare::{Fleet, Waves, count, stragglers, widen};
use super::release::{SwapSettings, released};
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
        let mut leaving = self.standing.alias.into_iter().flat_map(|alias| &alias.leaving);
        match leaving.find(|digest| **digest != swap.to) {
            Some(digest) if self.is_late(swap) => {
                let reason = format!("{digest}, from before the last swap, could not be let go in time");
                Some(Move::abort(swap, reason, self.now.unix_ms))
            }
            Some(_) => None,
            None => Some(self.prepare(swap)),
        }
    }

    /// Lets go of what the name meant before the last swap, so that never more than two are loaded for a swap.
    fn make_way(&self, swap: &Swap, (alias, prev): (&Alias, &str)) -> Option<Move> {
        match released(self.view, (&self.standing.model, alias, prev), self.quiet()) {
            Ok(facts) => Some(Move::let_go((alias, prev), Some(swap), facts, self.now.unix_ms)),
            Err(held) if self.is_late(swap) => {
                let reason = format!("{prev}, from before the last swap, could not be let go: {held}");
                Some(Move::abort(swap, reason, self.now.unix_ms))
            }
            Err(_) => None,
        }
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
                    return Some(self.give_up(
                        swap,
                        &fleet,
                        "the two checkpoints do not fit, and nobody can be spared",
                    ));
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
        let from = swap.from.clone().unwrap_or_default();
        let is_pinned = self.view.pins.contains_key(&(self.model().to_owned(), from));
        if is_pinned { Waves::Hopeless } else { widen(swap, fleet) }
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

    /// Aborts, and says why each worker was not ready.
    fn give_up(&self, swap: &Swap, fleet: &Fleet<'_>, reason: impl Into<String>) -> Move {
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
                Move::begin_trial(alias, swap, fleet.still_ready(swap), self.now.unix_ms)
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
        let since = swap.trial_since_unix_ms.unwrap_or(swap.requested_unix_ms);
        match judge(swap, &sample, (since, self.now.unix_ms)) {
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
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::record::{CanaryPlan, Gateway, Nack, NackReason, Pin, SwapMode, SwapPlan};
    use crate::view::tests::{id, view};

    /// `m` means `d`; a swap to `e`, asked for at 0 and to be ready by 1000, is in `state`; `ready` have `e` too.
    fn swapping(state: SwapState, workers: &[&str], ready: &[&str]) -> View {
        let plan = SwapPlan { deadline_ms: 1_000, ..SwapPlan::default() };
        let swap = Swap::requested("s".into(), (Some("d".into()), "e".into()), plan, 0);
        let mut view = view(workers);
        let with_e = ready.iter().map(|text| id(text)).collect();
        view.ready.insert(("m".into(), "e".into()), with_e);
        view.swaps.insert("m".into(), Swap { state, min_ready: 2, ..swap });
        view
    }

    fn change(mut view: View, with: impl FnOnce(&mut Swap, &mut Alias)) -> View {
        with(view.swaps.get_mut("m").unwrap(), view.aliases.get_mut("m").unwrap());
        view
    }

    fn refused(mut view: View, workers: &[&str], reason: NackReason) -> View {
        let (detail, swap_id, boot_id) = (String::new(), Some("s".to_owned()), "boot".to_owned());
        let nack = Nack { reason, detail, swap_id, boot_id, made_room: false };
        let nacks = workers.iter().map(|text| (id(text), nack.clone())).collect();
        view.nacks.insert(("m".into(), "e".into()), nacks);
        view
    }

    /// What is done about `view` at `unix_ms`, long after the election; empty where nothing is.
    fn moved(view: &View, unix_ms: u64) -> String {
        let moment = |seconds| Moment { unix_ms, uptime: Duration::from_secs(seconds) };
        let moves = decide(view, &Memory::elected(moment(0)), moment(3_600), SwapSettings::default());
        moves.into_iter().map(|(_, next)| next.what).collect::<Vec<_>>().join("; ")
    }

    #[track_caller]
    fn check(view: &View, unix_ms: u64, expected: &str) {
        assert_eq!(moved(view, unix_ms), expected);
    }

    #[test]
    fn a_swap_is_taken_up_with_three_quarters_of_those_that_serve() {
        check(&swapping(SwapState::Requested, &["a", "b", "c"], &[]), 1, "3 of 3 workers must be ready");
        let planned = |swap: &mut Swap, _: &mut Alias| swap.plan.min_ready = Some(1);
        let view = change(swapping(SwapState::Requested, &["a", "b", "c"], &[]), planned);
        check(&view, 1, "1 of 3 workers must be ready");
    }

    #[test]
    fn a_swap_makes_way_for_all_that_is_older() {
        let requested = || swapping(SwapState::Requested, &["a"], &[]);
        let older = |swap: &mut Swap, alias: &mut Alias| {
            (swap.plan.min_ready, alias.prev) = (Some(1), Some("c".into()));
            alias.leaving.insert("b".into());
        };
        let view = change(requested(), older);
        check(&view, 1, "c is let go");
        let view = change(view, |_, alias| alias.prev = None);
        check(&view, 1, "b is let go");
        let back = change(view, |_, alias| (alias.prev, alias.leaving) = (Some("e".into()), [].into()));
        check(&back, 1, "1 of 1 workers must be ready");
        let taken_back = change(requested(), |_, alias| alias.leaving.extend(["e".into()]));
        check(&taken_back, 1, "1 of 1 workers must be ready");
    }

    #[test]
    fn a_swap_that_cannot_make_way_is_given_up_at_its_deadline() {
        let mut view = change(swapping(SwapState::Requested, &["a"], &[]), |_, alias| {
            alias.leaving.insert("b".into());
        });
        let gateway = Gateway { epochs: BTreeMap::from([("m".into(), 1)]), ..Gateway::default() };
        let busy = Gateway { busy: BTreeSet::from([("m".to_owned(), "b".to_owned())]), ..gateway };
        view.gateways.insert(crate::GatewayId::parse("g").unwrap(), busy);
        check(&view, 999, "");
        check(&view, 1_000, "abort: b, from before the last swap, could not be let go in time");
        let before = change(view, |_, alias| (alias.prev, alias.leaving) = (Some("b".into()), [].into()));
        let why = "abort: b, from before the last swap, could not be let go: gateway g has calls on it";
        check(&before, 1_000, why);
    }

    #[test]
    fn it_is_committed_when_enough_are_ready_and_the_others_had_their_chance() {
        check(&swapping(SwapState::Preparing, &["a", "b"], &["a"]), 999, "");
        let committed = "committed at epoch 2, with 2 workers ready";
        check(&swapping(SwapState::Preparing, &["a", "b"], &["a", "b"]), 1, committed);
        let two_of_three = || swapping(SwapState::Preparing, &["a", "b", "c"], &["a", "b"]);
        check(&two_of_three(), 499, "");
        check(&two_of_three(), 500, committed);
        check(&refused(two_of_three(), &["c"], NackReason::Disk), 1, committed);
    }

    #[test]
    fn it_is_given_up_when_there_will_not_be_enough() {
        let one = || swapping(SwapState::Preparing, &["a", "b"], &["a"]);
        check(&one(), 1_000, "abort: 1 of 2 workers were ready in time");
        let why = "abort: 2 workers must be ready, and 1 cannot be";
        check(&refused(one(), &["b"], NackReason::Golden), 1, why);
        let moved = change(one(), |_, alias| alias.digest = "x".into());
        check(&moved, 1, "abort: the name was moved meanwhile");
    }

    #[test]
    fn who_is_short_of_memory_makes_room_while_half_go_on_serving() {
        let four = || swapping(SwapState::Preparing, &["a", "b", "c", "d"], &[]);
        let short = || refused(four(), &["a", "b", "c", "d"], NackReason::Memory);
        check(&short(), 1, "the two checkpoints do not fit: a, b let the old one go, 2 keep it");
        let mut pinned = short();
        pinned.pins.insert(("m".into(), "d".into()), Pin { since_unix_ms: 0 });
        check(&pinned, 1, "abort: the two checkpoints do not fit, and nobody can be spared");
        let alone = refused(swapping(SwapState::Preparing, &["a"], &[]), &["a"], NackReason::Memory);
        check(&alone, 1, "abort: the two checkpoints do not fit, and nobody can be spared");
    }

    #[test]
    fn a_trial_comes_first_where_one_is_asked_for() {
        let ready = || swapping(SwapState::Preparing, &["a", "b"], &["a", "b"]);
        let canary = |swap: &mut Swap, _: &mut Alias| swap.plan.canary = Some(CanaryPlan::of(50));
        check(&change(ready(), canary), 1, "on trial at epoch 2");
        let hurried = change(change(ready(), canary), |swap, _| swap.commit_requested = true);
        check(&hurried, 1, "committed at epoch 2, with 2 workers ready");
        let trial = |ready| change(swapping(SwapState::Trial, &["a", "b"], ready), canary);
        check(&trial(&["a", "b"]), 1, "");
        let moved = change(trial(&["a", "b"]), |_, alias| alias.digest = "x".into());
        check(&moved, 1, "end the trial: the name was moved meanwhile");
        let hurried = change(trial(&["a"]), |swap, _| swap.commit_requested = true);
        check(&hurried, 999, "");
        check(&hurried, 1_000, "end the trial: too few workers were still ready at its end");
    }

    #[test]
    fn what_was_before_is_let_go_when_it_is_time() {
        let committed = || {
            change(swapping(SwapState::Committed, &["a"], &["a"]), |swap, alias| {
                (swap.committed_unix_ms, *alias) =
                    (Some(100), Alias { prev: Some("d".into()), ..Alias::of("e", 2) });
            })
        };
        check(&committed(), u64::MAX, "");
        check(&change(committed(), |swap, _| swap.retire_requested = true), 100, "d is let go");
        check(&change(committed(), |swap, _| swap.mode = SwapMode::Waves), 100, "d is let go");
        let later = change(committed(), |swap, _| swap.plan.retire_after_ms = Some(20));
        check(&later, 119, "");
        check(&later, 120, "d is let go");
        let gone = change(committed(), |_, alias| alias.prev = None);
        check(&gone, 100, "nothing is left to be let go");
        let over = change(committed(), |swap, _| swap.state = SwapState::Aborted);
        check(&over, 100, "");
        check(&change(over, |swap, _| swap.mode = SwapMode::Waves), 100, "d is let go");
    }

    #[test]
    fn who_joined_in_mid_swap_without_room_for_both_follows_if_it_can_be_spared() {
        let committed = |workers: &[&str], ready: &[&str]| {
            change(swapping(SwapState::Committed, workers, ready), |swap, alias| {
                (swap.committed_unix_ms, *alias) =
                    (Some(100), Alias { prev: Some("d".into()), ..Alias::of("e", 2) });
            })
        };
        let short = |view, workers| refused(view, workers, NackReason::Memory);
        let late = || short(committed(&["a", "b"], &["a"]), &["b"]);
        check(&late(), 200, "no room for both: b lets d go");
        // Half of them keep what a rollback needs.
        check(&short(committed(&["a", "b", "c"], &["a"]), &["b", "c"]), 200, "no room for both: b lets d go");
        check(&short(committed(&["a"], &[]), &["a"]), 200, "");
        check(&refused(committed(&["a", "b"], &["a"]), &["b"], NackReason::Disk), 200, "");
        check(&change(late(), |swap, _| swap.wave.extend([id("b")])), 200, "");
        let mut pinned = late();
        pinned.pins.insert(("m".into(), "d".into()), Pin { since_unix_ms: 0 });
        check(&pinned, 200, "");
        check(&change(late(), |_, alias| alias.digest = "x".into()), 200, "");
    }

    #[test]
    fn what_leaves_goes_by_itself_and_a_name_that_is_put_back_waits() {
        let mut view = view(&["a"]);
        view.aliases.get_mut("m").unwrap().leaving.insert("c".into());
        check(&view, 1, "c is let go");
        view.overtaken.insert("m".into(), None);
        check(&view, 1, "");
    }

    #[test]
    fn who_died_is_not_waited_for_unless_somebody_said_how_many() {
        let of_three = |workers: &[&str], min_ready| {
            let view = swapping(SwapState::Preparing, workers, workers);
            change(view, |swap, _| {
                swap.min_ready = 3;
                swap.plan.min_ready = min_ready;
            })
        };
        check(&of_three(&["a", "b", "c"], None), 100, "committed at epoch 2, with 3 workers ready");
        check(&of_three(&["a", "b"], None), 100, "committed at epoch 2, with 2 workers ready");
        check(&of_three(&["a"], None), 100, "");
        check(&of_three(&["a", "b"], Some(3)), 100, "");
    }
}
