use tokio_util::task::TaskTracker;
use tonic::Code;

use super::support::{Options, embed, start};

#[tokio::test]
async fn the_calls_beside_it_are_answered() {
    for (word, neighbours) in [("fail", 4), ("panic", 4), ("nan", 1)] {
        let stand = start(Options::default()).await;
        let tasks = TaskTracker::new();
        stand.control.hold();
        let plug = stand.spawn(&tasks, embed(&["w0"]));
        stand.control.begun(1).await;
        let good = stand.spawn(&tasks, embed(&["w1", "w2", "w3"]));
        let bad = stand.spawn(&tasks, embed(&["w4", word, "w5"]));
        stand.waiting(3 + 9 + 9).await;
        stand.control.release();

        plug.await.unwrap().unwrap();
        let first_words: Vec<f32> = good.await.unwrap().unwrap().chunks(4).map(|row| row[1]).collect();
        assert_eq!(first_words, [1.0, 2.0, 3.0]);
        let status = bad.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().starts_with("inputs[41]: internal error "), "{}", status.message());
        assert!(!status.message().contains("as told"), "{}", status.message());
        let runs = stand.control.runs();
        assert_eq!(runs[1].len(), 6, "all were in one batch: {runs:?}");
        assert!(runs.len() > neighbours, "{runs:?}");
        stand.waiting(0).await;
    }
}

#[tokio::test]
async fn the_worker_goes_on() {
    let mut stand = start(Options::default()).await;
    for _ in 0..5 {
        stand.client.embed(embed(&["panic"])).await.unwrap_err();
        stand.client.embed(embed(&["w1"])).await.unwrap();
    }
}
