//! etcd is stopped, or pauses, at any point of a swap.

use std::time::Duration;

use proto::v1::{SwapPlan, SwapState, WorkerState};
use tests::Operator;
use tokio::time::{self, Instant};

use crate::support::{KIN, MODEL, plan, stage};

/// The moment of a commit cannot be met on purpose; many moments about it can.
#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_dies_about_the_commit_leaves_it_done_or_undone() {
    let mut stage = stage(plan(2)).await;
    let begun = Instant::now();
    stage.swap_to(1).await;
    let usual = begun.elapsed();
    for (turn, part) in [0.3, 0.6, 0.8, 0.9, 1.0, 1.1].into_iter().enumerate() {
        stage.promote((turn + 2) % KIN, SwapPlan::default()).await;
        time::sleep(usual.mul_f64(part)).await;
        stage.cluster.etcd.kill();
        time::sleep(Duration::from_secs(1)).await;
        stage.cluster.etcd.restart().await;
        stage.committed().await;
        stage.calls(50).await;
    }
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_etcd_leaves_in_the_middle_goes_on_when_it_is_back() {
    let mut stage = stage(plan(2)).await;
    for (turn, state) in [SwapState::Preparing, SwapState::Trial].into_iter().enumerate() {
        let plan = SwapPlan { shadow_per_mille: 200, shadow_seconds: Some(3), ..SwapPlan::default() };
        stage.promote(turn + 1, plan).await;
        stage.until(|swap| swap.state() as i32 >= state as i32).await;
        stage.cluster.etcd.kill();
        // Longer than any lease: the leader's, the gateways' and the workers' are gone when it is back.
        time::sleep(Duration::from_secs(12)).await;
        stage.calls(100).await;
        stage.cluster.etcd.restart().await;
        stage.committed().await;
        stage.calls(100).await;
    }
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_starts_anew_means_what_it_meant() {
    let mut stage = stage(plan(2)).await;
    stage.swap_to(1).await;
    stage.swap_to(2).await;
    let record = stage.callers.finish().await;
    record.assert_flawless();

    // Everything ends, in no good order; only what is on disk stays.
    for process in stage.cluster.gateways.iter_mut().chain(&mut stage.cluster.workers) {
        process.kill().await;
    }
    stage.cluster.etcd.stop().await;
    stage.cluster.etcd.restart().await;
    stage.cluster.gateways.clear();
    let gateway = stage.cluster.another_gateway(&[]).await;
    stage.cluster.gateways.push(gateway);
    for _ in 0..2 {
        // With the directory of the first checkpoint, as at the first start.
        stage.cluster.add_worker(&[]).await;
    }
    stage.cluster.wait_for(2, WorkerState::Serving).await;
    let mut operator = Operator::new(&stage.cluster.gateways[0], MODEL);
    let model = operator.model().await;
    assert_eq!((model.epoch, model.checkpoint.unwrap().digest.as_str()), (3, stage.digests[2].as_str()));
    operator.promote(&stage.digests[3], SwapPlan::default()).await.unwrap();
    operator.until(|swap| swap.state() == SwapState::Committed).await;
    assert_eq!(operator.model().await.epoch, 4);
}
