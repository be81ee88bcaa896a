//! TLS on both legs: whoever has no certificate is refused, and new certificates come without a failed call.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use gateway::fleet::Fleet;
use proto::v1::EmbedResponse;
use proto::v1::embeddings_client::EmbeddingsClient;
use tls::Dialer;
use tokio::time;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::support::certificates::Certificates;
use crate::support::gateway::{serving, view};
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, texts};

/// Connects anew and asks.
async fn ask(gateway: &Gateway, dialer: &Dialer, inputs: Vec<String>) -> Result<EmbedResponse, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    let channel = dialer.connect(&endpoint).await.map_err(|error| Status::from_error(error.into()))?;
    Ok(EmbeddingsClient::new(channel).embed(embed(inputs)).await?.into_inner())
}

fn secured(id: &str, certificates: &Certificates) -> FakeWorker {
    FakeWorker::guarded(id, &[("mini", &digest('a'))], Some(certificates.worker()))
}

#[tokio::test]
async fn whoever_has_a_certificate_is_answered_and_nobody_else() {
    let certificates = Certificates::new();
    let worker = secured("w1", &certificates);
    let gateway = Gateway::guarded(view(&[&worker], 'a', 1), serving(), certificates.guard()).await;
    gateway.until(Fleet::serves).await;
    let inputs = texts(500, 30);
    let answer = ask(&gateway, &certificates.caller(), inputs.clone()).await.unwrap();
    assert_vectors(&answer, &digest('a'), &inputs);
    ask(&gateway, &certificates.stranger(), texts(1, 3)).await.unwrap_err();
    ask(&gateway, &Dialer::default(), texts(1, 3)).await.unwrap_err();
    for reason in ["no_certificate", "plaintext"] {
        let counted = format!(r#"beige_gateway_connections_refused_total{{reason="{reason}"}}"#);
        gateway.until_metric(&counted, 1.0).await;
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_cannot_be_known_gets_no_work() {
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let known = secured("known", &certificates);
    let stranger = secured("stranger", &others);
    let plain = FakeWorker::start("plain", &[("mini", &digest('a'))]);
    let workers = [&known, &stranger, &plain];
    let gateway = Gateway::guarded(view(&workers, 'a', 1), serving(), certificates.guard()).await;
    gateway.until(Fleet::serves).await;
    for _ in 0..20 {
        ask(&gateway, &certificates.caller(), texts(1, 3)).await.unwrap();
    }
    assert_eq!((stranger.take_seen().len(), plain.take_seen().len()), (0, 0));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_gateway_without_a_certificate_reaches_no_worker() {
    let certificates = Certificates::new();
    let worker = secured("w1", &certificates);
    let gateway = Gateway::begin(view(&[&worker], 'a', 1), serving()).await;
    let status = ask(&gateway, &Dialer::default(), texts(1, 3)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    gateway.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_everywhere_under_load_fail_no_call() {
    let certificates = Certificates::new();
    let mut workers = ["w1", "w2"].map(|id| secured(id, &certificates));
    let seen = view(&[&workers[0], &workers[1]], 'a', 1);
    let gateway = Gateway::guarded(seen, serving(), certificates.guard()).await;
    let both = |fleet: &Fleet| fleet.ready(&digest('a').as_str().into()).len() == 2;
    gateway.until(both).await;
    let (caller, calls, done) = (certificates.caller(), AtomicUsize::new(0), AtomicBool::new(false));
    let calling = async {
        while !done.load(Ordering::Relaxed) {
            ask(&gateway, &caller, texts(3, 3)).await.unwrap();
            calls.fetch_add(1, Ordering::Relaxed);
        }
    };
    let changes = async {
        for worker in [0, 1, 0] {
            certificates.renew();
            // Its connections are made anew, with what the files say now.
            workers[worker].kill();
            workers[worker].revive();
            time::sleep(Duration::from_millis(100)).await;
            gateway.until(both).await;
            // One that began under the new certificates is answered.
            let answered = calls.load(Ordering::Relaxed) + 2;
            while calls.load(Ordering::Relaxed) < answered {
                time::sleep(Duration::from_millis(10)).await;
            }
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(calling, changes);
    gateway.end().await.unwrap();
}
