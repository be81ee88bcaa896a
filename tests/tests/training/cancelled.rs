//! Jobs that are wanted no more, in each of their states.

use proto::v1::JobState;
use serde_json::json;
use tests::{PATIENCE, Plan};
use tokio::time::{self, Instant};

use crate::support::{Scene, is_final, job};

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_in_each_state() {
    let scene = Scene::set(Plan::default(), None).await;
    // Long enough to be found running, and to keep the next one waiting.
    scene.submit("running", &job(&json!({ "max_steps": 100_000 }))).await.unwrap();
    scene.until("running", |job| job.last.is_some()).await;
    scene.submit("queued", &job(&json!({}))).await.unwrap();
    assert_eq!(scene.job("queued").await.state(), JobState::Queued);
    assert_eq!(scene.cancel("queued").await.state(), JobState::Cancelled);

    scene.cancel("running").await;
    let ended = scene.ended("running").await;
    assert_eq!(ended.state(), JobState::Cancelled, "{ended:?}");
    assert!(ended.ended_unix_ms >= ended.started_unix_ms && ended.started_unix_ms > 0);
    let begun = Instant::now();
    while !scene.ranks().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "ranks outlive their job");
        time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // Its devices are free.
    scene.submit("next", &job(&json!({ "max_steps": 2 }))).await.unwrap();
    assert_eq!(scene.ended("next").await.state(), JobState::Succeeded);
    assert_eq!(scene.cancel("next").await.state(), JobState::Succeeded, "what has ended stays");
    assert_eq!(scene.cancel("running").await.state(), JobState::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_cancelled_while_it_is_published() {
    // There is no worker that could try the model, so publishing waits for one.
    let scene = Scene::set(Plan { store: true, ..Plan::default() }, None).await;
    let publish = json!({ "alias": "m" });
    scene.submit("publishing", &job(&json!({ "max_steps": 2, "publish": publish }))).await.unwrap();
    let is_so = |job: &proto::v1::Job| job.state() == JobState::Publishing || is_final(job.state());
    let found = scene.until("publishing", is_so).await;
    assert_eq!(found.state(), JobState::Publishing, "{found:?}");
    // It takes no device meanwhile.
    scene.submit("next", &job(&json!({ "max_steps": 2 }))).await.unwrap();
    let next = scene.ended("next").await;
    assert_eq!(next.state(), JobState::Succeeded, "{next:?}");
    assert!(next.events.iter().any(|event| event.what == "attempt 1 begins, ranks on cpu, cpu"), "{next:?}");
    assert_eq!(scene.job("publishing").await.state(), JobState::Publishing);
    scene.cancel("publishing").await;
    let ended = scene.ended("publishing").await;
    assert_eq!((ended.state(), ended.digest.as_str()), (JobState::Cancelled, ""), "{ended:?}");
}
