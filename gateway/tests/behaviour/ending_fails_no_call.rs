//! A gateway that is told to end answers what it was asked on the connections it had taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use gateway::Exit;
use gateway::config::Serving;
use gateway::fleet::Fleet;
use tokio::net::TcpStream;
use tokio::time;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::support::certificates::Certificates;
use crate::support::gateway::{serving, view};
use crate::support::raw::{Broken, Raw};
use crate::support::{FakeWorker, Gateway, digest, embed, texts};

/// Calls one after the other until the connection takes no more; each that was taken is answered.
async fn until_closed(caller: Raw, answered: Arc<AtomicUsize>) {
    loop {
        match caller.embed(&[], texts(3, 3)).await {
            Ok(status) => {
                assert_eq!(status.code(), Code::Ok, "{status:?}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(Broken::Unsent) => break,
            Err(unanswered) => panic!("{unanswered:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_no_call_on_a_taken_connection_fails() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(Raw::connect(gateway.address).await);
    }
    ends_under_load(&worker, gateway, callers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_no_call_on_a_taken_connection_fails_over_tls() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let certificates = Certificates::new();
    let gateway = Gateway::guarded(view(&[&worker], 'a', 1), serving(), certificates.public()).await;
    gateway.until(Fleet::serves).await;
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(Raw::over(certificates.caller().stream(gateway.address).await.unwrap()).await);
    }
    ends_under_load(&worker, gateway, callers).await;
}

async fn ends_under_load(worker: &FakeWorker, gateway: Gateway, connections: Vec<Raw>) {
    worker.set(|mood| mood.takes = Duration::from_millis(5));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut callers = Vec::new();
    for caller in connections {
        callers.extend((0..16).map(|_| until_closed(caller.clone(), answered.clone())));
    }
    let end = async {
        time::sleep(Duration::from_millis(300)).await;
        let before = answered.load(Ordering::Relaxed);
        gateway.end().await.unwrap();
        assert!(answered.load(Ordering::Relaxed) > before, "it went on answering while it settled");
    };
    tokio::join!(join_all(callers), end);
}

#[tokio::test]
async fn a_call_that_is_running_is_waited_for() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_secs(1));
    let gateway = Gateway::start(&[&worker]).await;
    let mut embeddings = gateway.embeddings().await;
    let call = embeddings.embed(embed(texts(1, 3)));
    let end = async {
        while worker.running() == 0 {
            time::sleep(Duration::from_millis(10)).await;
        }
        gateway.end().await
    };
    let (answer, ended) = tokio::join!(call, end);
    answer.unwrap();
    ended.unwrap();
}

#[tokio::test]
async fn what_outlasts_the_grace_is_told_to_go_elsewhere() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.set(|mood| mood.takes = Duration::from_secs(600));
    let serving = Serving { grace: Duration::from_millis(300), ..serving() };
    let gateway = Gateway::start_with(&[&worker], serving).await;
    let mut embeddings = gateway.embeddings().await;
    let mut streaming = embeddings.clone();
    let requests = futures::stream::iter([embed(texts(1, 3))]);
    let mut answers = streaming.embed_stream(requests).await.unwrap().into_inner();
    let call = embeddings.embed(embed(texts(1, 3)));
    let end = async {
        while worker.running() < 2 {
            time::sleep(Duration::from_millis(10)).await;
        }
        gateway.end().await
    };
    let (answer, item, ended) = tokio::join!(call, answers.message(), end);
    assert_eq!(answer.unwrap_err().code(), Code::Unavailable);
    assert_eq!(item.unwrap_err().code(), Code::Unavailable);
    // All were told in time, and the connection could close.
    assert!(matches!(ended, Ok(()) | Err(Exit::Late)), "{ended:?}");
    while worker.running() > 0 {
        time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn those_who_watch_are_told_and_do_not_hold_it_up() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let serving = Serving { grace: Duration::from_secs(60), ..serving() };
    let gateway = Gateway::start_with(&[&worker], serving).await;
    let mut health = HealthClient::new(gateway.connect().await);
    let all = HealthCheckRequest { service: String::new() };
    let mut changes = health.watch(all).await.unwrap().into_inner();
    while changes.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    let watch = async {
        assert_eq!(changes.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert_eq!(changes.message().await.unwrap_err().code(), Code::Unavailable);
    };
    let end = time::timeout(Duration::from_secs(30), gateway.end());
    let ((), ended) = tokio::join!(watch, end);
    ended.expect("well within its grace").unwrap();
}

#[tokio::test]
async fn those_who_connected_and_said_nothing_do_not_hold_it_up() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let serving = Serving { grace: Duration::from_secs(60), ..serving() };
    let gateway = Gateway::start_with(&[&worker], serving).await;
    let silent = TcpStream::connect(gateway.address).await.unwrap();
    gateway.embeddings().await.embed(embed(texts(1, 3))).await.unwrap();
    let ended = time::timeout(Duration::from_secs(30), gateway.end()).await;
    ended.expect("well within its grace").unwrap();
    drop(silent);
}

#[tokio::test]
async fn it_is_not_ready_before_its_socket_closes() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    // Longer than any pause of a noisy machine.
    let serving = Serving { settle: Duration::from_secs(10), ..serving() };
    let gateway = Gateway::start_with(&[&worker], serving).await;
    gateway.stop.cancel();
    while gateway.ask("/readyz").await.starts_with("HTTP/1.1 200") {}
    gateway.embeddings().await.embed(embed(texts(1, 3))).await.expect("it still serves");
    let address = gateway.address;
    gateway.end().await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
