//! Jobs whose processes die, hang or find no room.

use std::fs;
use std::time::Duration;

use proto::v1::JobState;
use serde_json::json;
use tests::{Plan, Tmpfs};
use tokio::time;

use crate::support::{Scene, is_final, job, signal};

/// How often something is killed.
const KILLS: u64 = 20;
/// Every so many kills it is the trainer's turn.
const TRAINERS_TURN: u64 = 5;

/// A number that looks random, and is the same in every run.
fn draw(number: u64) -> u64 {
    // SplitMix64 (Steele, Lea and Flood 2014).
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z ^ (z >> 27)) >> 33
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_at_random_steps_change_no_bit() {
    let steps = 1_500;
    let spec = job(&json!({ "max_steps": steps, "save_steps": 10, "max_restarts": 30 }));
    let mut scene = Scene::set(Plan::default(), None).await;
    scene.submit("undisturbed", &spec).await.unwrap();
    assert_eq!(scene.ended("undisturbed").await.state(), JobState::Succeeded);

    scene.submit("disturbed", &spec).await.unwrap();
    for kill in 0..KILLS {
        let before = scene.job("disturbed").await.last.map_or(0, |last| last.step);
        let at = (before + 2 + draw(kill) % 13).min(steps - 1);
        let found = scene
            .until("disturbed", |job| is_final(job.state()) || job.last.is_some_and(|last| last.step >= at))
            .await;
        assert!(!is_final(found.state()), "it ended after {kill} kills: {found:?}");
        if kill % TRAINERS_TURN == TRAINERS_TURN - 1 {
            scene.restart().await;
        } else {
            let ranks = scene.ranks();
            let victim = usize::try_from(draw(100 + kill)).unwrap() % 2;
            for (_, pid) in ranks.iter().filter(|(rank, _)| *rank == victim) {
                signal("KILL", *pid);
            }
        }
    }
    let ended = scene.ended("disturbed").await;
    assert_eq!(ended.state(), JobState::Succeeded, "{ended:?}");
    assert!(u64::from(ended.attempt) > KILLS / 2, "{} attempts", ended.attempt);
    assert!(scene.weights("disturbed") == scene.weights("undisturbed"), "the weights differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_hangs_is_noticed() {
    let scene = Scene::set(Plan::default(), None).await;
    let spec = job(&json!({ "max_steps": 60, "save_steps": 5, "timeout_seconds": 4 }));
    scene.submit("hung", &spec).await.unwrap();
    scene.until("hung", |job| job.last.is_some_and(|last| last.step >= 6)).await;
    let (_, pid) = scene.ranks().into_iter().find(|(rank, _)| *rank == 1).unwrap();
    signal("STOP", pid);
    let ended = scene.ended("hung").await;
    assert_eq!((ended.state(), ended.attempt), (JobState::Succeeded, 2), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_the_job_and_leaves_the_last_checkpoint_good() {
    let Some(disk) = Tmpfs::mount(3 << 20) else {
        println!("NOT RUN: this process may not mount a small file system, so no disk fills here");
        return;
    };
    let scene = Scene::set(Plan::default(), Some(disk.path())).await;
    let spec = job(&json!({ "max_steps": 100_000, "save_steps": 5, "save_total_limit": 2 }));
    scene.submit("full", &spec).await.unwrap();
    scene.until("full", |job| job.last.is_some_and(|last| last.step >= 11)).await;
    // Somebody else takes what is left.
    let filler = disk.path().join("filler");
    for _ in 0..3 {
        let _ = fs::write(&filler, vec![0; 3 << 20]);
        time::sleep(Duration::from_millis(200)).await;
    }
    let ended = scene.ended("full").await;
    assert_eq!(ended.state(), JobState::Failed, "{ended:?}");
    assert!(ended.reason.contains("No space left"), "{}", ended.reason);
    assert_eq!(ended.attempt, 1, "there is no use in trying again");

    // What was there before is whole: with room again a new job of the same directory would begin there.
    let checkpoints = disk.path().join("full/checkpoints");
    let whole = fs::read_dir(&checkpoints).unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        path.join("manifest.json").is_file()
            && path.join("model.safetensors").metadata().is_ok_and(|file| file.len() > 0)
    });
    assert!(whole.count() >= 1);
}
