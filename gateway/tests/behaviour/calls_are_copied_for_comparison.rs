//! While a checkpoint is on trial in the shadow, calls are answered by the old one as ever, and copies of them by the
//! new one are compared with the answers.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Shadow, View};
use tokio::time::Instant;

use crate::support::gateway::view;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, rerank, texts};

/// `mini` means `a`, and every call is tried on `b`.
fn in_the_shadow(worker: &FakeWorker) -> View {
    let mut view = view(&[worker], 'a', 2);
    let alias = view.aliases.get_mut("mini").unwrap();
    alias.swap_id = Some("swap".into());
    alias.shadow = Some(Shadow { digest: digest('b'), per_mille: 1000 });
    view
}

async fn begin(worker: &FakeWorker) -> Gateway {
    let gateway = Gateway::start(&[worker]).await;
    gateway.views.send_replace(Arc::new(in_the_shadow(worker)));
    gateway.until(|fleet| fleet.aliases().is_some_and(|aliases| aliases["mini"].epoch == 2)).await;
    gateway
}

fn worker() -> FakeWorker {
    FakeWorker::start("w1", &[("mini", &digest('a')), ("mini", &digest('b'))])
}

async fn until_copied(gateway: &Gateway, copies: u64) -> cluster::ShadowSample {
    let seen = |record: &cluster::Gateway| {
        record
            .trials
            .get("mini")
            .is_some_and(|trial| trial.sample.shadow.calls + trial.sample.shadow.failures == copies)
    };
    gateway.until_says(seen).await.trials.remove("mini").unwrap().sample.shadow
}

#[tokio::test]
async fn embeddings_are_compared_by_cosine() {
    let worker = worker();
    let gateway = begin(&worker).await;
    let mut embeddings = gateway.embeddings().await;
    for _ in 0..3 {
        let answer = embeddings.embed(embed(texts(5, 3))).await.unwrap().into_inner();
        assert_vectors(&answer, &digest('a'), &texts(5, 3));
    }
    let shadow = until_copied(&gateway, 3).await;
    assert_eq!((shadow.calls, shadow.failures), (3, 0));
    // The fakes' vectors of two checkpoints differ in one number of four.
    let (min, mean) = (shadow.cosine.min().unwrap(), shadow.cosine.mean().unwrap());
    assert!((0.5..=mean).contains(&min) && mean < 1.0, "{min} {mean}");
    assert!(shadow.latency_ratio.quantile(0.5).is_some());
    assert_eq!(shadow.rank_correlation.mean(), None);
    let copies: Vec<_> =
        worker.take_seen().into_iter().filter(|seen| seen.origin.digest == digest('b')).collect();
    assert_eq!(copies.len(), 3);
    gateway.until_metric(r#"beige_gateway_shadows_total{result="answered"}"#, 3.0).await;
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn rankings_are_compared_by_rank() {
    let worker = worker();
    let gateway = begin(&worker).await;
    let mut best = rerank(texts(20, 3));
    best.top_n = Some(5);
    gateway.reranking().await.rerank(best).await.unwrap();
    let shadow = until_copied(&gateway, 1).await;
    // The fakes score alike whatever the checkpoint.
    assert!((shadow.rank_correlation.min().unwrap() - 1.0).abs() < 1e-9);
    assert_eq!(shadow.cosine.mean(), None);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_caller_never_waits_for_a_copy_and_what_has_no_room_is_dropped() {
    let worker = worker();
    let gateway = begin(&worker).await;
    worker.set(|mood| mood.dawdles = Some((digest('b'), Duration::from_secs(3600))));
    let mut embeddings = gateway.embeddings().await;
    let began = Instant::now();
    for _ in 0..20 {
        let answer = embeddings.embed(embed(texts(5, 3))).await.unwrap().into_inner();
        assert_vectors(&answer, &digest('a'), &texts(5, 3));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "callers waited");
    assert_eq!(until_copied(&gateway, 16).await.failures, 16);
    assert_eq!(gateway.metric(r#"beige_gateway_shadows_total{result="dropped"}"#).await, Some(16.0));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_copy_that_fails_is_counted_and_nothing_else() {
    let worker = worker();
    let gateway = begin(&worker).await;
    worker.set(|mood| mood.loaded.truncate(1));
    gateway.until(|fleet| fleet.ready(&digest('b').as_str().into()).is_empty()).await;
    let answer = gateway.embeddings().await.embed(embed(texts(5, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('a'), &texts(5, 3));
    assert_eq!(until_copied(&gateway, 1).await.failures, 1);
    gateway.end().await.unwrap();
}
