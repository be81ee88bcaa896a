//! The gateway that leads is killed; another is cut off from etcd.

use std::time::Duration;

use proto::v1::{SwapPlan, SwapState};
use tests::{Fault, Operator, PATIENCE, Plan, Proxy};
use tokio::time::{self, Instant};

use crate::support::{MODEL, plan, stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_in_any_state_of_a_swap_is_followed_by_another() {
    let mut stage = stage(plan(2)).await;
    let states = [SwapState::Requested, SwapState::Preparing, SwapState::Trial, SwapState::Committed];
    for (turn, state) in states.into_iter().enumerate() {
        stage.add_gateway().await;
        let plan = SwapPlan {
            deadline_seconds: Some(60),
            shadow_per_mille: 200,
            shadow_seconds: Some(3),
            ..SwapPlan::default()
        };
        stage.promote((turn + 1) % 2, plan).await;
        stage.until(|swap| swap.state() as i32 >= state as i32).await;
        let place = stage.cluster.leader().await;
        stage.kill_gateway(place).await;
        stage.committed().await;
        stage.calls(200).await;
    }
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_cut_off_from_etcd_learns_of_a_swap_from_workers() {
    let mut stage = stage(Plan { gateways: 1, ..plan(2) }).await;
    let proxy = Proxy::start(stage.cluster.etcd.endpoint()).await;
    let cut_off = stage.cluster.gateway_through(&proxy.endpoint(), &[]).await;
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
