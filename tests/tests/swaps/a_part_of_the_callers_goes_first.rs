//! Canary and shadow.

use std::collections::BTreeSet;

use proto::v1::{CanaryPlan, SwapPlan, SwapState, WorkerState};
use tests::history::{Call, Digest, Flaw, Note, Record, flaws};
use tests::{Stage, is_decided};

use crate::support::{MODEL, SLOW, plan, shadowed, stage};

/// Begins a swap to `i` with half of the callers; the epoch since.
async fn begin(stage: &mut Stage, i: usize, plan: SwapPlan) -> u64 {
    stage.promote(i, plan).await;
    let swap = stage.until(|swap| swap.state() == SwapState::Trial || is_decided(swap.state())).await;
    // Whoever looks late finds what it was decided to at the epoch after it.
    let epoch = swap.epoch - u64::from(is_decided(swap.state()));
    let (digest, canary) = (swap.from.as_str().into(), Some(swap.to.as_str().into()));
    stage.notebook().note(Note::Meaning { model: MODEL.to_owned(), epoch, digest, canary });
    epoch
}

/// Who was answered by what under an epoch.
fn answered(record: &Record, epoch: u64) -> BTreeSet<Digest> {
    let answers = record.entries.iter().filter_map(|entry| entry.result.as_ref().ok());
    answers.filter(|answer| answer.epoch == epoch).map(|answer| answer.digest.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_followed_by_all_where_nothing_speaks_against_it() {
    let mut stage = stage(plan(2)).await;
    let canary = CanaryPlan {
        per_mille: 500,
        hold_seconds: Some(4),
        min_calls: Some(20),
        // Two tiny models on a noisy machine: latency is not the subject here.
        max_p99_ratio: Some(1000.0),
        ..CanaryPlan::default()
    };
    let epoch = begin(&mut stage, 1, SwapPlan { canary: Some(canary), ..SwapPlan::default() }).await;
    let swap = stage.committed().await;
    let comparison = swap.comparison.unwrap();
    assert!(comparison.old_calls > 0 && comparison.new_calls >= 20, "{comparison:?}");
    assert_eq!((comparison.old_errors, comparison.new_errors), (0, 0));
    stage.calls(100).await;
    let both = stage.digests[..2].iter().cloned().collect();
    // That no caller was split is one of the rules.
    assert_eq!(answered(&stage.flawless().await, epoch), both);
}

#[tokio::test(flavor = "multi_thread")]
async fn shadowed_calls_are_compared_and_answered_by_the_old_checkpoint() {
    let mut stage = stage(plan(2)).await;
    // Until there is enough to compare.
    let plan = SwapPlan { shadow_per_mille: 500, shadow_seconds: Some(3_600), ..SwapPlan::default() };
    stage.promote(1, plan).await;
    stage.cluster.until(|view| shadowed(view, MODEL) > 20).await;
    stage.promote_on_trial(1).await;
    let comparison = stage.committed().await.comparison.unwrap();
    assert!(comparison.shadowed_calls > 20, "{comparison:?}");
    assert!(comparison.cosine_min > 0.999 && comparison.cosine_min < 1.0, "{comparison:?}");
    assert!(comparison.cosine_mean >= comparison.cosine_min, "{comparison:?}");
    assert!(comparison.rank_correlation_mean > 0.5, "{comparison:?}");
    assert!(comparison.latency_ratio > 0.0, "{comparison:?}");
    stage.calls(100).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_is_too_slow_is_taken_back() {
    let mut stage = stage(plan(2)).await;
    stage.publish(SLOW, "").await;
    // Nobody would wait for the end of this. On a busy machine some tens of its calls take a minute.
    let canary = CanaryPlan {
        per_mille: 500,
        hold_seconds: Some(3_600),
        min_calls: Some(12),
        ..CanaryPlan::default()
    };
    let plan = SwapPlan { canary: Some(canary), new_space: true, ..SwapPlan::default() };
    begin(&mut stage, SLOW, plan).await;
    let swap = stage.until(|swap| is_decided(swap.state())).await;
    assert_eq!(swap.state(), SwapState::RolledBack, "{swap:#?}");
    assert!(swap.reason.contains("ms on the new checkpoint"), "{swap:#?}");
    stage.tell(&swap).await;
    stage.calls(100).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_whose_last_worker_dies_is_taken_back_and_no_caller_is_split() {
    let mut stage = stage(plan(1)).await;
    // One that has no room for what it would download: it goes on with the old checkpoint.
    stage.cluster.add_worker(&["--cache-bytes", "1"]).await;
    stage.cluster.wait_for(2, WorkerState::Serving).await;
    // Nobody would wait for the end of this.
    let canary = CanaryPlan {
        per_mille: 500,
        hold_seconds: Some(3_600),
        max_p99_ratio: Some(1000.0),
        ..CanaryPlan::default()
    };
    let plan = SwapPlan { min_ready: Some(1), canary: Some(canary), ..SwapPlan::default() };
    let epoch = begin(&mut stage, 1, plan).await;
    stage.calls(200).await;
    stage.cluster.workers[0].kill().await;
    let swap = stage.until(|swap| is_decided(swap.state())).await;
    assert_eq!(swap.state(), SwapState::RolledBack, "{swap:#?}");
    assert!(swap.reason.contains("no worker is ready"), "{swap:#?}");
    stage.tell(&swap).await;
    stage.calls(200).await;
    let both = stage.digests[..2].iter().cloned().collect();
    let record = stage.callers.finish().await;
    assert_eq!(answered(&record, epoch), both);
    // A stream that was answered by what is lost now cannot be answered by anything else. All others noticed nothing.
    let mut flaws = flaws(&record);
    flaws.retain(|flaw| !matches!(flaw, Flaw::Failed(entry) if matches!(entry.call, Call::Item(_))));
    assert_eq!(flaws, []);
}
