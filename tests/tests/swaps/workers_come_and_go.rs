//! Workers are killed, and join, while a swap is under way.

use std::time::Duration;

use proto::v1::{SwapPlan, SwapState, WorkerState};
use tokio::time;

use crate::support::{plan, stage};

/// A swap that passes through every state slowly enough to be met in each: part of the calls are compared for a while.
fn slow_plan(min_ready: u32) -> SwapPlan {
    SwapPlan {
        min_ready: Some(min_ready),
        deadline_seconds: Some(40),
        shadow_per_mille: 200,
        shadow_seconds: Some(3),
        ..SwapPlan::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_any_state_of_a_swap_is_not_missed() {
    let mut stage = stage(plan(3)).await;
    let states = [SwapState::Requested, SwapState::Preparing, SwapState::Trial, SwapState::Committed];
    for (turn, state) in states.into_iter().enumerate() {
        stage.promote((turn + 1) % 2, slow_plan(2)).await;
        stage.until(|swap| swap.state() as i32 >= state as i32).await;
        stage.cluster.workers[turn].kill().await;
        stage.committed().await;
        stage.cluster.add_worker(&[]).await;
        stage.cluster.wait_for(3, WorkerState::Serving).await;
        stage.calls(200).await;
    }
    // And where it rolls back.
    stage.operator.rollback().await.unwrap();
    stage.cluster.workers[states.len()].kill().await;
    let swap = stage.until(|swap| swap.state() == SwapState::RolledBack).await;
    stage.tell(&swap).await;
    stage.calls(200).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_joins_in_mid_swap_serves_the_new_checkpoint() {
    let mut stage = stage(plan(1)).await;
    stage.promote(1, slow_plan(1)).await;
    stage.until(|swap| swap.state() == SwapState::Trial).await;
    stage.cluster.add_worker(&[]).await;
    stage.committed().await;
    stage.cluster.wait_for(2, WorkerState::Serving).await;
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
    stage.cluster.wait_for(2, WorkerState::Serving).await;
    stage.cluster.workers[0].kill().await;
    time::sleep(Duration::from_millis(500)).await;
    stage.calls(300).await;
    assert_eq!(stage.operator.model().await.epoch, 2);
    stage.flawless().await;
}
