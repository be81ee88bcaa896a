//! Whether what a trial has shown speaks for the new checkpoint or against it.

use std::fmt;

use crate::record::{CanaryPlan, Sample, Side, Swap};

/// What follows from a trial so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Nothing yet.
    GoOn,
    /// Nothing speaks against the new checkpoint, for long enough.
    For,
    /// It answers worse than it may.
    Against(Fault),
}

/// What speaks against a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// Too many of its calls fail: its share, and the old one's.
    Errors { calls: Calls, new: f64, old: f64 },
    /// Its slow calls are too slow: the latency in milliseconds that this share of each one's calls keeps below.
    Slow { calls: Calls, share: f64, new: f64, old: f64 },
}

/// Of which calls something is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    /// Of all in the trial.
    All,
    /// Of so many on the new checkpoint, the last ones, and those on the old one meanwhile.
    Last(u64),
}

/// A percentile that fewer calls exceed is the chance of a few; and so are fewer failures, looked for again and again.
const FEW: u64 = 5;
/// All callers, in thousandths.
const ALL: u32 = 1000;

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => write!(f, "the calls"),
            Self::Last(calls) => write!(f, "the last {calls} calls"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errors { calls, new, old } => write!(
                f,
                "{:.2} % of {calls} on the new checkpoint failed, and {:.2} % of those on the old one",
                new * 100.0,
                old * 100.0
            ),
            Self::Slow { calls, share, new, old } => write!(
                f,
                "{:.0} % of {calls} took less than {new:.1} ms on the new checkpoint, and less than {old:.1} ms on the old one",
                share * 100.0
            ),
        }
    }
}

/// Judges the trial of `swap`, which began at `since`, at `now` (both milliseconds since 1970), by all calls of its
/// `sample` and by those of `lately`.
///
/// A canary is judged once it has its calls, and not before; at the deadline with whatever calls there were. For it
/// speaks nothing before the others have as many, for its latency is compared with theirs; where all callers are on it,
/// there is nothing to compare. Shadowed calls are for people to look at: copies that are dropped for want of room say
/// nothing about a checkpoint.
pub(super) fn judge(swap: &Swap, sample: &Sample, lately: &Sample, (since, now): (u64, u64)) -> Verdict {
    let hold_ms = swap.plan.canary.as_ref().map_or(swap.plan.shadow_ms, |canary| canary.hold_ms);
    let held = now >= since.saturating_add(hold_ms);
    if swap.commit_requested {
        return Verdict::For;
    }
    let Some(plan) = &swap.plan.canary else { return if held { Verdict::For } else { Verdict::GoOn } };
    let is_last_moment = held && now >= swap.deadline_unix_ms;
    let has_its_calls = sample.new.calls >= plan.min_calls || is_last_moment;
    if !has_its_calls {
        return Verdict::GoOn;
    }
    let is_compared = plan.per_mille >= ALL || sample.old.calls >= plan.min_calls || is_last_moment;
    let fault = too_many_fail(plan, Calls::All, (&sample.old, &sample.new))
        .or_else(|| too_slow(plan, Calls::All, (&sample.old, &sample.new)))
        .or_else(|| fault_lately(plan, sample, lately));
    match fault {
        Some(fault) => Verdict::Against(fault),
        None if held && is_compared => Verdict::For,
        None => Verdict::GoOn,
    }
}

/// What speaks against it in its last calls: compared with the others meanwhile, or with all of the others' where those
/// are too few.
fn fault_lately(plan: &CanaryPlan, sample: &Sample, lately: &Sample) -> Option<Fault> {
    let new = &lately.new;
    let old = if lately.old.calls < plan.min_calls { &sample.old } else { &lately.old };
    if new.calls < plan.min_calls {
        return None;
    }
    let calls = Calls::Last(new.calls);
    let fail = if new.errors < FEW { None } else { too_many_fail(plan, calls, (old, new)) };
    fail.or_else(|| too_slow(plan, calls, (old, new)))
}

fn too_many_fail(plan: &CanaryPlan, calls: Calls, (old, new): (&Side, &Side)) -> Option<Fault> {
    let (new, old) = (new.error_rate(), old.error_rate());
    (new - old > plan.max_error_excess).then_some(Fault::Errors { calls, new, old })
}

