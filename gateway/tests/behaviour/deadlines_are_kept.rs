//! The gateway owns the deadline: it answers DEADLINE_EXCEEDED, and workers are told what is left.

use std::time::{Duration, Instant};

use gateway::config::Serving;
use tonic::Code;

use crate::support::gateway::serving;
use crate::support::raw::Raw;
use crate::support::{FakeWorker, Gateway, digest, field, texts};

async fn code_under(gateway: &Gateway, timeout: &str) -> Code {
    let caller = Raw::connect(gateway.address).await;
    caller.embed(&[("grpc-timeout", timeout)], texts(1, 3)).await.unwrap().code()
}

#[tokio::test]
async fn a_late_answer_is_deadline_exceeded() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_secs(60));
    let gateway = Gateway::start(&[&worker]).await;
    let began = Instant::now();
    assert_eq!(code_under(&gateway, "300m").await, Code::DeadlineExceeded);
    assert!(began.elapsed() >= Duration::from_millis(300));
    gateway.until_metric("beige_gateway_outstanding_tokens", 0.0).await;
    let counted =
        r#"beige_gateway_requests_total{method="beige.v1.Embeddings/Embed",code="DEADLINE_EXCEEDED"}"#;
    gateway.until_metric(counted, 1.0).await;
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn every_late_answer_is_deadline_exceeded_and_never_cancelled() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    // Of a worker of unknown speed nobody can say beforehand that it will be late.
    worker.set(|mood| (mood.takes, mood.tokens_per_second) = (Duration::from_secs(60), 0.0));
    let gateway = Gateway::start(&[&worker]).await;
    let caller = Raw::connect(gateway.address).await;
    let calls = (0..200).map(|i| {
        let (caller, timeout) = (caller.clone(), format!("{}m", 1 + i % 50));
        async move {
            let answer = caller.embed(&[("grpc-timeout", &timeout)], texts(1, 3)).await.unwrap();
            assert_eq!(answer.code(), Code::DeadlineExceeded, "{timeout}");
        }
    });
    futures::future::join_all(calls).await;
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_deadline_that_has_passed_costs_no_work() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    for passed in ["0S", "0n", "1n"] {
        assert_eq!(code_under(&gateway, passed).await, Code::DeadlineExceeded, "{passed}");
    }
    assert_eq!(worker.take_seen().len(), 0);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_deadline_that_cannot_be_read_is_named() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let caller = Raw::connect(gateway.address).await;
    for malformed in ["soon", "10", "10s", "-1S", "123456789S"] {
        let status = caller.embed(&[("grpc-timeout", malformed)], texts(1, 3)).await.unwrap();
        assert_eq!((status.code(), field(&status).as_deref()), (Code::InvalidArgument, Some("grpc-timeout")));
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn without_a_deadline_there_is_the_default_one() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_secs(60));
    let serving = Serving { default_deadline: Duration::from_millis(200), ..serving() };
    let gateway = Gateway::start_with(&[&worker], serving).await;
    let caller = Raw::connect(gateway.address).await;
    let status = caller.embed(&[], texts(1, 3)).await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn workers_are_told_what_is_left() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    assert_eq!(code_under(&gateway, "60S").await, Code::Ok);
    let told = worker.take_seen().remove(0).timeout.unwrap();
    let (count, unit) = told.split_at(told.len() - 1);
    let seconds = count.parse::<f64>().unwrap()
        * match unit {
            "S" => 1.0,
            "m" => 1e-3,
            "u" => 1e-6,
            "n" => 1e-9,
            other => panic!("{other}"),
        };
    assert!(seconds > 0.0 && seconds < 60.2, "{told}");
    gateway.end().await.unwrap();
}
