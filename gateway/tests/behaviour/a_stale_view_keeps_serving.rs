//! The data plane outlives the control plane.

use std::sync::Arc;

use cluster::{Freshness, Sight, View};
use gateway::fleet::Fleet;

use crate::support::gateway::{serving, view};
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, texts};

#[tokio::test]
async fn a_worker_whose_registration_vanished_is_used_while_it_reports() {
    let mut worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let aliases = gateway.views.borrow().aliases.clone();
    gateway.views.send_replace(Arc::new(View { aliases, ..View::default() }));
    gateway.sight.send_replace(Sight { freshness: Freshness::Stale, refusals: 0 });
    let mut embeddings = gateway.embeddings().await;
    for _ in 0..20 {
        let answer = embeddings.embed(embed(texts(5, 3))).await.unwrap().into_inner();
        assert_vectors(&answer, &digest('a'), &texts(5, 3));
    }
    assert!(gateway.ask("/readyz").await.starts_with("HTTP/1.1 200"));
    worker.kill();
    gateway.until(|fleet| fleet.members().is_empty()).await;
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_gateway_goes_on_when_nobody_follows_the_cluster_any_more() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let mut gateway = Gateway::start(&[&worker]).await;
    // Both ends are dropped: as if what follows etcd had ended.
    gateway.views = tokio::sync::watch::channel(Arc::default()).0;
    gateway.sight = tokio::sync::watch::channel(Sight::default()).0;
    let mut embeddings = gateway.embeddings().await;
    for _ in 0..20 {
        embeddings.embed(embed(texts(5, 3))).await.unwrap();
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_registered_worker_that_is_dead_gets_nothing() {
    let (dead, live) = (
        FakeWorker::start("w1", &[("mini", &digest('a'))]),
        FakeWorker::start("w2", &[("mini", &digest('a'))]),
    );
    let view = view(&[&dead, &live], 'a', 1);
    drop(dead);
    let gateway = Gateway::begin(view, serving()).await;
    gateway.until(Fleet::serves).await;
    let mut embeddings = gateway.embeddings().await;
    for _ in 0..20 {
        embeddings.embed(embed(texts(5, 3))).await.unwrap();
    }
    assert_eq!(live.take_seen().len(), 20);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn another_process_at_the_same_address_is_believed_anew() {
    let mut worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    worker.kill();
    gateway.until(|fleet| !fleet.serves()).await;
    worker.set(|mood| mood.loaded = vec![("mini".into(), digest('b'))]);
    worker.revive();
    gateway.until(|fleet| !fleet.ready(&digest('b').as_str().into()).is_empty()).await;
    gateway.until(|fleet| fleet.ready(&digest('a').as_str().into()).is_empty()).await;
    gateway.end().await.unwrap();
}
