//! A file that is not what it was, and a disk that is full: the swap is given up, with each worker's reason.

use std::fs;
use std::path::{Path, PathBuf};

use proto::v1::{Stage as Progress, Swap, SwapPlan, SwapState};
use tests::{Plan, Tmpfs};

use crate::support::{plan, stage};

/// Why each worker could not, by name.
fn refusals(swap: &Swap) -> Vec<(&str, &str)> {
    let failed = swap.workers.iter().filter(|worker| worker.stage() == Progress::Failed);
    failed.map(|worker| (worker.worker.as_str(), worker.reason.as_str())).collect()
}

/// The file of the store that holds the bytes of `file`.
fn blob(store: &Path, file: &Path) -> PathBuf {
    let (_, sha256) = manifest::hash_file(file).unwrap();
    let path = store.join("blobs").join(sha256);
    assert!(path.is_file(), "{}", path.display());
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spoilt_file_is_found_before_it_is_served() {
    let mut stage = stage(plan(2)).await;
    let path = blob(&stage.cluster.store(), &stage.checkpoints[1].join("model.safetensors"));
    let whole = fs::read(&path).unwrap();
    let mut spoilt = whole.clone();
    let middle = spoilt.len() / 2;
    spoilt[middle] ^= 1;
    fs::write(&path, &spoilt).unwrap();

    stage.promote(1, SwapPlan::default()).await;
    let swap = stage.until(|swap| tests::is_decided(swap.state())).await;
    assert_eq!(swap.state(), SwapState::Aborted, "{swap:#?}");
    // The worker that tried it out had fetched it before.
    let refusals = refusals(&swap);
    assert!(refusals.len() == 1 && refusals[0].1 == "checksum", "{swap:#?}");
    assert_eq!(stage.operator.model().await.epoch, 1);
    stage.calls(200).await;

    // Whoever publishes it again mends it.
    let space = stage.space().await;
    stage.publish(1, &space).await;
    assert!(fs::read(&path).unwrap() == whole, "the store has the file as it was published");
    stage.swap_to(1).await;
    stage.calls(200).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_gives_up_the_swap_and_nothing_else() {
    let Some(disk) = Tmpfs::mount(300 << 10) else {
        println!("NOT RUN: this process may not mount a small file system, so no disk fills here");
        return;
    };
    let mut stage = stage(Plan { workers: 1, ..plan(1) }).await;
    stage.cluster.add_worker(&["--cache", disk.path().to_str().unwrap()]).await;
    stage.cluster.wait_for(2, proto::v1::WorkerState::Serving).await;

    stage.promote(1, SwapPlan { min_ready: Some(2), ..SwapPlan::default() }).await;
    let swap = stage.until(|swap| tests::is_decided(swap.state())).await;
    assert_eq!(swap.state(), SwapState::Aborted, "{swap:#?}");
    assert_eq!(refusals(&swap), [("worker-1", "disk")], "{swap:#?}");
    assert_eq!(stage.operator.model().await.epoch, 1);
    stage.calls(200).await;
    stage.flawless().await;
}
