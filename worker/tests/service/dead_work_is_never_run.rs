use std::time::Duration;

use tokio_util::task::TaskTracker;
use tonic::{Code, Request};

use super::support::{Options, embed, start};

#[tokio::test]
async fn neither_what_nobody_waits_for_nor_what_is_too_late() {
    let stand = start(Options::default()).await;
    let tasks = TaskTracker::new();
    stand.control.hold();
    let plug = stand.spawn(&tasks, embed(&["w0"]));
    stand.control.begun(1).await;

    let gone = stand.spawn(&tasks, embed(&["w10", "w11"]));
    stand.waiting(3 + 6).await;
    let mut late = Request::new(embed(&["w20"]));
    late.metadata_mut().insert("grpc-timeout", "60m".parse().unwrap());
    // The header alone: a client that gives up by itself would not hear the answer.
    let mut client = stand.client.clone();
    let status = client.embed(late).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    gone.abort();
    stand.waiting(3).await;

    let next = stand.spawn(&tasks, embed(&["w30"]));
    stand.waiting(3 + 3).await;
    stand.control.release();
    plug.await.unwrap().unwrap();
    next.await.unwrap().unwrap();
    assert_eq!(stand.control.runs(), [[0], [30]]);
}

#[tokio::test]
async fn a_deadline_that_has_passed_already_is_told_so() {
    let mut stand = start(Options::default()).await;
    let mut late = Request::new(embed(&["w1"]));
    late.set_timeout(Duration::ZERO);
    let status = stand.client.embed(late).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
    stand.client.embed(embed(&["w2"])).await.unwrap();
    assert!(!stand.control.runs().concat().contains(&1));
}
