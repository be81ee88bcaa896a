//! Checkpoints that are about to be let go.
//!
//! A checkpoint goes when no call is left on it. Calls that come by the model's name end by themselves, as the name
//! means another one; but callers may go on naming the old one by its digest, and it would never go. So who names it is
//! refused from the moment on at which it is to go.

use std::collections::{BTreeMap, BTreeSet};

use cluster::View;

/// Checkpoints by model and digest, with when they are to go, in milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Departures {
    leaving: BTreeMap<(String, String), u64>,
    /// Checkpoints that stay whatever happens.
    kept: BTreeSet<(String, String)>,
}

impl Departures {
    /// What is to go by what `view` says.
    #[must_use]
    pub fn of(view: &View) -> Self {
        let mut leaving = BTreeMap::new();
        for (model, alias) in &view.aliases {
            let swap = view.swaps.get(model);
            let before = alias.prev.iter().filter_map(|prev| Some((prev, swap?.lets_go_from(prev)?)));
            let others = alias.leaving.iter().map(|digest| (digest, 0));
            leaving
                .extend(before.chain(others).map(|(digest, then)| ((model.clone(), digest.clone()), then)));
        }
        Self { leaving, kept: view.pins.keys().cloned().collect() }
    }

    /// Whether a checkpoint is to go at `now`.
    #[must_use]
    pub fn include(&self, model: &str, digest: &str, now_unix_ms: u64) -> bool {
        let key = (model.to_owned(), digest.to_owned());
        !self.kept.contains(&key) && self.leaving.get(&key).is_some_and(|then| now_unix_ms >= *then)
    }

    /// Whether a checkpoint stays loaded whatever its model's name means.
    #[must_use]
    pub fn keep(&self, model: &str, digest: &str) -> bool {
        self.kept.contains(&(model.to_owned(), digest.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Alias, Pin, Swap, SwapPlan, SwapState};

    use super::*;

    /// `m` means `e` and meant `d` before, and `c` is leaving; its last swap is in `state`, committed at 100.
    fn view(state: SwapState, change: impl FnOnce(&mut Swap)) -> View {
        let alias = Alias { prev: Some("d".into()), leaving: ["c".to_owned()].into(), ..Alias::of("e", 2) };
        let mut swap = Swap::requested("s".into(), (Some("d".into()), "e".into()), SwapPlan::default(), 50);
        swap.state = state;
        swap.committed_unix_ms = Some(100);
        change(&mut swap);
        View {
            aliases: [("m".to_owned(), alias)].into(),
            swaps: [("m".to_owned(), swap)].into(),
            ..View::default()
        }
    }

    #[track_caller]
    fn check(view: &View, digest: &str, now: u64, expected: bool) {
        assert_eq!(Departures::of(view).include("m", digest, now), expected);
    }

    #[test]
    fn what_was_before_goes_when_somebody_wants_it_gone() {
        check(&view(SwapState::Committed, |_| ()), "d", u64::MAX, false);
        check(&view(SwapState::Committed, |swap| swap.retire_requested = true), "d", 0, true);
        let later = view(SwapState::Committed, |swap| swap.plan.retire_after_ms = Some(20));
        check(&later, "d", 119, false);
        check(&later, "d", 120, true);
        let next = view(SwapState::Requested, |swap| swap.to = "f".into());
        check(&next, "d", 0, true);
        check(&view(SwapState::Requested, |swap| swap.to = "d".into()), "d", u64::MAX, false);
    }

    #[test]
    fn what_answers_nobody_any_more_goes_and_what_is_meant_stays() {
        let view = view(SwapState::Committed, |_| ());
        check(&view, "c", 0, true);
        check(&view, "e", u64::MAX, false);
        check(&view, "x", u64::MAX, false);
    }

    #[test]
    fn what_is_pinned_stays() {
        let mut view = view(SwapState::Committed, |swap| swap.retire_requested = true);
        view.pins.insert(("m".to_owned(), "d".to_owned()), Pin { since_unix_ms: 1 });
        check(&view, "d", u64::MAX, false);
        assert!(Departures::of(&view).keep("m", "d"));
    }
}
