//! The last calls of a trial: a checkpoint that did well for an hour and fails now is judged by now.

use std::collections::VecDeque;

use crate::record::{CanaryPlan, Sample, Side};

/// Calls on the new checkpoint that count as the last ones: of so many, five exceed the 99th percentile.
const LATELY: u64 = 500;
/// Into how many parts they are cut: what is older than the last ones goes part by part.
const PARTS: u64 = 50;

/// What was counted of a trial at some moments, the earliest first: all that came after the first of them is of late.
#[derive(Clone, Debug, Default)]
pub(super) struct Lately {
    /// The old side, and the new one.
    marks: VecDeque<(Side, Side)>,
}

/// How many calls on the new checkpoint count as the last ones: not fewer than are judged at all.
pub(super) fn window(plan: &CanaryPlan) -> u64 {
    plan.min_calls.max(LATELY)
}

impl Lately {
    /// Takes in what was counted in all by now, where the last `window` calls on the new checkpoint are of late. What
    /// was counted before the first time is not.
    pub(super) fn observe(&mut self, Sample { old, new, shadow: _ }: &Sample, window: u64) {
        // A gateway that was started again begins to count anew.
        if self.marks.back().is_some_and(|last| last.0.calls > old.calls || last.1.calls > new.calls) {
            self.marks.clear();
        }
        let step = (window / PARTS).max(1);
        if self.marks.back().is_none_or(|last| new.calls >= last.1.calls + step) {
            self.marks.push_back((old.clone(), new.clone()));
        }
        while self.marks.get(1).is_some_and(|next| new.calls >= next.1.calls + window) {
            self.marks.pop_front();
        }
    }

    /// The last calls, of all that were counted by now.
    pub(super) fn of(&self, Sample { old, new, shadow: _ }: &Sample) -> Sample {
        let since = self.marks.front().map(|first| (old.since(&first.0), new.since(&first.1)));
        let (old, new) = since.unwrap_or_default();
        Sample { old, new, ..Sample::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds calls to both sides; those on the new checkpoint fail or not.
    fn add(sum: &mut Sample, calls: u64, failed: bool) {
        (0..calls).for_each(|_| {
            sum.old.record(1.0, false);
            sum.new.record(if failed { 8.0 } else { 1.0 }, failed);
        });
    }

    /// Calls and failures on the new checkpoint, and calls on the old one.
    #[track_caller]
    fn check(lately: &Lately, sum: &Sample, expected: (u64, u64, u64)) {
        let Sample { old, new, shadow: _ } = lately.of(sum);
        assert_eq!((new.calls, new.errors, old.calls), expected);
    }

    #[test]
    fn what_is_long_past_does_not_count() {
        let (mut lately, mut sum) = (Lately::default(), Sample::default());
        lately.observe(&sum, 100);
        for _ in 0..1_000 {
            add(&mut sum, 1, false);
            lately.observe(&sum, 100);
        }
        check(&lately, &sum, (100, 0, 100));
        assert!(lately.marks.len() <= 52, "{} marks", lately.marks.len());
        add(&mut sum, 30, true);
        lately.observe(&sum, 100);
        check(&lately, &sum, (100, 30, 100));
        assert_eq!(lately.of(&sum).new.latency, {
            let mut good = Side::default();
            (0..70).for_each(|_| good.record(1.0, false));
            good.latency
        });
    }

    #[test]
    fn many_calls_between_two_looks_are_of_late_as_a_whole() {
        let (mut lately, mut sum) = (Lately::default(), Sample::default());
        lately.observe(&sum, 100);
        add(&mut sum, 1_000, false);
        lately.observe(&sum, 100);
        add(&mut sum, 1_000, true);
        lately.observe(&sum, 100);
        check(&lately, &sum, (1_000, 1_000, 1_000));
    }

    #[test]
    fn what_was_there_before_the_first_look_and_what_is_counted_anew_is_not_of_late() {
        let (mut lately, mut sum) = (Lately::default(), Sample::default());
        check(&lately, &sum, (0, 0, 0));
        add(&mut sum, 70, true);
        lately.observe(&sum, 100);
        check(&lately, &sum, (0, 0, 0));
        add(&mut sum, 7, false);
        lately.observe(&sum, 100);
        check(&lately, &sum, (7, 0, 7));
        let mut anew = Sample::default();
        add(&mut anew, 3, false);
        lately.observe(&anew, 100);
        check(&lately, &anew, (0, 0, 0));
    }

    #[test]
    fn no_fewer_are_the_last_than_are_judged_at_all() {
        let plan = |min_calls| CanaryPlan { min_calls, ..CanaryPlan::of(50) };
        assert_eq!([1, 500, 7_000].map(|calls| window(&plan(calls))), [500, 500, 7_000]);
    }
}
