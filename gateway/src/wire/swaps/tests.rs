//! Each bad request about models, and the field it is refused for.

use super::*;

fn field<T: std::fmt::Debug>(parsed: Result<T, InvalidRequest>) -> String {
    parsed.unwrap_err().field
}

fn promote(digest: &str, plan: Option<v1::SwapPlan>) -> v1::PromoteRequest {
    v1::PromoteRequest { model: "mini".into(), digest: digest.into(), plan }
}

#[test]
fn a_plan_that_says_nothing_is_the_usual_one() {
    let (chosen, plan) = promotion(promote("0123abc", None)).unwrap();
    assert_eq!((chosen.model.as_str(), chosen.digest.as_str()), ("mini", "0123abc"));
    assert_eq!(plan, SwapPlan::default());
    let said = v1::SwapPlan {
        canary: Some(v1::CanaryPlan { per_mille: 7, ..Default::default() }),
        ..Default::default()
    };
    let (_, plan) = promotion(promote("0", Some(said))).unwrap();
    assert_eq!(plan.canary, Some(CanaryPlan::of(7)));
}

#[test]
fn all_of_a_plan_is_taken_over() {
    let canary = v1::CanaryPlan {
        per_mille: 999,
        hold_seconds: Some(3),
        min_calls: Some(9),
        max_error_excess: Some(0.5),
        max_p99_ratio: Some(2.0),
    };
    let said = v1::SwapPlan {
        min_ready: Some(2),
        deadline_seconds: Some(60),
        retire_after_seconds: Some(0),
        new_space: true,
        canary: Some(canary),
        shadow_per_mille: 1000,
        shadow_seconds: Some(5),
    };
    let expected = SwapPlan {
        min_ready: Some(2),
        deadline_ms: 60_000,
        retire_after_ms: Some(0),
        new_space: true,
        canary: Some(CanaryPlan {
            per_mille: 999,
            hold_ms: 3_000,
            min_calls: 9,
            max_error_excess: 0.5,
            max_p99_ratio: 2.0,
        }),
        shadow_per_mille: 1000,
        shadow_ms: 5_000,
    };
    assert_eq!(promotion(promote("0", Some(said))).unwrap().1, expected);
}

#[test]
fn a_plan_out_of_bounds_names_its_field() {
    #[track_caller]
    fn check(expected: &str, change: impl FnOnce(&mut v1::SwapPlan)) {
        let canary = v1::CanaryPlan { per_mille: 1, ..v1::CanaryPlan::default() };
        let mut plan = v1::SwapPlan { canary: Some(canary), ..v1::SwapPlan::default() };
        change(&mut plan);
        assert_eq!(field(promotion(promote("0", Some(plan)))), expected);
    }
    fn canary(plan: &mut v1::SwapPlan) -> &mut v1::CanaryPlan {
        plan.canary.get_or_insert_default()
    }
    check("plan.min_ready", |plan| plan.min_ready = Some(0));
    check("plan.deadline_seconds", |plan| plan.deadline_seconds = Some(0));
    check("plan.deadline_seconds", |plan| plan.deadline_seconds = Some(LONGEST + 1));
    check("plan.retire_after_seconds", |plan| plan.retire_after_seconds = Some(LONGEST + 1));
    check("plan.shadow_per_mille", |plan| plan.shadow_per_mille = 1001);
    check("plan.shadow_seconds", |plan| plan.shadow_seconds = Some(0));
    check("plan.canary.per_mille", |plan| canary(plan).per_mille = 0);
    check("plan.canary.per_mille", |plan| canary(plan).per_mille = 1001);
    check("plan.canary.hold_seconds", |plan| canary(plan).hold_seconds = Some(LONGEST + 1));
    check("plan.canary.min_calls", |plan| canary(plan).min_calls = Some(0));
    check("plan.canary.max_error_excess", |plan| canary(plan).max_error_excess = Some(1.1));
    check("plan.canary.max_error_excess", |plan| canary(plan).max_error_excess = Some(f64::NAN));
    check("plan.canary.max_p99_ratio", |plan| canary(plan).max_p99_ratio = Some(0.9));
    check("plan.canary.max_p99_ratio", |plan| canary(plan).max_p99_ratio = Some(f64::INFINITY));
    check("plan.canary.max_p99_ratio", |plan| {
        (canary(plan).per_mille, canary(plan).max_p99_ratio) = (1000, Some(1.5));
    });
}

#[test]
fn all_callers_may_try_it_where_no_bound_on_latency_is_wanted() {
    let canary = Some(v1::CanaryPlan { per_mille: 1000, ..v1::CanaryPlan::default() });
    let plan = v1::SwapPlan { canary, ..v1::SwapPlan::default() };
    assert_eq!(promotion(promote("0", Some(plan))).unwrap().1.canary, Some(CanaryPlan::of(1000)));
}

#[test]
fn names_and_digests_are_held_to_their_form() {
    for digest in ["", "xyz", "ABC", &"0".repeat(65)] {
        assert_eq!(field(promotion(promote(digest, None))), "digest", "{digest}");
    }
    let mut nameless = promote("0", None);
    nameless.model.clear();
    assert_eq!(field(promotion(nameless)), "model");
    assert_eq!(field(rollback(v1::RollbackRequest { model: "a/b".into() })), "model");
    assert_eq!(field(swap_of(v1::GetSwapRequest { model: String::new() })), "model");
    assert_eq!(field(watch(v1::WatchSwapRequest { model: "@".into(), follow: true })), "model");
    assert_eq!(field(listing(v1::ListVersionsRequest { model: "a b".into() })), "model");
    let unnamed = v1::RetireRequest { model: "mini".into(), digest: String::new() };
    assert_eq!(retirement(unnamed).unwrap().1, None);
    let misnamed = v1::RetireRequest { model: "mini".into(), digest: "g".into() };
    assert_eq!(field(retirement(misnamed)), "digest");
}

#[test]
fn what_is_absent_has_its_default() {
    assert_eq!(listing(v1::ListVersionsRequest::default()).unwrap(), None);
    let all = Collection { model: None, keep: 3, dry_run: false };
    assert_eq!(collection(v1::CollectRequest::default()).unwrap(), all);
    let prefix = Prefix::parse("digest", &"0".repeat(64)).unwrap();
    assert!(prefix.whole().is_some() && Prefix::parse("digest", "0").unwrap().whole().is_none());
}

#[test]
fn files_are_put_in_order_and_bounded_together() {
    let file = |path: &str, size| v1::CheckpointFile { path: path.into(), size, sha256: "0".repeat(64) };
    let begin = |files| v1::PublishBegin { model: "mini".into(), files, ..v1::PublishBegin::default() };
    let first = |begin| v1::PublishRequest { step: Some(v1::publish_request::Step::Begin(begin)) };
    let parsed = upload(first(begin(vec![file("b", 6), file("a", 4)])), 10).unwrap();
    assert_eq!(parsed.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(field(upload(first(begin(vec![file("b", 6), file("a", 5)])), 10)), "begin.files[1].size");
    assert_eq!(field(upload(v1::PublishRequest { step: None }, 10)), "begin");
    assert_eq!(field(chunk(first(begin(Vec::new())))), "begin");
    assert_eq!(field(chunk(v1::PublishRequest { step: None })), "chunk");
}
