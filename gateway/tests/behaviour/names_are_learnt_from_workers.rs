//! A gateway that is cut off from etcd learns from workers that a name has moved, and never goes back.

use std::sync::Arc;

use proto::worker::v1::AliasSeen;

use crate::support::gateway::view;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, texts};

fn seen(mini: char, epoch: u64) -> AliasSeen {
    AliasSeen { model: "mini".into(), digest: digest(mini), epoch, canary: None }
}

/// A worker with checkpoints `a` and `b`, and a gateway whose view says `a` at epoch 1 from now on.
async fn cut_off() -> (FakeWorker, Gateway) {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a')), ("mini", &digest('b'))]);
    let gateway = Gateway::start(&[&worker]).await;
    (worker, gateway)
}

async fn until_epoch(gateway: &Gateway, epoch: u64) {
    gateway.until(|fleet| fleet.aliases().is_some_and(|aliases| aliases["mini"].epoch == epoch)).await;
}

#[tokio::test]
async fn a_report_says_it() {
    let (worker, gateway) = cut_off().await;
    worker.set(|mood| mood.reported = vec![seen('b', 2)]);
    until_epoch(&gateway, 2).await;
    let answer = gateway.embeddings().await.embed(embed(texts(3, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('b'), &texts(3, 3));
    assert_eq!(answer.provenance.unwrap().epoch, 2);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn an_answer_says_it() {
    let (worker, gateway) = cut_off().await;
    worker.set(|mood| mood.answered = Some(seen('b', 2)));
    let mut embeddings = gateway.embeddings().await;
    let answer = embeddings.embed(embed(texts(3, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('a'), &texts(3, 3));
    until_epoch(&gateway, 2).await;
    let answer = embeddings.embed(embed(texts(3, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('b'), &texts(3, 3));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_refusal_says_it_and_the_call_is_answered_all_the_same() {
    let (worker, gateway) = cut_off().await;
    worker.set(|mood| {
        mood.answered = Some(seen('b', 2));
        mood.lacks = vec![digest('a')];
    });
    let answer = gateway.embeddings().await.embed(embed(texts(3, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('b'), &texts(3, 3));
    assert_eq!(answer.provenance.unwrap().epoch, 2);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn whoever_is_behind_moves_nothing() {
    let (worker, gateway) = cut_off().await;
    gateway.views.send_replace(Arc::new(view(&[&worker], 'b', 5)));
    until_epoch(&gateway, 5).await;
    worker.set(|mood| {
        mood.reported = vec![seen('a', 4)];
        mood.answered = Some(seen('a', 4));
    });
    // An etcd that was put back to what it was.
    gateway.views.send_replace(Arc::new(view(&[&worker], 'a', 3)));
    let mut embeddings = gateway.embeddings().await;
    for _ in 0..20 {
        let answer = embeddings.embed(embed(texts(3, 3))).await.unwrap().into_inner();
        assert_vectors(&answer, &digest('b'), &texts(3, 3));
        assert_eq!(answer.provenance.unwrap().epoch, 5);
    }
    gateway.end().await.unwrap();
}