fn too_slow(plan: &CanaryPlan, calls: Calls, (old, new): (&Side, &Side)) -> Option<Fault> {
    // A percentile of a handful of calls is the slowest of them, which is chance.
    let fewer = new.calls.min(old.calls);
    if fewer < plan.min_calls {
        return None;
    }
    let share = compared(fewer)?;
    let (new, old) = (new.latency.quantile(share)?, old.latency.quantile(share)?);
    (new > old * plan.max_p99_ratio).then_some(Fault::Slow { calls, share, new, old })
}

/// Which share of so many calls keeps below the latency that is compared: 99 %, or fewer where that would leave less than
/// five calls above it; none where that is less than half.
#[allow(clippy::cast_precision_loss, reason = "rounded up to 99 %")]
fn compared(calls: u64) -> Option<f64> {
    let share = (1.0 - FEW as f64 / calls.max(1) as f64).min(0.99);
    (share >= 0.5).then_some(share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::SwapPlan;

    const SINCE: u64 = 1_000;

    /// A swap whose canary is held for 300 ms and has its calls with ten, to be ready within 10 s.
    fn swap() -> Swap {
        let canary = CanaryPlan { hold_ms: 300, min_calls: 10, ..CanaryPlan::of(100) };
        let plan = SwapPlan { canary: Some(canary), deadline_ms: 10_000, ..SwapPlan::default() };
        Swap::requested("s".into(), (Some("d".into()), "e".into()), plan, SINCE)
    }

    /// So many calls of so many milliseconds each, of which so many failed.
    fn side(calls: u64, ms: f64, errors: u64) -> Side {
        let mut side = Side::default();
        (0..calls).for_each(|i| side.record(ms, i < errors));
        side
    }

    #[track_caller]
    fn check(swap: &Swap, all: (Side, Side), after_ms: u64, expected: &str) {
        check_lately(swap, (all, Default::default()), after_ms, expected);
    }

    /// Each pair is of the old side and the new one.
    #[track_caller]
    fn check_lately(swap: &Swap, of: ((Side, Side), (Side, Side)), after_ms: u64, expected: &str) {
        let sample = |(old, new)| Sample { old, new, ..Sample::default() };
        let (all, lately) = (sample(of.0), sample(of.1));
        let found = match judge(swap, &all, &lately, (SINCE, SINCE + after_ms)) {
            Verdict::GoOn => "go on",
            Verdict::For => "for",
            Verdict::Against(Fault::Errors { .. }) => "errors",
            Verdict::Against(Fault::Slow { .. }) => "slow",
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_canary_that_does_well_is_held_for_its_time() {
        check(&swap(), (side(90, 10.0, 0), side(10, 10.0, 0)), 299, "go on");
        check(&swap(), (side(90, 10.0, 0), side(10, 10.0, 0)), 300, "for");
    }

    #[test]
    fn a_canary_that_does_badly_is_ended_as_soon_as_it_has_its_calls() {
        check(&swap(), (side(90, 10.0, 0), side(9, 10.0, 9)), 1, "go on");
        check(&swap(), (side(90, 10.0, 0), side(10, 10.0, 1)), 1, "errors");
        check(&swap(), (side(100, 10.0, 10), side(10, 10.0, 1)), 300, "for");
        check(&swap(), (side(90, 10.0, 0), side(10, 20.0, 0)), 1, "slow");
    }

    #[test]
    fn latencies_are_not_compared_with_a_handful_of_calls() {
        check(&swap(), (side(9, 10.0, 0), side(10, 20.0, 0)), 300, "go on");
        check(&swap(), (side(0, 10.0, 0), side(1_000, 20.0, 0)), 300, "go on");
        check(&swap(), (side(10, 10.0, 0), side(1_000, 20.0, 0)), 300, "slow");
        check(&swap(), (side(9, 10.0, 0), side(10, 20.0, 0)), 10_000, "for");
    }

    #[test]
    fn where_all_callers_are_on_it_there_is_no_latency_to_compare() {
        let mut all = swap();
        all.plan.canary = Some(CanaryPlan { hold_ms: 300, min_calls: 10, ..CanaryPlan::of(1000) });
        check(&all, (side(0, 10.0, 0), side(1_000, 20.0, 0)), 299, "go on");
        check(&all, (side(0, 10.0, 0), side(1_000, 20.0, 0)), 300, "for");
        check(&all, (side(0, 10.0, 0), side(1_000, 20.0, 11)), 1, "errors");
    }

    #[test]
    fn a_canary_that_did_well_for_long_is_ended_as_soon_as_it_does_badly() {
        let good = || (side(90_000, 10.0, 0), side(10_000, 10.0, 0));
        let check = |old, new, expected| check_lately(&swap(), (good(), (old, new)), 1, expected);
        check(side(4_500, 10.0, 0), side(500, 10.0, 5), "go on");
        check(side(4_500, 10.0, 0), side(500, 10.0, 6), "errors");
        check(side(4_500, 10.0, 45), side(500, 10.0, 6), "go on");
        check(side(4_500, 10.0, 0), side(500, 20.0, 0), "slow");
        check(side(4_500, 20.0, 0), side(500, 20.0, 0), "go on");
        // What the others did before counts where they have no calls meanwhile.
        check(side(0, 10.0, 0), side(500, 20.0, 0), "slow");
        check(side(0, 10.0, 0), side(500, 10.0, 6), "errors");
        // A few are chance, and too few are not looked at.
        check(side(90, 10.0, 0), side(10, 10.0, 4), "go on");
        check(side(90, 10.0, 0), side(10, 10.0, 5), "errors");
        check(side(90, 10.0, 0), side(9, 10.0, 9), "go on");
    }

    #[test]
    fn without_its_calls_it_goes_on_until_the_deadline_and_then_what_there_is_decides() {
        check(&swap(), (side(90, 10.0, 0), side(9, 10.0, 0)), 9_999, "go on");
        check(&swap(), (side(90, 10.0, 0), side(9, 10.0, 0)), 10_000, "for");
        check(&swap(), (side(90, 10.0, 0), side(9, 10.0, 1)), 10_000, "errors");
        check(&swap(), (side(0, 10.0, 0), side(0, 10.0, 0)), 10_000, "for");
    }

    #[test]
    fn a_promotion_by_hand_ends_it() {
        let hurried = Swap { commit_requested: true, ..swap() };
        check(&hurried, (side(90, 10.0, 0), side(10, 10.0, 10)), 0, "for");
    }

    #[test]
    fn shadowed_calls_alone_only_take_time() {
        let plan = SwapPlan { shadow_per_mille: 10, shadow_ms: 500, ..SwapPlan::default() };
        let swap = Swap { plan, ..swap() };
        check(&swap, (side(90, 10.0, 0), side(0, 10.0, 0)), 499, "go on");
        check(&swap, (side(90, 10.0, 0), side(0, 10.0, 0)), 500, "for");
    }

    #[test]
    fn a_few_slow_calls_are_chance_and_many_are_not() {
        let with_slow = |calls: u64, slow: u64| {
            let mut side = side(calls - slow, 10.0, 0);
            (0..slow).for_each(|_| side.record(100.0, false));
            side
        };
        check(&swap(), (side(50, 10.0, 0), with_slow(50, 5)), 1, "go on");
        check(&swap(), (side(50, 10.0, 0), with_slow(50, 8)), 1, "slow");
        check(&swap(), (side(1_000, 10.0, 0), with_slow(1_000, 9)), 1, "go on");
        check(&swap(), (side(1_000, 10.0, 0), with_slow(1_000, 20)), 1, "slow");
    }

    #[test]
    fn the_share_that_is_compared_grows_with_the_calls() {
        let expected = [(9, None), (10, Some(0.5)), (50, Some(0.9)), (500, Some(0.99)), (50_000, Some(0.99))];
        for (calls, share) in expected {
            assert_eq!(compared(calls), share);
        }
    }

    #[test]
    fn what_speaks_against_it_is_said_in_a_sentence() {
        let said = Fault::Errors { calls: Calls::All, new: 0.125, old: 0.0 }.to_string();
        assert_eq!(
            said,
            "12.50 % of the calls on the new checkpoint failed, and 0.00 % of those on the old one"
        );
        let said = Fault::Slow { calls: Calls::Last(500), share: 0.9, new: 12.0, old: 3.25 }.to_string();
        assert_eq!(
            said,
            "90 % of the last 500 calls took less than 12.0 ms on the new checkpoint, and less than 3.2 ms on the old one"
        );
    }
}
