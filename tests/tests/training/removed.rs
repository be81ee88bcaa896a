//! Jobs that have ended, and are wanted no more.

use std::path::PathBuf;

use proto::v1::{DeleteJobRequest, JobState};
use serde_json::json;
use tests::{PATIENCE, Plan};
use tokio::time::{self, Instant};
use tonic::{Code, Status};

use crate::support::{Hiring, Scene, job};

async fn delete(scene: &Scene, name: &str) -> Result<(), Status> {
    scene.client().delete(DeleteJobRequest { name: name.to_owned() }).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_job_goes_and_its_name_is_free() {
    let flags = vec!["--keep-finished".to_owned(), "1".to_owned()];
    let scene = Scene::set_with(Plan::default(), None, Hiring { flags, ..Hiring::default() }).await;
    let directory = |name: &str| -> PathBuf { scene.output.join(name) };
    scene.submit("first", &job(&json!({ "max_steps": 2 }))).await.unwrap();
    assert_eq!(scene.ended("first").await.state(), JobState::Succeeded);
    assert!(directory("first").join("model").is_dir());

    scene.submit("second", &job(&json!({ "max_steps": 100_000 }))).await.unwrap();
    scene.until("second", |job| job.last.is_some_and(|last| last.step >= 2)).await;
    let refused = delete(&scene, "second").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("cancel it first"), "{refused}");
    scene.cancel("second").await;
    assert_eq!(scene.ended("second").await.state(), JobState::Cancelled);

    // One is kept, and it is the one that ended last.
    let begun = Instant::now();
    while directory("first").exists() {
        assert!(begun.elapsed() < PATIENCE, "the directory of the first job stays");
        time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(directory("second").is_dir());
    assert_eq!(scene.job("first").await.state(), JobState::Succeeded, "what is known of it stays");

    for name in ["first", "second"] {
        delete(&scene, name).await.unwrap();
        assert_eq!(delete(&scene, name).await.unwrap_err().code(), Code::NotFound);
    }
    assert!(!directory("second").exists());
    // It does not go on from the checkpoints of the other one.
    scene.submit("second", &job(&json!({ "max_steps": 3 }))).await.unwrap();
    let ended = scene.ended("second").await;
    assert_eq!(ended.state(), JobState::Succeeded, "{ended:?}");
    assert_eq!(ended.curve.iter().map(|it| it.step).collect::<Vec<_>>(), [1, 2, 3]);
}
