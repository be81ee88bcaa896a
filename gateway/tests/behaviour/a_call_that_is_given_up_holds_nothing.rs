//! A caller that goes away takes its work with it.

use std::time::Duration;

use futures::StreamExt as _;
use tokio::time;

use crate::support::{FakeWorker, Gateway, digest, embed, texts};

async fn until_idle(gateway: &Gateway, worker: &FakeWorker) {
    gateway.until_metric("beige_gateway_outstanding_tokens", 0.0).await;
    while worker.running() > 0 {
        time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_busy(worker: &FakeWorker) {
    while worker.running() == 0 {
        time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_worker() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_secs(60));
    let gateway = Gateway::start(&[&worker]).await;
    let mut embeddings = gateway.embeddings().await;
    tokio::select! {
        answer = embeddings.embed(embed(texts(2000, 30))) => panic!("{answer:?}"),
        () = until_busy(&worker) => {}
    }
    until_idle(&gateway, &worker).await;
    let counted = r#"beige_gateway_requests_total{method="beige.v1.Embeddings/Embed",code="CANCELLED"}"#;
    gateway.until_metric(counted, 1.0).await;
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_stream_whose_reader_is_gone_ends() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_secs(60));
    let gateway = Gateway::start(&[&worker]).await;
    let mut embeddings = gateway.embeddings().await;
    let requests = futures::stream::repeat(embed(texts(5, 3))).take(100);
    let answers = embeddings.embed_stream(requests).await.unwrap();
    until_busy(&worker).await;
    drop(answers);
    until_idle(&gateway, &worker).await;
    let counted =
        r#"beige_gateway_requests_total{method="beige.v1.Embeddings/EmbedStream",code="CANCELLED"}"#;
    gateway.until_metric(counted, 1.0).await;
    gateway.end().await.unwrap();
}
