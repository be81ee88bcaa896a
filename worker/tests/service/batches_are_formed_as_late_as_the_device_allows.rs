use tokio_util::task::TaskTracker;

use super::support::{Options, Stand, embed, start};

/// A worker whose device is held up with a first text.
async fn held(depth: usize, tasks: &TaskTracker) -> Stand {
    let stand = start(Options { depth, ..Options::default() }).await;
    stand.control.hold();
    stand.spawn(tasks, embed(&["w0"]));
    stand.control.begun(1).await;
    stand
}

#[tokio::test]
async fn from_all_that_waits_when_the_device_is_free() {
    let tasks = TaskTracker::new();
    let stand = held(1, &tasks).await;
    stand.spawn(&tasks, embed(&["w1"]));
    stand.waiting(3 + 3).await;
    stand.spawn(&tasks, embed(&["w2"]));
    stand.waiting(3 + 3 + 3).await;
    stand.control.release();
    stand.waiting(0).await;
    assert_eq!(stand.control.runs(), [vec![0], vec![1, 2]]);
}

#[tokio::test]
async fn one_ahead_for_a_device_that_should_not_wait() {
    let tasks = TaskTracker::new();
    let stand = held(2, &tasks).await;
    stand.spawn(&tasks, embed(&["w1"]));
    stand.cut(2).await;
    stand.spawn(&tasks, embed(&["w2"]));
    stand.waiting(3 + 3 + 3).await;
    stand.control.release();
    stand.waiting(0).await;
    assert_eq!(stand.control.runs(), [[0], [1], [2]]);
}

#[tokio::test]
async fn and_what_was_cut_ahead_is_not_run_for_who_has_left() {
    let tasks = TaskTracker::new();
    let stand = held(2, &tasks).await;
    let gone = stand.spawn(&tasks, embed(&["w1"]));
    stand.cut(2).await;
    gone.abort();
    stand.waiting(3).await;
    stand.control.release();
    stand.spawn(&tasks, embed(&["w2"])).await.unwrap().unwrap();
    assert_eq!(stand.control.runs(), [[0], [2]]);
}
