//! A call on a name whose checkpoint was retired before it was answered is answered by the next one, whole; who
//! insists on the checkpoint is told that it is gone.

use std::sync::Arc;
use std::time::Duration;

use proto::v1;
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::support::gateway::view;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, texts};

/// Two workers with both checkpoints, and a gateway that sends `mini` to `a`.
async fn start() -> ([FakeWorker; 2], Gateway) {
    let (old, new) = (digest('a'), digest('b'));
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &old), ("mini", &new)]));
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    (workers, gateway)
}

/// Has workers end nothing that they begin from now on.
fn hold(workers: &[FakeWorker; 2]) {
    for worker in workers {
        worker.set(|mood| mood.takes = Duration::from_secs(3_600));
    }
}

/// Moves `mini` to `b`, and has every worker forget `a`, as soon as one of them is at work: what runs on `a` is lost. They
/// are held no more.
async fn retire(gateway: &Gateway, workers: &[FakeWorker; 2]) {
    while workers.iter().all(|worker| worker.running() == 0) {
        time::sleep(Duration::from_millis(1)).await;
    }
    gateway.views.send_replace(Arc::new(view(&[&workers[0], &workers[1]], 'b', 2)));
    for worker in workers {
        worker.set(|mood| {
            mood.loaded = vec![("mini".into(), digest('b'))];
            mood.loses = vec![digest('a')];
            mood.takes = Duration::ZERO;
        });
    }
}

async fn embed_during(request: v1::EmbedRequest) -> Result<v1::EmbedResponse, Status> {
    let (workers, gateway) = start().await;
    hold(&workers);
    let mut embeddings = gateway.embeddings().await;
    let (answer, ()) = tokio::join!(embeddings.embed(request), retire(&gateway, &workers));
    let restarts = gateway.metric(r#"beige_gateway_restarts_total{model="mini"}"#).await;
    assert_eq!(restarts.is_some_and(|restarts| restarts > 0.0), answer.is_ok());
    gateway.end().await.unwrap();
    answer.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn a_call_on_a_name_starts_again_whole() {
    for inputs in [texts(1, 3), texts(2000, 30)] {
        let answer = embed_during(embed(inputs.clone())).await.unwrap();
        assert_vectors(&answer, &digest('b'), &inputs);
        assert_eq!(answer.provenance.unwrap().epoch, 2);
    }
}

#[tokio::test]
async fn who_insists_on_the_checkpoint_is_told() {
    let by_name = v1::EmbedRequest { model: format!("mini@{}", digest('a')), ..embed(texts(3, 3)) };
    let what = Some(v1::require::What::Digest(digest('a')));
    let require = Some(v1::Require { what, min_epoch: 0 });
    let required = v1::EmbedRequest { require, ..embed(texts(3, 3)) };
    for request in [by_name, required] {
        let status = embed_during(request).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains(&digest('a')), "{}", status.message());
    }
}

#[tokio::test]
async fn a_stream_ends_with_a_reason() {
    let (workers, gateway) = start().await;
    let (requests, sent) = mpsc::channel(1);
    let mut embeddings = gateway.embeddings().await;
    let mut answers = embeddings.embed_stream(ReceiverStream::new(sent)).await.unwrap().into_inner();
    requests.send(embed(texts(1, 3))).await.unwrap();
    assert_vectors(&answers.message().await.unwrap().unwrap(), &digest('a'), &texts(1, 3));
    hold(&workers);
    requests.send(embed(texts(1, 3))).await.unwrap();
    let (answer, ()) = tokio::join!(answers.message(), retire(&gateway, &workers));
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("retired"), "{}", status.message());
    gateway.end().await.unwrap();
}
