//! Jobs whose processes die, hang or find no room.

use std::fs;
use std::process::Command;
use std::time::Duration;

use proto::v1::{Job, JobState};
use serde_json::{Value, json};
use tests::{PATIENCE, Plan, Tmpfs, program};
use tokio::time::{self, Instant};

use crate::support::{LONG, Scene, is_final, job, signal};

/// How often something is killed.
const KILLS: u64 = 20;
/// Every so many kills it is the trainer's turn.
const TRAINERS_TURN: u64 = 5;

/// The process of a rank, once it runs: the step that was heard of last may be of the attempt before.
async fn rank(scene: &Scene, number: usize) -> u32 {
    let begun = Instant::now();
    loop {
        if let Some((_, pid)) = scene.ranks().into_iter().find(|(rank, _)| *rank == number) {
            return pid;
        }
        assert!(begun.elapsed() < PATIENCE, "rank {number} does not run");
        time::sleep(Duration::from_millis(10)).await;
    }
}

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
    let mut killed = [0; 2];
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
            let victim = usize::try_from(draw(100 + kill)).unwrap() % 2;
            signal("KILL", rank(&scene, victim).await);
            killed[victim] += 1;
        }
    }
    assert!(killed.iter().all(|times| *times >= 5), "{killed:?}");
    let ended = scene.ended("disturbed").await;
    assert_eq!(ended.state(), JobState::Succeeded, "{ended:?}");
    // A kill may fall between a rank's last word and the next attempt, whose ranks it then ends before they say one.
    assert!(u64::from(ended.attempt) >= KILLS - 2, "{} attempts", ended.attempt);
    assert!(scene.weights("disturbed") == scene.weights("undisturbed"), "the weights differ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_hangs_is_noticed() {
    let scene = Scene::set(Plan::default(), None).await;
    // Long enough to be stopped in the middle of.
    let spec = |ranks: u32| {
        job(&json!({ "max_steps": 500, "save_steps": 20, "timeout_seconds": 4, "ranks": ranks }))
    };
    scene.submit("hung", &spec(2)).await.unwrap();
    scene.until("hung", |job| job.last.is_some_and(|last| last.step >= 6)).await;
    signal("STOP", rank(&scene, 1).await);
    let ended = scene.ended("hung").await;
    assert_eq!((ended.state(), ended.attempt), (JobState::Succeeded, 2), "{ended:?}");
    let noticed =
        |job: &Job| job.events.iter().find(|event| event.what.starts_with("attempt 1 ended")).cloned();
    // By the rank that waited for it.
    assert!(!noticed(&ended).unwrap().what.contains("a rank hangs"), "{ended:?}");

    // Nobody waits for a rank alone but the trainer.
    scene.submit("alone", &spec(1)).await.unwrap();
    scene.until("alone", |job| job.last.is_some_and(|last| last.step >= 6)).await;
    let pid = rank(&scene, 0).await;
    let stopped = Instant::now();
    signal("STOP", pid);
    let found = scene.until("alone", |job| noticed(job).is_some()).await;
    // Not before its time is over, and not when a test's patience is.
    assert!((Duration::from_secs(4)..LONG / 2).contains(&stopped.elapsed()), "{found:?}");
    assert!(noticed(&found).unwrap().what.contains("no step for 4 s: a rank hangs"), "{found:?}");
    let ended = scene.ended("alone").await;
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
    let begun = Instant::now();
    let ended = loop {
        let _ = fs::write(&filler, vec![0; 3 << 20]);
        let job = scene.job("full").await;
        if is_final(job.state()) {
            break job;
        }
        assert!(begun.elapsed() < LONG, "{job:?}");
        time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(ended.state(), JobState::Failed, "{ended:?}");
    assert!(
        ended.reason.contains("No space left") && ended.reason.contains("checkpoints/"),
        "{}",
        ended.reason
    );
    assert_eq!(ended.attempt, 1, "there is no use in trying again");

    // What was there before is whole: with room again ranks begin there.
    fs::remove_file(&filler).unwrap();
    let checkpoints = disk.path().join("full/checkpoints");
    let newest = fs::read_dir(&checkpoints)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("step-")?.parse::<u64>().ok());
    let newest = newest.max().unwrap();
    assert!(newest >= 5, "{newest}");
    let path = disk.path().join("full/job.json");
    let mut settings: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    // By one rank, for two steps.
    settings["max_steps"] = json!(newest + 2);
    settings["negatives_cross_device"] = json!(false);
    fs::write(&path, settings.to_string()).unwrap();
    let told = Command::new(program("beige-trainer")).arg("rank").arg(&path).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let first: Value =
        serde_json::from_slice(told.stdout.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!((&first["kind"], first["step"].as_u64()), (&json!("step"), Some(newest + 1)), "{first}");
}
