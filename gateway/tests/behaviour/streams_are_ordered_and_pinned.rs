//! One answer per request, in order, all by the checkpoint that the first request fixed.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, stream};
use proto::v1;
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::gateway::view;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, field, rerank, texts};

#[tokio::test]
async fn answers_come_in_the_order_of_the_requests() {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    workers[0].set(|mood| mood.takes = Duration::from_millis(20));
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    let inputs: Vec<_> = (0..200).map(|i| vec![format!("request {i}")]).collect();
    let requests = stream::iter(inputs.clone()).map(embed);
    let answers = gateway.embeddings().await.embed_stream(requests).await.unwrap().into_inner();
    let answers: Vec<_> = answers.collect().await;
    assert_eq!(answers.len(), inputs.len());
    for (answer, inputs) in answers.into_iter().zip(inputs) {
        assert_vectors(&answer.unwrap(), &digest('a'), &inputs);
    }
    assert!(workers.iter().all(|worker| !worker.take_seen().is_empty()));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn rerank_streams_are_ordered_too() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let requests = stream::iter(1..50).map(|documents| rerank(texts(documents, 3)));
    let answers = gateway.reranking().await.rerank_stream(requests).await.unwrap().into_inner();
    let lengths: Vec<_> = answers.map(|answer| answer.unwrap().rankings.len()).collect().await;
    assert!(lengths.into_iter().eq(1..50));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn the_first_request_may_come_after_the_headers_of_the_answer() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let (requests, sent) = mpsc::channel(1);
    let mut embeddings = gateway.embeddings().await;
    let mut answers = embeddings.embed_stream(ReceiverStream::new(sent)).await.unwrap().into_inner();
    for i in 0..3 {
        let inputs = vec![format!("request {i}")];
        requests.send(embed(inputs.clone())).await.unwrap();
        assert_vectors(&answers.message().await.unwrap().unwrap(), &digest('a'), &inputs);
    }
    drop(requests);
    assert!(answers.message().await.unwrap().is_none());
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_stream_stays_on_its_checkpoint_while_the_alias_moves() {
    let (a, b) = (digest('a'), digest('b'));
    let worker = FakeWorker::start("w1", &[("mini", &a), ("mini", &b)]);
    let gateway = Gateway::start(&[&worker]).await;
    let (requests, sent) = mpsc::channel(1);
    let mut embeddings = gateway.embeddings().await;
    let mut answers = embeddings.embed_stream(ReceiverStream::new(sent)).await.unwrap().into_inner();
    requests.send(embed(texts(1, 3))).await.unwrap();
    assert_vectors(&answers.message().await.unwrap().unwrap(), &a, &texts(1, 3));
    gateway.views.send_replace(Arc::new(view(&[&worker], 'b', 2)));
    gateway.until(|fleet| fleet.aliases().is_some_and(|aliases| aliases["mini"].epoch == 2)).await;
    requests.send(embed(texts(1, 3))).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_vectors(&answer, &a, &texts(1, 3));
    assert_eq!(answer.provenance.unwrap().epoch, 1);

    let other = v1::EmbedRequest { model: format!("mini@{b}"), ..embed(texts(1, 3)) };
    requests.send(other).await.unwrap();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::FailedPrecondition);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_bad_request_ends_the_stream_after_the_answers_before_it() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_millis(50));
    let gateway = Gateway::start(&[&worker]).await;
    let mut requests: Vec<_> = (0..5).map(|_| embed(texts(2, 3))).collect();
    requests[3].inputs[1].clear();
    let mut embeddings = gateway.embeddings().await;
    let mut answers = embeddings.embed_stream(stream::iter(requests)).await.unwrap().into_inner();
    for _ in 0..3 {
        assert_vectors(&answers.message().await.unwrap().unwrap(), &digest('a'), &texts(2, 3));
    }
    let status = answers.message().await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_deref()), (Code::InvalidArgument, Some("inputs[1]")));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_holds_back_the_source() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let (requests, sent) = mpsc::channel(1);
    let mut embeddings = gateway.embeddings().await;
    // An answer is larger than what HTTP/2 takes in without a reader.
    let inputs = texts(4000, 3);
    let mut answers = embeddings.embed_stream(ReceiverStream::new(sent)).await.unwrap().into_inner();
    let mut sent = 0_usize;
    while time::timeout(Duration::from_secs(1), requests.send(embed(inputs.clone()))).await.is_ok() {
        sent += 1;
        assert!(sent < 500, "the source is never held back");
    }
    drop(requests);
    for _ in 0..sent {
        assert_vectors(&answers.message().await.unwrap().unwrap(), &digest('a'), &inputs);
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_stream_waits_where_a_call_would_be_refused() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    worker.set(|mood| mood.refuses = Some(tonic::Status::resource_exhausted("full")));
    let mut embeddings = gateway.embeddings().await;
    let requests = stream::iter([embed(texts(1, 3))]);
    let mut answers = embeddings.embed_stream(requests).await.unwrap().into_inner();
    let relief = async {
        time::sleep(Duration::from_millis(300)).await;
        worker.set(|mood| mood.refuses = None);
    };
    let (answer, ()) = tokio::join!(answers.message(), relief);
    assert_vectors(&answer.unwrap().unwrap(), &digest('a'), &texts(1, 3));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_streams_deadline_is_the_streams() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let (requests, sent) = mpsc::channel(1);
    let mut call = tonic::Request::new(ReceiverStream::new(sent));
    // Long enough for a first answer on a noisy machine.
    call.set_timeout(Duration::from_secs(5));
    let mut answers = gateway.embeddings().await.embed_stream(call).await.unwrap().into_inner();
    requests.send(embed(texts(1, 3))).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    assert_eq!(answers.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    gateway.end().await.unwrap();
}
