use proto::worker::v1::HealthRequest;
use tokio_util::task::TaskTracker;
use worker::health::State;

use super::support::{Options, embed, start};

#[tokio::test]
async fn then_again_and_again() {
    let mut stand = start(Options::default()).await;
    let mut reports = stand.client.health(HealthRequest {}).await.unwrap().into_inner();
    let first = reports.message().await.unwrap().unwrap();
    assert_eq!((&*first.worker_id, &*first.boot_id, &*first.device), ("w1", "b1", "fake"));
    assert_eq!((first.queued_tokens, first.total_tokens, first.draining), (0, 0, false));
    assert!(first.tokens_per_second > 0.0 && first.memory_bytes > 0);

    let tasks = TaskTracker::new();
    stand.control.hold();
    let call = stand.spawn(&tasks, embed(&["w1 w1"]));
    while reports.message().await.unwrap().unwrap().queued_tokens != 4 {}
    stand.control.release();
    call.await.unwrap().unwrap();
    loop {
        let report = reports.message().await.unwrap().unwrap();
        if report.total_tokens == 4 {
            assert_eq!(report.queued_tokens, 0);
            break;
        }
    }
    stand.state.send_replace(State { draining: true, ..State::default() });
    // Others may have been on their way before.
    while !reports.message().await.unwrap().unwrap().draining {}
}
