//! A job is followed through the gateway, from its first step to its end.

use std::time::Duration;

use proto::v1::{Job, JobState, WatchJobRequest};
use serde_json::json;
use tests::Plan;
use tokio::time::timeout;

use crate::support::{LONG, Scene, is_final, job};

/// All that a watch tells of a job, to its end.
async fn watched(scene: &Scene, name: &str) -> Vec<Job> {
    let asked = WatchJobRequest { name: name.to_owned() };
    let mut stream = scene.client().watch(asked).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(job) = timeout(LONG, stream.message()).await.expect("the watch says nothing").unwrap() {
        told.push(job);
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_of_steps_speed_and_the_end() {
    let scene = Scene::set(Plan::default(), None).await;
    let spec = job(
        &json!({ "max_steps": 600, "save_steps": 100, "evaluation": { "split": 0.2 }, "eval_steps": 300 }),
    );
    scene.submit("watched", &spec).await.unwrap();
    let told = watched(&scene, "watched").await;
    assert_eq!(told.last().unwrap().state(), JobState::Succeeded, "{told:?}");
    assert!(told[..told.len() - 1].iter().all(|job| !is_final(job.state())), "it ends once");

    let stepped: Vec<&Job> =
        told.iter().filter(|job| job.state() == JobState::Running && job.last.is_some()).collect();
    assert!(stepped.len() >= 3, "a job of a few seconds is told of more often: {told:?}");
    let steps: Vec<u64> = stepped.iter().map(|job| job.last.unwrap().step).collect();
    assert!(steps.is_sorted() && steps[0] < 600 && steps.windows(2).any(|two| two[0] < two[1]), "{steps:?}");
    for job in stepped {
        let last = job.last.unwrap();
        assert!(last.loss > 0.0 && last.grad_norm > 0.0 && last.learning_rate >= 0.0, "{job:?}");
        assert!(job.steps == 600 && job.tokens_per_second > 0.0, "{job:?}");
        assert!(job.seconds_left.is_finite() && job.seconds_left >= 0.0, "{job:?}");
    }
    let ended = told.last().unwrap();
    assert_eq!(ended.evaluations.iter().map(|it| it.step).collect::<Vec<_>>(), [0, 300, 600]);
    // What has ended is told of once more.
    assert_eq!(watched(&scene, "watched").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ranks_log_is_told_too() {
    let scene = Scene::set(Plan::default(), None).await;
    // It is killed by nobody, but falls over its learning rate.
    let more = json!({ "learning_rate": 9e8, "warmup_steps": 0, "max_steps": 50 });
    scene.submit("lost", &job(&more)).await.unwrap();
    let told = timeout(Duration::from_secs(300), watched(&scene, "lost")).await.unwrap();
    let ended = told.last().unwrap();
    assert_eq!((ended.state(), ended.attempt), (JobState::Failed, 1), "{ended:?}");
    assert!(ended.reason.contains("is not finite any more"), "{ended:?}");
    assert!(
        ended.log.iter().any(|line| line.starts_with("rank 0: ") && line.contains("not finite")),
        "{ended:?}"
    );
}
