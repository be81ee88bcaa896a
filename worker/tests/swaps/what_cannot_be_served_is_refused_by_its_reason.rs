use std::fs;
use std::path::{Path, PathBuf};

use cluster::{Golden, GoldenSource, Nack, NackReason, SwapState, View};
use proto::v1::Stage;

use crate::checkpoint;
use crate::support::{Published, Scene, Worker};
use crate::variants::{Distance, variant};

/// A worker that serves `m`, and another checkpoint of it, published.
async fn set() -> (Scene, Worker, Published, PathBuf) {
    let scene = Scene::set().await;
    let model = format!("m={}", checkpoint("bert-cls"));
    let worker = scene.worker("w1", &["--model", &model]).await;
    scene.until("claimed", |view| view.aliases.contains_key("m")).await;
    let dir = variant(Path::new(&checkpoint("bert-cls")), 1, Distance::Kin, scene.dir.path());
    let published = scene.publish(&dir, &worker).await;
    // What was fetched for the trial is not to be found in the cache.
    fs::remove_dir_all(scene.dir.path().join("cache")).unwrap();
    for part in ["blobs", "checkpoints", "locks"] {
        fs::create_dir_all(scene.dir.path().join("cache").join(part)).unwrap();
    }
    (scene, worker, published, dir)
}

fn nack(view: &View, digest: &str) -> Option<Nack> {
    view.nacks.get(&("m".to_owned(), digest.to_owned()))?.values().next().cloned()
}

/// Swaps to what was published, which `worker` refuses; its swap is aborted, and what it served is served.
async fn check(scene: &Scene, worker: &Worker, digest: &str, (reason, part): (NackReason, &str)) {
    let before = scene.view.borrow().aliases["m"].clone();
    let swap = scene.swap(digest).await;
    let failed = worker.until("failed", |report| {
        report.preparations.iter().any(|told| told.stage() == Stage::Failed && told.digest == digest)
    });
    let failed = failed.await.preparations.remove(0);
    assert_eq!((failed.worker.as_str(), failed.reason.as_str()), ("w1", reason.as_str()));
    assert!(failed.detail.contains(part), "{failed:?}");
    let view = scene.until_swap(SwapState::Aborted).await;
    let nack = nack(&view, digest).unwrap();
    assert_eq!((nack.reason, nack.swap_id.as_deref()), (reason, Some(swap.swap_id.as_str())));
    assert!(nack.detail.contains(part), "{nack:?}");
    assert_eq!(view.aliases["m"], before);
    worker.embed(&before.digest, "a text").await.unwrap();
    let outcome = format!("beige_worker_preparations_total{{outcome=\"{reason}\"}} 1\n");
    worker.until_page("/metrics", &outcome).await;
}

#[tokio::test]
async fn a_damaged_file() {
    let (scene, worker, published, dir) = set().await;
    let weights =
        crate::support::files(&dir).into_iter().find(|file| file.path == "model.safetensors").unwrap();
    let blob = scene.dir.path().join("store/blobs").join(&weights.sha256);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[5000] ^= 1;
    fs::write(&blob, bytes).unwrap();
    check(&scene, &worker, &published.digest, (NackReason::Checksum, &weights.sha256)).await;
}

#[tokio::test]
async fn files_that_the_store_has_lost() {
    let (scene, worker, published, _) = set().await;
    fs::remove_dir_all(scene.dir.path().join("store/blobs")).unwrap();
    check(&scene, &worker, &published.digest, (NackReason::Store, "is not in the store")).await;
}

#[tokio::test]
async fn vectors_that_are_not_those_recorded() {
    let (scene, worker, published, _) = set().await;
    let mut version = published.version;
    let golden = version.golden.unwrap();
    let mut vectors = golden.vectors().unwrap();
    let row = version.manifest.dimensions;
    vectors[row..2 * row].reverse();
    // Whoever computed them.
    version.golden = Some(Golden::new(golden.texts, &vectors, GoldenSource::Publisher));
    scene.etcd.forget_version("m", &published.digest).await.unwrap();
    scene.etcd.put_version("m", &version, None).await.unwrap();
    check(&scene, &worker, &published.digest, (NackReason::Golden, "the cosine of text 1 is")).await;
}

#[tokio::test]
async fn one_that_does_not_fit_can_be_tried_and_not_held() {
    let scene = Scene::set().await;
    let helper = scene.worker("helper", &["--serve", "n"]).await;
    helper.until_page("/readyz", "200 OK").await;
    let published = scene.publish(Path::new(&checkpoint("bert-cls")), &helper).await;
    let small = scene.worker("w1", &["--memory-limit", "1000"]).await;
    small.until_page("/readyz", "200 OK").await;
    // A trial is outside the limit: else nothing could be published where checkpoints do not fit beside each other.
    small.try_out(crate::support::request(&published.version.manifest.files)).await.unwrap();

    scene.swap(&published.digest).await;
    let view = scene.until_swap(SwapState::Aborted).await;
    let nack = nack(&view, &published.digest).unwrap();
    assert_eq!(nack.reason, NackReason::Memory);
    assert!(nack.detail.starts_with("it takes about"), "{}", nack.detail);
    small.until_page("/readyz", "200 OK").await;
}
