use tokio_util::task::TaskTracker;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::support::{Options, embed, start};

#[tokio::test]
async fn and_every_call_is_answered() {
    let stand = start(Options { batch_tokens: 400, ..Options::default() }).await;
    let tasks = TaskTracker::new();
    stand.control.set_room(16);
    stand.control.hold();
    let plug = stand.spawn(&tasks, embed(&["w0"]));
    stand.control.begun(1).await;
    let calls: Vec<_> = (0..10).map(|_| stand.spawn(&tasks, embed(&["w1"; 40]))).collect();
    stand.waiting(3 + 1200).await;
    stand.control.release();

    for call in calls.into_iter().chain([plug]) {
        call.await.unwrap().unwrap();
    }
    let sizes: Vec<usize> = stand.control.runs().iter().map(Vec::len).collect();
    assert!(sizes[1] > 100, "the first batch fills its budget: {sizes:?}");
    let cut_again: Vec<&usize> = sizes.iter().skip(10).filter(|size| **size > 100).collect();
    assert!(cut_again.is_empty(), "none after it is as large: {sizes:?}");
    assert_eq!(sizes.iter().filter(|size| **size <= 16).sum::<usize>(), 401, "{sizes:?}");
}

#[tokio::test]
async fn a_text_that_does_not_fit_even_alone_may_come_back() {
    let mut stand = start(Options::default()).await;
    let status = stand.client.embed(embed(&["w1", "big"])).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "the device has no memory for an input of 3 tokens");
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    stand.client.embed(embed(&["w1"])).await.unwrap();
}
