//! A worker that lacks the checkpoint says so, and the shard goes to one that has it: the same checkpoint.

use std::sync::Arc;
use std::time::Duration;

use tokio::time;
use tonic::Code;

use crate::support::gateway::view;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, texts};

#[tokio::test]
async fn another_worker_does_it() {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    workers[0].set(|mood| mood.lacks = vec![digest('a')]);
    let mut embeddings = gateway.embeddings().await;
    for inputs in [texts(1, 3), texts(2000, 30)] {
        let answer = embeddings.embed(embed(inputs.clone())).await.unwrap().into_inner();
        assert_vectors(&answer, &digest('a'), &inputs);
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_call_stays_on_its_checkpoint_while_the_alias_moves() {
    let (old, new) = (digest('a'), digest('b'));
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &old), ("mini", &new)]));
    for worker in &workers {
        worker.set(|mood| mood.takes = Duration::from_millis(200));
    }
    workers[0].set(|mood| mood.lacks = vec![old.clone()]);
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    let mut embeddings = gateway.embeddings().await;

    let inputs = texts(2000, 30);
    let mut during = embeddings.clone();
    let call = during.embed(embed(inputs.clone()));
    let flip = async {
        while workers.iter().all(|worker| worker.running() == 0) {
            time::sleep(Duration::from_millis(1)).await;
        }
        gateway.views.send_replace(Arc::new(view(&[&workers[0], &workers[1]], 'b', 2)));
        gateway.until(|fleet| fleet.aliases().is_some_and(|aliases| aliases["mini"].epoch == 2)).await;
    };
    let (answer, ()) = tokio::join!(call, flip);
    let answer = answer.unwrap().into_inner();
    assert_vectors(&answer, &old, &inputs);
    assert_eq!(answer.provenance.unwrap().epoch, 1);

    let answer = embeddings.embed(embed(texts(1, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &new, &texts(1, 3));
    assert_eq!(answer.provenance.unwrap().epoch, 2);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn one_that_no_worker_has_after_all_is_given_up() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.lacks = vec![digest('a')]);
    let gateway = Gateway::start(&[&worker]).await;
    let status = gateway.embeddings().await.embed(embed(texts(1, 3))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    gateway.end().await.unwrap();
}
