//! A file that is not what it was, a disk that is full, and a bucket that is away: the swap is given up, with each worker's reason.

use std::fs;
use std::path::{Path, PathBuf};

use proto::v1::{PublishBegin, Stage as Progress, Swap, SwapPlan, SwapState};
use tests::{Plan, S3Server, Tmpfs};
use tonic::Code;

use crate::support::{SLOW, plan, stage};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_cannot_be_reached_gives_up_the_swap_until_it_can() {
    let mut server = S3Server::start().await;
    let bucket = Some(("s3://beige/models".to_owned(), server.environment()));
    let mut stage = stage(Plan { bucket, ..plan(2) }).await;
    stage.swap_to(1).await;
    stage.calls(100).await;

    server.stop().await;
    let all = SwapPlan { min_ready: Some(2), deadline_seconds: Some(20), ..SwapPlan::default() };
    stage.promote(2, all).await;
    let swap = stage.until(|swap| tests::is_decided(swap.state())).await;
    assert_eq!(swap.state(), SwapState::Aborted, "{swap:#?}");
    // The worker that tried it out had fetched it before.
    let refusals = refusals(&swap);
    assert!(refusals.len() == 1 && refusals[0].1 == "store", "{swap:#?}");
    let dir = stage.checkpoints[SLOW].clone();
    let refused = stage.operator.publish(&dir, PublishBegin::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("the store failed at models/"), "{refused:?}");
    stage.calls(100).await;

    server.start_again().await;
    stage.swap_to(2).await;
    stage.calls(100).await;
    stage.flawless().await;
}
