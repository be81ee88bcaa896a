//! Two names of the same bytes, on one worker.

use std::fs;
use std::path::{Path, PathBuf};

use cluster::{SwapPlan, SwapState};
use manifest::ManifestFile;
use proto::worker::v1::HealthReport;

use crate::checkpoint;
use crate::support::{Scene, files, request};
use crate::variants::{Distance, variant};

/// Whether a report says that `digest` is ready under the name `n`.
fn has_twin(report: &HealthReport, digest: &str) -> bool {
    let is_twin = |checkpoint: &proto::v1::Checkpoint| checkpoint.digest == digest;
    report.ready.iter().any(|ready| ready.model == "n" && ready.checkpoint.as_ref().is_some_and(is_twin))
}

/// The largest of the files.
fn weights(files: &[ManifestFile]) -> &ManifestFile {
    files.iter().find(|file| file.path == "model.safetensors").unwrap()
}

fn blob(scene: &Scene, files: &[ManifestFile]) -> PathBuf {
    scene.dir.path().join("cache/blobs").join(&weights(files).sha256)
}

#[tokio::test]
async fn what_is_let_go_under_one_name_stays_whole_under_the_other() {
    let scene = Scene::set().await;
    let first = PathBuf::from(checkpoint("bert-cls"));
    let [second, third] = [1, 2].map(|number| variant(&first, number, Distance::Stranger, scene.dir.path()));
    let shared = files(Path::new(&first));
    let size: u64 = shared.iter().map(|file| file.size).sum();
    // Two fit, and three do not.
    let room = (size * 5 / 2).to_string();
    let worker = scene.worker("w1", &["--cache-bytes", &room]).await;
    worker.until_page("/readyz", "200 OK").await;

    // `n` comes to mean what `m` means.
    let twin = scene.publish(&first, &worker).await;
    scene.etcd.put_version("n", &twin.version, None).await.unwrap();
    scene.swap(&twin.digest).await;
    scene.until_swap(SwapState::Committed).await;
    scene.etcd.request_swap("n", &twin.digest, &SwapPlan::default()).await.unwrap();
    worker.until("the twin", |report| has_twin(report, &twin.digest)).await;
    let committed = scene.until("n", |view| view.aliases.contains_key("n")).await;
    assert_eq!(committed.aliases["n"].digest, twin.digest);

    // `m` goes on to another one, and lets go.
    let other = scene.publish(&second, &worker).await;
    scene.swap(&other.digest).await;
    scene.until("the second", |view| view.aliases["m"].digest == other.digest).await;
    worker.until_page("/metrics", "\nbeige_worker_checkpoints 3.0\n").await;
    scene.say(2);
    scene.etcd.request_retire("m", None).await.unwrap();
    worker.until_ready(&[&other.digest]).await;
    worker.until_page("/metrics", "\nbeige_worker_checkpoints 2.0\n").await;

    // There is no room for a third: both that are loaded are held.
    let files = files(Path::new(&third));
    scene.upload(&third, &files).await;
    let refused = worker.try_out(request(&files)).await.unwrap_err();
    assert!(refused.message().contains("do not fit into a cache"), "{refused:?}");
    assert!(blob(&scene, &shared).is_file(), "the files of a checkpoint that is loaded were evicted");
    let answer = worker.embed(&twin.digest, "a text").await.unwrap();
    assert_eq!(answer.provenance.unwrap().digest, twin.digest);

    // And another process takes it up from there: the store has lost it meanwhile.
    drop(worker);
    fs::remove_file(scene.dir.path().join("store/blobs").join(&weights(&shared).sha256)).unwrap();
    let again = scene.worker("w2", &["--cache-bytes", &room]).await;
    again.until("the twin", |report| has_twin(report, &twin.digest)).await;
    again.embed(&twin.digest, "a text").await.unwrap();
}
