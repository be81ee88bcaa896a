use tokio_util::task::TaskTracker;
use tonic::Code;

use super::support::{Options, embed, start};

#[tokio::test]
async fn calls_are_told_to_go_elsewhere() {
    let mut stand = start(Options::default()).await;
    let tasks = TaskTracker::new();
    stand.control.hold();
    let last = stand.spawn(&tasks, embed(&["break"]));
    stand.control.begun(1).await;
    let next = stand.spawn(&tasks, embed(&["w1"]));
    stand.waiting(3 + 3).await;
    stand.control.release();

    assert_eq!(last.await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(next.await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert!(stand.device.await.unwrap().unwrap_err().to_string().starts_with("the device is broken"));
    stand.engine.ended().await;
    assert_eq!(stand.client.embed(embed(&["w1"])).await.unwrap_err().code(), Code::Unavailable);
}
