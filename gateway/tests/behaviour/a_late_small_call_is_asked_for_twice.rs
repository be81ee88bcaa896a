//! Where a worker is late with a small call, another one is asked as well, within a budget; the loser is cancelled.

use std::time::Duration;

use futures::future::join_all;
use proto::v1;
use tokio::time;

use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, rerank, texts};

fn workers() -> [FakeWorker; 2] {
    ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]))
}

/// A gateway that knows what is late.
async fn settled(workers: &[FakeWorker; 2]) -> Gateway {
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    let embeddings = gateway.embeddings().await;
    for _ in 0..25 {
        let calls = (0..8).map(|_| {
            let mut embeddings = embeddings.clone();
            async move { embeddings.embed(embed(texts(1, 3))).await }
        });
        assert!(join_all(calls).await.iter().all(Result::is_ok));
    }
    gateway
}

async fn hedges(gateway: &Gateway, taken: &str) -> f64 {
    gateway.metric(&format!(r#"beige_gateway_hedges_total{{taken="{taken}"}}"#)).await.unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sooner_answer_is_taken_and_the_other_one_cancelled() {
    let workers = workers();
    let gateway = settled(&workers).await;
    // Whichever of the two has the call never answers it.
    workers[0].set(|mood| mood.takes = Duration::from_secs(600));
    let mut embeddings = gateway.embeddings().await;
    let answered = async {
        while hedges(&gateway, "second").await < 1.0 {
            let inputs = texts(1, 3);
            let answer = embeddings.embed(embed(inputs.clone())).await.unwrap().into_inner();
            assert_vectors(&answer, &digest('a'), &inputs);
        }
        while workers[0].running() > 0 {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    time::timeout(Duration::from_secs(60), answered).await.expect("it was left with the late one");
    gateway.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_a_few_are_asked_for_twice() {
    let workers = workers();
    let gateway = settled(&workers).await;
    // All are late, by what was usual before, on a noisy machine as well.
    for worker in &workers {
        worker.set(|mood| mood.takes = Duration::from_secs(3));
    }
    let embeddings = gateway.embeddings().await;
    let calls = (0..150).map(|_| {
        let mut embeddings = embeddings.clone();
        async move { embeddings.embed(embed(texts(1, 3))).await }
    });
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    let asked = hedges(&gateway, "first").await + hedges(&gateway, "second").await;
    // A twentieth of all so far, and ten to begin with.
    assert!((1.0..=28.0).contains(&asked), "{asked}");
    gateway.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_calls_streams_and_jobs_are_asked_for_once() {
    let workers = workers();
    let gateway = settled(&workers).await;
    let before = hedges(&gateway, "first").await + hedges(&gateway, "second").await;
    for worker in &workers {
        worker.take_seen();
        worker.set(|mood| mood.takes = Duration::from_millis(500));
    }
    let mut embeddings = gateway.embeddings().await;
    embeddings.embed(embed(texts(60, 60))).await.unwrap();
    let job = v1::EmbedRequest { priority: v1::Priority::Bulk.into(), ..embed(texts(1, 3)) };
    embeddings.embed(job).await.unwrap();
    let requests = futures::stream::iter([embed(texts(1, 3))]);
    let mut answers = embeddings.embed_stream(requests).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    gateway.reranking().await.rerank(rerank(texts(200, 30))).await.unwrap();
    let after = hedges(&gateway, "first").await + hedges(&gateway, "second").await;
    assert!((after - before).abs() < 1e-9, "{before} and {after}");
    let inputs: usize = workers.iter().flat_map(FakeWorker::take_seen).map(|seen| seen.inputs).sum();
    assert_eq!(inputs, 60 + 1 + 1 + 200);
    gateway.end().await.unwrap();
}
