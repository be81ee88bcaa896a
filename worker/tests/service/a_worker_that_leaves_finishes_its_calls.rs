use std::time::Duration;

use proto::worker::v1::worker_client::WorkerClient;
use tokio::time;
use tokio_util::task::TaskTracker;

use super::support::{Options, embed, start};

#[tokio::test]
async fn and_takes_no_more() {
    let mut stand = start(Options::default()).await;
    let tasks = TaskTracker::new();
    stand.control.hold();
    let running = stand.spawn(&tasks, embed(&["w1"]));
    stand.control.begun(1).await;
    let queued = stand.spawn(&tasks, embed(&["w2"]));
    stand.waiting(3 + 3).await;
    let mut reports = stand.client.health(proto::worker::v1::HealthRequest {}).await.unwrap().into_inner();
    assert!(!reports.message().await.unwrap().unwrap().draining);

    stand.stop.cancel();
    while WorkerClient::connect(stand.address.clone()).await.is_ok() {
        time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!stand.server.is_finished());
    stand.control.release();
    assert_eq!(running.await.unwrap().unwrap()[..2], [3.0, 1.0]);
    assert_eq!(queued.await.unwrap().unwrap()[..2], [3.0, 2.0]);
    while let Ok(Some(_)) = reports.message().await {}

    drop((stand.client, reports));
    stand.server.await.unwrap().unwrap();
    drop((stand.engine, stand.shelf));
    assert_eq!(stand.device.await, Ok(Ok(())));
}
