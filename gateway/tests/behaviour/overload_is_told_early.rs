//! Bounded by tokens: what has no room is refused at once, and told when to come back.

use std::time::Duration;

use gateway::config::Serving;
use proto::v1;
use tokio::time;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::support::gateway::serving;
use crate::support::{FakeWorker, Gateway, digest, embed, texts};

fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[tokio::test]
async fn what_has_no_room_is_refused_at_once() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_secs(60));
    let gateway = Gateway::start_with(&[&worker], Serving { max_queued_tokens: 1000, ..serving() }).await;
    let embeddings = gateway.embeddings().await;
    let (mut first, mut second) = (embeddings.clone(), embeddings);
    let refusal = async {
        while worker.running() == 0 {
            time::sleep(Duration::from_millis(10)).await;
        }
        second.embed(embed(texts(200, 12))).await.unwrap_err()
    };
    let status = tokio::select! {
        answer = first.embed(embed(texts(50, 12))) => panic!("{answer:?}"),
        status = refusal => status,
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(retry_delay(&status).is_some());
    let counted = r#"beige_gateway_refused_total{reason="full"}"#;
    assert_eq!(gateway.metric(counted).await, Some(1.0));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_job_that_cannot_be_in_time_is_refused_at_once() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    worker.set(|mood| (mood.queued_tokens, mood.tokens_per_second) = (1_000_000, 1000.0));
    let mut embeddings = gateway.embeddings().await;
    let job = || v1::EmbedRequest { priority: v1::Priority::Bulk.into(), ..embed(texts(1, 3)) };
    // Until the next report the gateway knows of no queue.
    let status = loop {
        match embeddings.embed(job()).await {
            Ok(_) => time::sleep(Duration::from_millis(10)).await,
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(retry_delay(&status), Some(Duration::from_secs(10)));
    embeddings.embed(embed(texts(1, 3))).await.expect("who waits goes before jobs");
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_busy_worker_is_passed_over_and_two_busy_ones_are_told() {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    let mut embeddings = gateway.embeddings().await;
    let details = ErrorDetails::with_retry_info(Some(Duration::from_millis(1234)));
    let busy = Status::with_error_details(Code::ResourceExhausted, "the queue is full", details);
    workers[0].set(|mood| mood.refuses = Some(busy.clone()));
    for _ in 0..5 {
        embeddings.embed(embed(texts(1, 3))).await.unwrap();
    }
    workers[1].set(|mood| mood.refuses = Some(busy));
    let status = embeddings.embed(embed(texts(1, 3))).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(retry_delay(&status), Some(Duration::from_millis(1234)));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_workers_defect_is_told_by_an_id() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    worker.set(|mood| mood.refuses = Some(Status::internal("a secret")));
    let status = gateway.embeddings().await.embed(embed(texts(1, 3))).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("id ") && !status.message().contains("secret"));
    assert_eq!(worker.take_seen().len(), 1, "it is not tried again");
    gateway.end().await.unwrap();
}
