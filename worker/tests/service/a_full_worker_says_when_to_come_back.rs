use std::time::Duration;

use proto::v1;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

use super::support::{Options, embed, request, shard, start};

#[tokio::test]
async fn by_tokens() {
    let mut stand = start(Options { max_queued_tokens: 30, ..Options::default() }).await;
    let tasks = TaskTracker::new();
    stand.load.ran(1, 10.0);
    stand.control.hold();
    let first = stand.spawn(&tasks, embed(&["w1 w1 w1 w1 w1 w1", "w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1"]));
    stand.waiting(8 + 14).await;
    let more = embed(&["w2 w2 w2 w2 w2 w2", "w2 w2 w2 w2 w2 w2 w2 w2 w2 w2 w2 w2"]);
    let status = stand.client.embed(more.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().starts_with("22 tokens are waiting"), "{}", status.message());
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!((Duration::from_millis(500)..Duration::from_secs(2)).contains(&wait), "{wait:?}");

    stand.control.release();
    first.await.unwrap().unwrap();
    stand.client.embed(more).await.unwrap();
}

#[tokio::test]
async fn by_time() {
    let mut stand = start(Options::default()).await;
    let tasks = TaskTracker::new();
    // So slow that a pause of a noisy machine is short.
    stand.load.ran(1, 0.1);
    stand.control.hold();
    let bulk = v1::EmbedRequest { priority: v1::Priority::Bulk.into(), ..request(&["w1 w1 w1"]) };
    let first = stand.spawn(&tasks, shard(bulk));
    stand.waiting(5).await;
    let bulk = v1::EmbedRequest { priority: v1::Priority::Bulk.into(), ..request(&["w1"]) };
    let mut hurried = Request::new(shard(bulk));
    hurried.set_timeout(Duration::from_secs(30));
    let status = stand.client.embed(hurried).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().starts_with("the call would wait about 50.0s"), "{}", status.message());
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!((Duration::from_secs(20)..Duration::from_secs(30)).contains(&wait), "{wait:?}");
    stand.control.release();
    first.await.unwrap().unwrap();
}
