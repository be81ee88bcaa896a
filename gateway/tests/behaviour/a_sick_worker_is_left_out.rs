//! A worker that says it is well and answers badly gets no work for a while, and then some again.

use std::time::Duration;

use futures::future::join_all;
use proto::v1::embeddings_client::EmbeddingsClient;
use tokio::time;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{FakeWorker, Gateway, digest, embed, texts};

fn workers() -> [FakeWorker; 3] {
    ["w1", "w2", "w3"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]))
}

fn ejected(reason: &str) -> String {
    format!(r#"beige_gateway_ejections_total{{reason="{reason}"}}"#)
}

/// Small calls from eight callers at once, each again and again for as long as `go_on` says so.
async fn load(embeddings: &EmbeddingsClient<Channel>, go_on: impl AsyncFn() -> bool) -> Vec<Status> {
    let mut failures = Vec::new();
    while go_on().await {
        let calls = (0..8).map(|_| {
            let mut embeddings = embeddings.clone();
            async move { embeddings.embed(embed(texts(1, 3))).await }
        });
        failures.extend(join_all(calls).await.into_iter().filter_map(Result::err));
    }
    failures
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_its_work_gets_none_and_then_again() {
    let workers = workers();
    let gateway = Gateway::start(&[&workers[0], &workers[1], &workers[2]]).await;
    let embeddings = gateway.embeddings().await;
    workers[2].set(|mood| mood.refuses = Some(Status::internal("out of order")));
    let out = ejected("failing");
    let until_out = async || gateway.metric(&out).await.is_none();
    let failures = time::timeout(Duration::from_secs(60), load(&embeddings, until_out)).await.unwrap();
    assert!(failures.iter().all(|status| status.code() == Code::Internal) && !failures.is_empty());

    workers[2].set(|mood| mood.refuses = None);
    workers[2].take_seen();
    let until_back = async || workers[2].take_seen().is_empty();
    let failures = time::timeout(Duration::from_secs(60), load(&embeddings, until_back)).await.unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    gateway.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_much_slower_than_the_others_gets_none() {
    let workers = workers();
    let gateway = Gateway::start(&[&workers[0], &workers[1], &workers[2]]).await;
    let embeddings = gateway.embeddings().await;
    workers[2].set(|mood| mood.takes = Duration::from_secs(1));
    let out = ejected("slow");
    let until_out = async || gateway.metric(&out).await.is_none();
    let failures = time::timeout(Duration::from_secs(60), load(&embeddings, until_out)).await.unwrap();
    assert!(failures.is_empty(), "{failures:?}");
    gateway.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_answers_gets_none() {
    let workers = workers();
    let gateway = Gateway::start(&[&workers[0], &workers[1], &workers[2]]).await;
    let embeddings = gateway.embeddings().await;
    workers[2].set(|mood| mood.takes = Duration::from_secs(600));
    let out = ejected("slow");
    let impatient = async {
        while gateway.metric(&out).await.is_none() {
            let calls = (0..8).map(|_| {
                let mut embeddings = embeddings.clone();
                let mut request = tonic::Request::new(embed(texts(1, 3)));
                request.set_timeout(Duration::from_millis(500));
                async move { embeddings.embed(request).await }
            });
            join_all(calls).await;
        }
    };
    time::timeout(Duration::from_secs(60), impatient).await.expect("what is given up counts");
    gateway.end().await.unwrap();
}
