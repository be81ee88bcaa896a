//! What is lost, and that no caller notices.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use proto::v1::WorkerState;
use tests::{Cluster, Golden, Load, checkpoint, minilm};
use tokio::time;
use tonic::Status;

const MODEL: &str = "bert-cls";
const CALLERS: usize = 8;
const TEXTS_PER_CALL: usize = 5;

async fn seconds(count: u64) {
    time::sleep(Duration::from_secs(count)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_fails_no_call() {
    let mut cluster = Cluster::start(2, &[checkpoint(MODEL)]).await;
    let golden = Golden::read(MODEL).readable();
    let load = Load::start(&cluster.channel(), MODEL, &golden, CALLERS, TEXTS_PER_CALL);
    seconds(3).await;
    cluster.workers[0].kill().await;
    seconds(5).await;
    // And one that comes in mid load takes its part.
    cluster.add_worker(&[]).await;
    cluster.wait_for(2, WorkerState::Serving).await;
    seconds(3).await;
    load.finish().await.assert_flawless();
    let newcomer = cluster.fleet().await.into_iter().find(|worker| worker.id == "worker-2").unwrap();
    assert!(newcomer.total_tokens > 0, "{newcomer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_end_fails_no_call() {
    let mut cluster = Cluster::start(2, &[checkpoint(MODEL)]).await;
    let golden = Golden::read(MODEL).readable();
    let load = Load::start(&cluster.channel(), MODEL, &golden, CALLERS, TEXTS_PER_CALL);
    seconds(2).await;
    cluster.workers[0].terminate();
    let status = cluster.workers[0].ended().await;
    assert!(status.success(), "{status}");
    seconds(2).await;
    load.finish().await.assert_flawless();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_busy_worker_without_a_fault() {
    // A model whose batches take long: the second signal comes in the middle of one.
    let mut cluster = Cluster::start(1, &[minilm()]).await;
    let golden = Golden::read("minilm").readable();
    let load = Load::start(&cluster.channel(), "all-MiniLM-L6-v2", &golden, CALLERS, 40);
    seconds(2).await;
    cluster.workers[0].terminate();
    time::sleep(Duration::from_millis(200)).await;
    cluster.workers[0].terminate();
    let status = cluster.workers[0].ended().await;
    assert!(status.code().is_some(), "ended by its own hand: {status}");
    // Nobody is left to answer.
    drop(load);
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_away_for_a_minute_fails_no_call() {
    let mut cluster = Cluster::start(2, &[checkpoint(MODEL)]).await;
    let golden = Golden::read(MODEL).readable();
    let load = Load::start(&cluster.channel(), MODEL, &golden, CALLERS, TEXTS_PER_CALL);
    seconds(2).await;
    cluster.etcd.stop().await;
    seconds(60).await;
    assert_eq!(cluster.fleet().await.len(), 2, "an outage keeps the last view");
    cluster.etcd.restart().await;
    seconds(5).await;
    load.finish().await.assert_flawless();
    for worker in &mut cluster.workers {
        assert!(worker.is_running(), "nothing restarts");
    }
    assert!(cluster.gateway.is_running(), "nothing restarts");

    // The registrations are back: a gateway that starts now finds both workers.
    let mut late = cluster.another_gateway(&[]).await;
    std::mem::swap(&mut cluster.gateway, &mut late);
    cluster.wait_for(2, WorkerState::Serving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_asked_to_end_fails_no_call_it_accepted() {
    let mut cluster = Cluster::start(2, &[checkpoint(MODEL)]).await;
    let golden = Golden::read(MODEL).readable();
    let load = Load::start(&cluster.channel(), MODEL, &golden, CALLERS, TEXTS_PER_CALL);
    seconds(2).await;
    cluster.gateway.terminate();
    let status = cluster.gateway.ended().await;
    let mut outcome = load.finish().await;
    assert!(status.success(), "{status}");
    outcome.failures.retain(|failure| !never_sent(failure));
    outcome.assert_flawless();
}

/// Whether the client kept the call to itself, so that nobody accepted it: it had not sent it when the connection was
/// closed, as hyper says, or could not connect any more.
fn never_sent(failure: &Status) -> bool {
    let said = format!("{failure:?}");
    said.contains(r#"hyper::Error(Canceled, "connection closed")"#) || said.contains("ConnectError")
}
