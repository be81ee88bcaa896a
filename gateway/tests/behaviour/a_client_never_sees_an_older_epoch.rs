//! A caller that names the epoch it was answered with last is answered with that one or a later one, or not at all.

use std::sync::Arc;
use std::time::Duration;

use proto::v1;
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::gateway::view;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, texts};

fn at_least(min_epoch: u64) -> v1::EmbedRequest {
    let require = Some(v1::Require { min_epoch, ..v1::Require::default() });
    v1::EmbedRequest { require, ..embed(texts(3, 3)) }
}

fn worker() -> FakeWorker {
    FakeWorker::start("w1", &[("mini", &digest('a')), ("mini", &digest('b'))])
}

#[tokio::test]
async fn a_gateway_that_is_behind_catches_up_first() {
    let worker = worker();
    let gateway = Gateway::start(&[&worker]).await;
    let mut embeddings = gateway.embeddings().await;
    let news = async {
        time::sleep(Duration::from_millis(100)).await;
        gateway.views.send_replace(Arc::new(view(&[&worker], 'b', 2)));
    };
    let (answer, ()) = tokio::join!(embeddings.embed(at_least(2)), news);
    let answer = answer.unwrap().into_inner();
    assert_vectors(&answer, &digest('b'), &texts(3, 3));
    assert_eq!(answer.provenance.unwrap().epoch, 2);
    embeddings.embed(at_least(1)).await.unwrap();
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn one_that_stays_behind_says_so() {
    let worker = worker();
    let gateway = Gateway::start(&[&worker]).await;
    let mut embeddings = gateway.embeddings().await;
    let status = embeddings.embed(at_least(7)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("epoch 1") && status.message().contains('7'), "{}", status.message());
    assert!(worker.take_seen().is_empty(), "no worker was asked");
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_stream_cannot_move_to_a_later_epoch() {
    let worker = worker();
    let gateway = Gateway::start(&[&worker]).await;
    let (requests, sent) = mpsc::channel(1);
    let mut embeddings = gateway.embeddings().await;
    let mut answers = embeddings.embed_stream(ReceiverStream::new(sent)).await.unwrap().into_inner();
    requests.send(at_least(1)).await.unwrap();
    assert_vectors(&answers.message().await.unwrap().unwrap(), &digest('a'), &texts(3, 3));
    requests.send(at_least(2)).await.unwrap();
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("epoch 1"), "{}", status.message());
    gateway.end().await.unwrap();
}
