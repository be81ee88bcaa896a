//! etcd is stopped, or pauses, at any point of a swap.

use std::time::Duration;

use cluster::{SwapState as Recorded, View};
use proto::v1::{SwapPlan, SwapState, WorkerState};
use tests::{Fault, Linked, Operator, PATIENCE, Plan, Stage};
use tokio::time::{self, Instant};

use crate::support::{MODEL, plan, stage};

/// How long calls are compared: then the leader commits, without any news.
const TRIAL: u32 = 5;
/// How much of that passes before the fault: two thirds of a lease after it the leader may have given up its place.
const UNTROUBLED: Duration = Duration::from_secs(2);

/// A stage on which the leader is about to commit a swap to checkpoint 1, with nothing but `fault` on the way to etcd of
/// those who are `linked`; and the leader's place.
async fn about_to_commit(linked: Linked, fault: Fault) -> (Stage, usize) {
    let mut stage = stage(Plan { linked, ..plan(2) }).await;
    let leader = stage.cluster.leader().await;
    let trial = SwapPlan { shadow_per_mille: 200, shadow_seconds: Some(TRIAL), ..SwapPlan::default() };
    let id = stage.promote(1, trial).await.id;
    let there = Operator::new(&stage.cluster.gateways[leader], MODEL);
    there.until(|swap| swap.id == id && swap.state() == SwapState::Trial).await;
    time::sleep(UNTROUBLED).await;
    stage.cluster.link.as_ref().unwrap().set(fault);
    stage.is_still(Recorded::Trial).await;
    (stage, leader)
}

/// Kills etcd, has callers go on, and starts it again with nothing on the way to it.
async fn etcd_dies(stage: &mut Stage) {
    stage.cluster.etcd.kill();
    let link = stage.cluster.link.as_ref().unwrap();
    link.cut();
    link.set(Fault::None);
    stage.calls(200).await;
    // Of the trial.
    assert_eq!(stage.operator.model().await.epoch, 2, "the gateways have heard of no commit");
    stage.cluster.etcd.restart().await;
}

/// What etcd says of the epoch, and how often it was committed.
async fn epoch_and_commits(stage: &Stage) -> (u64, usize) {
    let view = stage.cluster.view().await;
    let is_commit = |event: &&cluster::SwapEvent| event.what.starts_with("committed");
    (view.aliases[MODEL].epoch, view.swaps[MODEL].events.iter().filter(is_commit).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_dies_before_a_commit_reaches_it_has_it_done_when_it_is_back() {
    let (mut stage, leader) = about_to_commit(Linked::Gateways, Fault::Hold).await;
    let begun = Instant::now();
    let is_sent = |log: &str| log.lines().any(|l| l.contains("committed at") && l.contains("no answer from"));
    while !is_sent(&stage.cluster.gateways[leader].log()) {
        assert!(begun.elapsed() < PATIENCE, "{}", stage.cluster.gateways[leader].log());
        time::sleep(Duration::from_millis(50)).await;
    }
    stage.is_still(Recorded::Trial).await;
    etcd_dies(&mut stage).await;
    stage.committed().await;
    assert_eq!(epoch_and_commits(&stage).await, (3, 1));
    stage.calls(100).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_that_dies_before_it_answers_a_commit_has_it_done_once() {
    // Workers would tell the gateways.
    let never = Fault::DelayAnswers(Duration::from_secs(3_600));
    let (mut stage, _) = about_to_commit(Linked::All, never).await;
    stage.cluster.until(|view| view.swaps[MODEL].state == Recorded::Committed).await;
    etcd_dies(&mut stage).await;
    stage.committed().await;
    assert_eq!(epoch_and_commits(&stage).await, (3, 1));
    // And the next one goes on from there.
    stage.swap_to(2).await;
    stage.calls(100).await;
    stage.flawless().await;
}

/// Kills etcd in the state in which a swap is `held`, for longer than any lease: the leader's, the gateways' and the
/// workers' are gone when it is back.
async fn etcd_is_away(stage: &mut Stage, held: Recorded) {
    stage.is_still(held).await;
    stage.cluster.etcd.kill();
    time::sleep(Duration::from_secs(12)).await;
    stage.calls(100).await;
    stage.cluster.etcd.restart().await;
    stage.is_still(held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_that_etcd_leaves_in_the_middle_goes_on_when_it_is_back() {
    let mut stage = stage(plan(2)).await;
    // More must be ready than there are.
    stage.promote(1, SwapPlan { min_ready: Some(3), ..SwapPlan::default() }).await;
    stage.until(|swap| swap.state() == SwapState::Preparing).await;
    etcd_is_away(&mut stage, Recorded::Preparing).await;
    stage.cluster.add_worker(&[]).await;
    stage.committed().await;

    let trial = SwapPlan { shadow_per_mille: 200, shadow_seconds: Some(3_600), ..SwapPlan::default() };
    stage.promote(2, trial).await;
    stage.until(|swap| swap.state() == SwapState::Trial).await;
    etcd_is_away(&mut stage, Recorded::Trial).await;
    let leads = |view: &View| view.leader.is_some() && !view.gateways.is_empty();
    stage.cluster.until(leads).await;
    stage.promote_on_trial(2).await;
    stage.committed().await;
    stage.calls(100).await;
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
