//! The gateway that leads is killed; another is cut off from etcd.

use std::time::Duration;

use cluster::SwapState as Recorded;
use proto::v1::{SwapPlan, SwapState};
use tests::{Fault, Lingering, Operator, PATIENCE, Plan, Proxy, Stage};
use tokio::time::{self, Instant};

use crate::support::{MODEL, plan, stage};

/// Kills the leader in the state in which a swap is `held`. Another gateway was started before.
async fn kill_the_leader(stage: &mut Stage, held: cluster::SwapState) {
    let place = stage.cluster.leader().await;
    stage.is_still(held).await;
    stage.kill_gateway(place).await;
    stage.is_still(held).await;
}

/// A stream at a gateway that does not lead.
async fn linger(stage: &Stage) -> Lingering {
    let leader = stage.cluster.leader().await;
    stage.linger((leader + 1) % stage.cluster.gateways.len()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_before_a_commit_is_followed_by_another() {
    let mut stage = stage(plan(2)).await;
    // More must be ready than there are.
    stage.promote(1, SwapPlan { min_ready: Some(3), ..SwapPlan::default() }).await;
    stage.until(|swap| swap.state() == SwapState::Preparing).await;
    kill_the_leader(&mut stage, Recorded::Preparing).await;
    stage.cluster.add_worker(&[]).await;
    stage.committed().await;

    stage.add_gateway().await;
    let trial = SwapPlan { shadow_per_mille: 200, shadow_seconds: Some(3_600), ..SwapPlan::default() };
    stage.promote(2, trial).await;
    stage.until(|swap| swap.state() == SwapState::Trial).await;
    kill_the_leader(&mut stage, Recorded::Trial).await;
    stage.promote_on_trial(2).await;
    stage.committed().await;

    // A swap is taken up when nothing is left of the one before.
    stage.add_gateway().await;
    let lingering = linger(&stage).await;
    stage.swap_to(3).await;
    assert_eq!(stage.promote(0, SwapPlan::default()).await.state(), SwapState::Requested);
    kill_the_leader(&mut stage, Recorded::Requested).await;
    lingering.end().await;
    stage.committed().await;
    stage.calls(200).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_after_a_swap_was_decided_is_followed_by_another() {
    let mut stage = stage(plan(2)).await;
    stage.swap_to(1).await;
    kill_the_leader(&mut stage, Recorded::Committed).await;
    stage.operator.retire().await.unwrap();
    stage.retired().await;

    // What it is rolled back from is let go when nobody is on it.
    stage.add_gateway().await;
    stage.swap_to(2).await;
    let lingering = linger(&stage).await;
    let swap = stage.operator.rollback().await.unwrap();
    stage.tell(&swap).await;
    kill_the_leader(&mut stage, Recorded::RolledBack).await;
    lingering.end().await;
    stage.nothing_leaves().await;

    stage.add_gateway().await;
    stage.promote(3, SwapPlan { min_ready: Some(3), ..SwapPlan::default() }).await;
    stage.until(|swap| swap.state() == SwapState::Preparing).await;
    assert_eq!(stage.operator.rollback().await.unwrap().state(), SwapState::Aborted);
    kill_the_leader(&mut stage, Recorded::Aborted).await;
    stage.swap_to(3).await;
    stage.calls(200).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_cut_off_from_etcd_learns_of_a_swap_from_workers() {
    let mut stage = stage(Plan { gateways: 1, ..plan(2) }).await;
    let proxy = Proxy::start(stage.cluster.etcd.endpoint()).await;
    let cut_off = stage.cluster.gateway_through(&proxy.endpoint(), &[]).await;
    cut_off.ready().await;
    stage.callers.add(&cut_off);
    stage.cluster.gateways.push(cut_off);
    stage.calls(200).await;

    proxy.set(Fault::Hold);
    for i in [1, 2] {
        stage.swap_to(i).await;
        let mut there = Operator::new(&stage.cluster.gateways[1], MODEL);
        let begun = Instant::now();
        while there.model().await.epoch != 1 + i as u64 {
            assert!(begun.elapsed() < PATIENCE, "{:?}", there.model().await);
            time::sleep(Duration::from_millis(20)).await;
        }
        stage.note(Some(stage.cluster.gateways[1].name.clone()), 1 + i as u64);
        stage.calls(200).await;
    }
    // The second swap began when the first checkpoint was let go: so it was, without a word from this gateway.
    proxy.set(Fault::None);
    stage.operator.retire().await.unwrap();
    stage.retired().await;
    stage.calls(200).await;
    stage.flawless().await;
}
