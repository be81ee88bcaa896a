//! A worker may die, hang or leave in the middle of calls, and its shards are done elsewhere.

use std::time::Duration;

use futures::future::join_all;
use tokio::time;
use tonic::{Code, Status};

use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, texts};

fn worker(id: &str) -> FakeWorker {
    let worker = FakeWorker::start(id, &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_millis(30));
    worker
}

/// Calls from eight callers at once, each checked.
async fn load(gateway: &Gateway, calls: usize) {
    let embeddings = gateway.embeddings().await;
    join_all((0..8).map(|_| {
        let mut embeddings = embeddings.clone();
        async move {
            let inputs = texts(200, 30);
            for _ in 0..calls {
                let answer = embeddings.embed(embed(inputs.clone())).await.unwrap().into_inner();
                assert_vectors(&answer, &digest('a'), &inputs);
            }
        }
    }))
    .await;
}

async fn in_the_middle(worker: &FakeWorker) {
    time::sleep(Duration::from_millis(200)).await;
    while worker.running() == 0 {
        time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn killing_one_of_two_under_load_fails_no_call() {
    let (mut dying, staying) = (worker("w1"), worker("w2"));
    let gateway = Gateway::start(&[&dying, &staying]).await;
    let death = async {
        in_the_middle(&dying).await;
        dying.kill();
    };
    tokio::join!(load(&gateway, 20), death);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn the_only_worker_may_come_back_within_the_deadline() {
    let mut only = worker("w1");
    let gateway = Gateway::start(&[&only]).await;
    let restart = async {
        in_the_middle(&only).await;
        only.kill();
        time::sleep(Duration::from_millis(500)).await;
        only.revive();
    };
    tokio::join!(load(&gateway, 20), restart);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_turns_work_away_because_it_leaves_fails_no_call() {
    let (leaving, staying) = (worker("w1"), worker("w2"));
    let gateway = Gateway::start(&[&leaving, &staying]).await;
    let leave = async {
        time::sleep(Duration::from_millis(100)).await;
        // For a moment it refuses what it is sent, and its report is still on the way.
        leaving.set(|mood| mood.refuses = Some(Status::unavailable("leaving")));
        time::sleep(Duration::from_millis(60)).await;
        leaving.set(|mood| mood.draining = true);
    };
    tokio::join!(load(&gateway, 20), leave);
    gateway.until(|fleet| fleet.serving().count() == 1).await;
    leaving.take_seen();
    load(&gateway, 1).await;
    assert_eq!(leaving.take_seen().len(), 0, "nothing new goes to a worker that drains");
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn without_any_worker_the_caller_is_told_to_come_back() {
    let mut only = worker("w1");
    let gateway = Gateway::start(&[&only]).await;
    only.kill();
    gateway.until(|fleet| !fleet.serves()).await;
    let status = gateway.embeddings().await.embed(embed(texts(1, 3))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some());
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_shard_that_kills_every_worker_is_given_up() {
    let mut worker = worker("w1");
    worker.set(|mood| mood.takes = Duration::from_secs(60));
    let gateway = Gateway::start(&[&worker]).await;
    let mut embeddings = gateway.embeddings().await;
    let call = embeddings.embed(embed(texts(1, 3)));
    let deaths = async {
        loop {
            while worker.running() == 0 {
                time::sleep(Duration::from_millis(10)).await;
            }
            worker.kill();
            while worker.running() > 0 {
                time::sleep(Duration::from_millis(10)).await;
            }
            worker.revive();
        }
    };
    let status = tokio::select! {
        answer = call => answer.unwrap_err(),
        () = deaths => unreachable!("deaths have no end"),
    };
    assert_eq!(status.code(), Code::Unavailable);
    gateway.end().await.unwrap();
}
