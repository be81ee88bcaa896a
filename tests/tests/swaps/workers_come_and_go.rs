//! Workers are killed, and join, while a swap is under way.

use proto::v1::{SwapPlan, SwapState};
use tests::Stage;

use crate::support::{plan, stage};

/// A swap that a trial holds until it is asked for again.
fn held_on_trial(min_ready: u32) -> SwapPlan {
    SwapPlan {
        min_ready: Some(min_ready),
        shadow_per_mille: 200,
        shadow_seconds: Some(3_600),
        ..SwapPlan::default()
    }
}

/// Kills the first worker, in the state in which a swap is `held`; workers that are left serve.
async fn kill_one(stage: &mut Stage, held: cluster::SwapState) {
    stage.is_still(held).await;
    stage.cluster.workers.remove(0).kill().await;
    stage.is_still(held).await;
    stage.calls(100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_any_state_of_a_swap_is_not_missed() {
    use cluster::SwapState as Recorded;

    let mut stage = stage(plan(3)).await;
    // More must be ready than there are.
    stage.promote(1, SwapPlan { min_ready: Some(4), ..SwapPlan::default() }).await;
    stage.until(|swap| swap.state() == SwapState::Preparing).await;
    kill_one(&mut stage, Recorded::Preparing).await;
    stage.cluster.add_worker(&[]).await;
    stage.cluster.add_worker(&[]).await;
    stage.committed().await;

    stage.promote(2, held_on_trial(2)).await;
    stage.until(|swap| swap.state() == SwapState::Trial).await;
    kill_one(&mut stage, Recorded::Trial).await;
    stage.promote_on_trial(2).await;
    stage.committed().await;

    // A swap is taken up when nothing is left of the one before.
    let lingering = stage.linger(0).await;
    stage.swap_to(3).await;
    assert_eq!(stage.promote(0, SwapPlan::default()).await.state(), SwapState::Requested);
    kill_one(&mut stage, Recorded::Requested).await;
    lingering.end().await;
    stage.committed().await;

    stage.cluster.add_worker(&[]).await;
    // The newcomer has what the name means, and what it meant before.
    for i in [0, 3] {
        stage.cluster.wait_for_checkpoint(3, &stage.digests[i]).await;
    }
    kill_one(&mut stage, Recorded::Committed).await;

    // What it is rolled back from is let go when nobody is on it.
    let lingering = stage.linger(0).await;
    let swap = stage.operator.rollback().await.unwrap();
    stage.tell(&swap).await;
    kill_one(&mut stage, Recorded::RolledBack).await;
    lingering.end().await;
    stage.nothing_leaves().await;
    stage.calls(100).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_joins_in_mid_swap_serves_the_new_checkpoint() {
    let mut stage = stage(plan(1)).await;
    stage.promote(1, held_on_trial(1)).await;
    stage.until(|swap| swap.state() == SwapState::Trial).await;
    stage.cluster.add_worker(&[]).await;
    stage.promote_on_trial(1).await;
    stage.committed().await;
    stage.cluster.wait_for_checkpoint(2, &stage.digests[1]).await;
    // All is left to the newcomer.
    stage.cluster.workers[0].kill().await;
    stage.calls(300).await;
    let model = stage.operator.model().await;
    assert_eq!(model.checkpoint.unwrap().digest, stage.digests[1].as_str());
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_away_comes_back_with_what_the_name_means_now() {
    let mut stage = stage(plan(2)).await;
    stage.cluster.workers[1].kill().await;
    // One is left, and one must be ready.
    stage.promote(1, SwapPlan { min_ready: Some(1), ..SwapPlan::default() }).await;
    stage.committed().await;
    // It is started as it was before, with the directory of the first checkpoint.
    stage.cluster.add_worker(&[]).await;
    stage.cluster.wait_for_checkpoint(2, &stage.digests[1]).await;
    stage.cluster.workers[0].kill().await;
    stage.calls(300).await;
    assert_eq!(stage.operator.model().await.epoch, 2);
    stage.flawless().await;
}
