//! etcd comes back as it was before a checkpoint was published and swapped in.

use std::path::Path;
use std::time::Duration;

use cluster::{SwapState, Version};
use tokio::time;

use crate::checkpoint;
use crate::support::{PATIENCE, Scene};
use crate::variants::{Distance, variant};

/// Waits until the version is known.
async fn known(scene: &Scene, digest: &str) -> Version {
    let look = async {
        loop {
            if let Ok(Some(version)) = scene.etcd.version("m", digest).await {
                return version;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(PATIENCE, look).await.expect("it is made known again")
}

#[tokio::test]
async fn of_what_it_is_ready_with() {
    let mut scene = Scene::set().await;
    let worker = scene.worker("w1", &[]).await;
    worker.until_page("/readyz", "200 OK").await;
    let first = scene.publish(Path::new(&checkpoint("bert-cls")), &worker).await;
    scene.swap(&first.digest).await;
    scene.until("the first", |view| view.aliases.contains_key("m")).await;
    worker.until_ready(&[&first.digest]).await;
    scene.server.stop().await;
    let snapshot = scene.server.snapshot();
    scene.server.restart().await;

    let dir = variant(Path::new(&checkpoint("bert-cls")), 1, Distance::Stranger, scene.dir.path());
    let second = scene.publish(&dir, &worker).await;
    let asked = scene.swap(&second.digest).await;
    scene.until("the second", |view| view.aliases["m"].digest == second.digest).await;
    let committed = scene.until_swap(SwapState::Committed).await;
    worker.until("the new epoch", |report| report.aliases.iter().any(|alias| alias.epoch == 2)).await;

    scene.server.stop().await;
    scene.server.restore(&snapshot);
    scene.server.restart().await;
    assert_eq!(known(&scene, &second.digest).await, second.version);
    let told = scene.until("all of it", |view| {
        let swap = view.swaps.get("m").is_some_and(|swap| swap.swap_id == asked.swap_id);
        swap && view.overtaken.is_empty() && view.ready.len() == 2
    });
    assert_eq!(told.await.aliases["m"], committed.aliases["m"]);
    worker.embed(&second.digest, "a text").await.unwrap();
    // It is served under its name by one that starts now, and there is a way back.
    scene.etcd.roll_back("m").await.unwrap();
    let back = scene.until("the way back", |view| view.aliases["m"].digest == first.digest).await;
    assert_eq!(back.aliases["m"].epoch, 3);
}
