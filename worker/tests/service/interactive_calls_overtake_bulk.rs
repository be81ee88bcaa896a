use proto::v1;
use tokio_util::task::TaskTracker;

use super::support::{Options, embed, request, shard, start};

#[tokio::test]
async fn those_that_wait_go_in_order_of_class() {
    let stand = start(Options { batch_tokens: 70, ..Options::default() }).await;
    let tasks = TaskTracker::new();
    stand.control.hold();
    let plug = stand.spawn(&tasks, embed(&["w0"]));
    stand.control.begun(1).await;
    let job = v1::EmbedRequest { priority: v1::Priority::Bulk.into(), ..request(&["w10"; 40]) };
    let job = stand.spawn(&tasks, shard(job));
    stand.waiting(3 + 120).await;
    let person = stand.spawn(&tasks, embed(&["w20", "w21"]));
    stand.waiting(3 + 120 + 6).await;
    stand.control.release();

    for call in [plug, person, job] {
        call.await.unwrap().unwrap();
    }
    let runs = stand.control.runs();
    assert_eq!(runs[..2], [vec![0], vec![20, 21]]);
    assert!(runs[2..].iter().flatten().eq(&[10; 40]), "{runs:?}");
}
