//! What is lost, and that no caller notices.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;
use std::time::Duration;

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::{EmbedRequest, Truncation, WorkerState};
use tests::history::{Book, Callers, Entry, Load, Record};
use tests::{Cluster, Golden, PATIENCE, checkpoint, minilm};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

const MODEL: &str = "bert-cls";

async fn seconds(count: u64) {
    time::sleep(Duration::from_secs(count)).await;
}

/// A cluster of two workers, and callers that do not rest.
async fn loaded() -> (Cluster, Callers) {
    static BOOK: OnceCell<Arc<Book>> = OnceCell::const_new();
    let book = BOOK.get_or_init(async || Arc::new(Book::of(&[checkpoint(MODEL).into()]).await)).await;
    let cluster = Cluster::start(2, &[checkpoint(MODEL)]).await;
    let load = Load { model: MODEL.to_owned(), callers: 8, rest: Duration::ZERO, most: 8 };
    let callers = Callers::start(book, &load, &cluster.gateways);
    (cluster, callers)
}

/// Every call was answered, by one checkpoint.
#[track_caller]
fn assert_flawless(record: &Record) {
    record.assert_flawless();
    assert_eq!(record.summary(0..u64::MAX).digests.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_fails_no_call() {
    let (mut cluster, callers) = loaded().await;
    seconds(3).await;
    cluster.workers[0].kill().await;
    seconds(5).await;
    // And one that comes in mid load takes its part.
    cluster.add_worker(&[]).await;
    cluster.wait_for(2, WorkerState::Serving).await;
    let begun = Instant::now();
    while let newcomer = cluster.fleet().await.into_iter().find(|worker| worker.id == "worker-2").unwrap()
        && newcomer.total_tokens == 0
    {
        assert!(begun.elapsed() < PATIENCE, "{newcomer:?}");
        time::sleep(Duration::from_millis(100)).await;
    }
    seconds(3).await;
    assert_flawless(&callers.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_end_fails_no_call() {
    let (mut cluster, callers) = loaded().await;
    seconds(2).await;
    cluster.workers[0].terminate();
    let status = cluster.workers[0].ended().await;
    assert!(status.success(), "{status}");
    seconds(2).await;
    assert_flawless(&callers.finish().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_busy_worker_without_a_fault() {
    // A model whose batches take long: the second signal comes in the middle of one.
    let mut cluster = Cluster::start(1, &[minilm()]).await;
    let request = EmbedRequest {
        model: "all-MiniLM-L6-v2".to_owned(),
        inputs: Golden::read("minilm").readable().texts,
        truncation: Truncation::End.into(),
        ..EmbedRequest::default()
    };
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let (client, request) = (EmbeddingsClient::new(cluster.channel()), request.clone());
        callers.spawn(async move { while client.clone().embed(request.clone()).await.is_ok() {} });
    }
    seconds(2).await;
    cluster.workers[0].terminate();
    time::sleep(Duration::from_millis(200)).await;
    cluster.workers[0].terminate();
    let status = cluster.workers[0].ended().await;
    assert!(status.code().is_some(), "ended by its own hand: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_away_for_a_minute_fails_no_call() {
    let (mut cluster, callers) = loaded().await;
    seconds(2).await;
    cluster.etcd.stop().await;
    seconds(60).await;
    assert_eq!(cluster.fleet().await.len(), 2, "an outage keeps the last view");
    cluster.etcd.restart().await;
    seconds(5).await;
    assert_flawless(&callers.finish().await);
    for process in cluster.workers.iter_mut().chain(&mut cluster.gateways) {
        assert!(process.is_running(), "nothing restarts");
    }

    // The registrations are back: a gateway that starts now finds both workers.
    let late = cluster.another_gateway(&[]).await;
    cluster.gateways.insert(0, late);
    cluster.wait_for(2, WorkerState::Serving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_asked_to_end_fails_no_call_it_accepted() {
    let (mut cluster, callers) = loaded().await;
    seconds(2).await;
    cluster.gateways[0].terminate();
    let status = cluster.gateways[0].ended().await;
    let mut record = callers.finish().await;
    assert!(status.success(), "{status}");
    record.entries.retain(|entry| !never_sent(entry));
    assert_flawless(&record);
}

/// Whether the client kept the call to itself, so that nobody accepted it: it had not sent it when the connection was
/// closed, as hyper says, or could not connect any more.
fn never_sent(entry: &Entry) -> bool {
    let Err(failure) = &entry.result else { return false };
    let said = &failure.message;
    said.contains(r#"hyper::Error(Canceled, "connection closed")"#) || said.contains("ConnectError")
}
