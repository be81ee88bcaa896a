//! Two checkpoints do not fit into a worker beside each other.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::v1::{SwapMode, SwapPlan, SwapState};
use tests::history::{Book, Callers, Load};
use tests::{Cluster, Distance, Plan, Process, Scene, Stage, heavy_variant, variant};
use tokio::time;

use crate::support::plan;

/// What a worker leaves free for batches, in bytes.
const MARGIN: u64 = 64 << 20;

/// As much as a worker may take that is to hold one of these checkpoints while it is called, and not two.
async fn limit(checkpoint: &Path, book: &Arc<Book>, load: &Load) -> u64 {
    let weights = checkpoint.join("model.safetensors").metadata().unwrap().len();
    let models = vec![format!("{}={}", load.model, checkpoint.display())];
    let cluster = Cluster::of(Plan { models, ..plan(2) }).await;
    let callers = Callers::start(book, load, &cluster.gateways);
    while callers.notebook.calls() < 100 {
        time::sleep(Duration::from_millis(50)).await;
    }
    let taken = cluster.workers.iter().map(Process::resident).max().unwrap();
    callers.finish().await.assert_flawless();
    // With calls under way it takes some more than that, and somewhat less when it has let go.
    taken + MARGIN + weights * 3 / 4
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_swapped_in_waves_and_nobody_notices() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("heavy");
    let heavy = heavy_variant(&dir);
    let checkpoints: Vec<PathBuf> = vec![heavy.clone(), variant(&heavy, 1, Distance::Stranger, &dir)];
    let book = Arc::new(Book::of(&checkpoints).await);
    let load = Load { model: "heavy".to_owned(), callers: 4, rest: Duration::from_millis(50), most: 2 };
    let limit = limit(&heavy, &book, &load).await;
    let worker_flags = vec!["--memory-limit".to_owned(), limit.to_string()];
    let plan = Plan { worker_flags, ..plan(2) };
    let mut stage = Stage::set(Scene { plan, checkpoints, kin: 1, book, load }).await;

    stage.publish(1, "").await;
    stage.promote(1, SwapPlan { new_space: true, ..SwapPlan::default() }).await;
    let swap = stage.committed().await;
    assert_eq!(swap.mode(), SwapMode::Waves, "{swap:#?}");
    stage.retired().await;
    stage.until(|swap| swap.state() == SwapState::Retired && swap.workers.iter().all(is_ready)).await;
    stage.calls(100).await;
    stage.flawless().await;
}

fn is_ready(worker: &proto::v1::Preparation) -> bool {
    worker.stage() == proto::v1::Stage::Ready
}
