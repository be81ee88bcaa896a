use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::name::GatewayId;
use crate::record::{CanaryPlan, Gateway, Nack, NackReason, Pin, Sample, SwapMode, SwapPlan, TrialSample};
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

fn at(unix_ms: u64) -> Moment {
    Moment { unix_ms, uptime: Duration::from_millis(unix_ms) }
}

/// The moves about `view` at `unix_ms`, long after the election.
fn moves(view: &View, unix_ms: u64) -> Vec<Move> {
    let moment = |seconds| Moment { unix_ms, uptime: Duration::from_secs(seconds) };
    let moves = decide(view, &Memory::elected(moment(0)), moment(3_600), SwapSettings::default());
    moves.into_iter().map(|(_, next)| next).collect()
}

/// What is done about `view` at `unix_ms`; empty where nothing is.
fn moved(view: &View, unix_ms: u64) -> String {
    moves(view, unix_ms).into_iter().map(|next| next.what).collect::<Vec<_>>().join("; ")
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
    let why = "abort: b, from before the last swap, could not be let go: gateway g has calls on it";
    check(&view, 1_000, why);
    let before = change(view, |_, alias| (alias.prev, alias.leaving) = (Some("b".into()), [].into()));
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
fn who_said_nothing_by_the_deadline_is_told_of_beside_those_who_refused() {
    #[track_caller]
    fn check(unix_ms: u64, expected: &[(&str, NackReason)]) {
        let view = swapping(SwapState::Preparing, &["a", "b", "c", "e"], &["a"]);
        let all = |swap: &mut Swap, _: &mut Alias| (swap.min_ready, swap.plan.min_ready) = (4, Some(4));
        let view = change(refused(view, &["b"], NackReason::Disk), all);
        let swap = moves(&view, unix_ms).pop().and_then(|next| next.step.swap).unwrap();
        assert_eq!(swap.state, SwapState::Aborted);
        let told: Vec<_> = swap.refusals.iter().map(|told| (told.worker.as_str(), told.reason)).collect();
        assert_eq!(told, expected, "at {unix_ms}");
    }
    // It is given up before its deadline: those who had time left are told of nothing.
    check(1, &[("b", NackReason::Disk)]);
    let timeout = NackReason::Timeout;
    check(1_000, &[("b", NackReason::Disk), ("c", timeout), ("e", timeout)]);
}

#[test]
fn who_is_short_of_memory_makes_room_while_half_go_on_serving() {
    let four = || swapping(SwapState::Preparing, &["a", "b", "c", "d"], &[]);
    let short = || refused(four(), &["a", "b", "c", "d"], NackReason::Memory);
    check(&short(), 1, "the two checkpoints do not fit: a, b let the old one go, 2 keep it");
    let mut pinned = short();
    pinned.pins.insert(("m".into(), "d".into()), Pin { since_unix_ms: 0 });
    check(&pinned, 1, "abort: the two checkpoints do not fit, and d is pinned");
    let alone = refused(swapping(SwapState::Preparing, &["a"], &[]), &["a"], NackReason::Memory);
    check(&alone, 1, "abort: the two checkpoints do not fit, and nobody can be spared");
}

#[test]
fn who_has_no_room_is_told_what_would_make_some() {
    let mut alone = refused(swapping(SwapState::Preparing, &["a"], &[]), &["a"], NackReason::Memory);
    // Worker `a` holds what `n` means and meant before, and what is pinned; `b`, which has said nothing, what `o` meant.
    let mut means = |model: &str, prev: &str, worker: &str| {
        alone.aliases.insert(model.into(), Alias { prev: Some(prev.into()), ..Alias::of("x", 2) });
        for digest in ["x", prev, "pinned"] {
            alone.ready.insert((model.into(), digest.into()), BTreeSet::from([id(worker)]));
        }
    };
    means("n", "w", "a");
    means("o", "v", "b");
    let why = "abort: the two checkpoints do not fit, and nobody can be spared";
    check(&alone, 1, &format!("{why}; to make room: beige models retire n"));
    alone.pins.insert(("n".into(), "pinned".into()), Pin { since_unix_ms: 0 });
    let both = "beige models unpin n pinned, beige models retire n";
    check(&alone, 1, &format!("{why}; to make room: {both}"));
    // What a swap of `n` is about to need stays.
    let swap = Swap::requested("t".into(), (Some("x".into()), "w".into()), SwapPlan::default(), 0);
    alone.swaps.insert("n".into(), Swap { state: SwapState::Preparing, min_ready: 1, ..swap });
    let told = moved(&alone, 1);
    assert!(told.contains(&format!("{why}; to make room: beige models unpin n pinned")), "{told}");
    assert!(!told.contains("retire"), "{told}");
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
    let lost = "end the trial: no worker is ready with the new checkpoint any more";
    check(&trial(&[]), 1, lost);
    check(&change(trial(&[]), |swap, _| swap.commit_requested = true), 1, lost);
    let shadow = |swap: &mut Swap, _: &mut Alias| swap.plan.shadow_per_mille = 1;
    check(&change(swapping(SwapState::Trial, &["a", "b"], &[]), shadow), 1, "");
}

#[test]
fn a_canary_that_did_well_for_long_is_taken_back_when_it_fails() {
    let canary = |swap: &mut Swap, _: &mut Alias| swap.plan.canary = Some(CanaryPlan::of(50));
    let view = change(swapping(SwapState::Trial, &["a", "b"], &["a", "b"]), canary);
    let (mut memory, mut sample) = (Memory::elected(at(0)), Sample::default());
    let mut after = |calls, failed| {
        (0..calls).for_each(|_| sample.old.record(1.0, false));
        (0..calls).for_each(|_| sample.new.record(1.0, failed));
        let trial = TrialSample { swap_id: "s".into(), sample: sample.clone() };
        let gateway = Gateway { trials: [("m".into(), trial)].into(), ..Gateway::default() };
        let view = View { gateways: [(GatewayId::parse("g").unwrap(), gateway)].into(), ..view.clone() };
        memory.observe(&view, at(1));
        let moves = decide(&view, &memory, at(1), SwapSettings::default());
        moves.into_iter().map(|(_, next)| next.what).collect::<String>()
    };
    for _ in 0..100 {
        assert_eq!(after(100, false), "");
    }
    assert_eq!(after(4, true), "");
    let failed = after(4, true);
    assert!(failed.starts_with("end the trial: 1.57 % of the last 508 calls on the new"), "{failed}");
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

#[test]
fn what_was_counted_is_halved_once_and_not_again_by_a_trial() {
    let two_of_three = change(swapping(SwapState::Preparing, &["a", "b"], &["a", "b"]), |swap, _| {
        (swap.min_ready, swap.plan.canary) = (3, Some(CanaryPlan::of(50)));
    });
    let now = Moment { unix_ms: 100, uptime: Duration::from_secs(3_600) };
    let mut moves = decide(&two_of_three, &Memory::elected(now), now, SwapSettings::default());
    let tried = moves.remove(0).1.step.swap.unwrap();
    assert_eq!((tried.state, tried.min_ready), (SwapState::Trial, 3));
    let left = |ready: &[&str]| {
        let hurried = Swap { commit_requested: true, ..tried.clone() };
        change(swapping(SwapState::Trial, ready, ready), |swap, _| *swap = hurried)
    };
    check(&left(&["a", "b"]), 100, "committed at epoch 2, with 2 workers ready");
    check(&left(&["a"]), 100, "");
}
