//! Swap after swap.

use std::path::Path;

use tests::{Plan, checkpoint};

use crate::support::{KIN, MODEL, plan, stage};

const SWAPS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_swaps_in_a_row_are_noticed_by_nobody() {
    // Both workers share a cache that has room for three of the four checkpoints: each evicts what the other fetched.
    let cache = tempfile::tempdir().unwrap();
    let room = 3 * bytes_below(Path::new(&checkpoint(MODEL)));
    let flags = ["--cache", cache.path().to_str().unwrap(), "--cache-bytes", &room.to_string()];
    let worker_flags = flags.map(str::to_owned).to_vec();
    let mut stage = stage(Plan { worker_flags, ..plan(2) }).await;
    for turn in 1..=SWAPS {
        let swap = stage.swap_to(turn % KIN).await;
        assert_eq!(swap.epoch, 1 + turn as u64);
    }
    let cached = bytes_below(&cache.path().join("blobs"));
    assert!(cached > room / 3 && cached <= room, "{cached} bytes in the cache, and room for {room}");
    let digests = stage.digests[..KIN].to_vec();
    let record = stage.flawless().await;
    let answered = record.summary(0..u64::MAX).digests;
    assert_eq!(
        answered.into_keys().collect::<std::collections::BTreeSet<_>>(),
        digests.into_iter().collect()
    );
}

/// Bytes of all files below a directory.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let bytes = |path: std::path::PathBuf| {
        if path.is_dir() { bytes_below(&path) } else { path.metadata().unwrap().len() }
    };
    entries.map(bytes).sum()
}
