//! Recorded runs of the reference come out the same here, number by number.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

use trainer::trace::{Places, replay};

/// Where `scripts/setup` keeps checkpoints.
fn checkpoints() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("beige");
    std::env::var_os("BEIGE_CACHE").map_or_else(cache, PathBuf::from).join("models")
}

/// Folders below `root` that hold a run of fine-tuning.
fn traces(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let is_trace = |dir: &PathBuf| {
        // Pre-training has traces of its own kind.
        dir.join("hyperparameters.json").exists() && dir.join("samples_rank0.jsonl").exists()
    };
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(is_trace).collect();
    found.sort();
    found
}

#[track_caller]
fn check(dir: &Path) {
    // The reference ran on one thread: sums are in its order.
    model::prepare(model::Device::Cpu, 1).unwrap();
    let report = replay(dir, &Places { checkpoints: Some(checkpoints()), ..Places::default() }).unwrap();
    assert!(report.holds(), "{}\n{report}", dir.display());
    assert!(report.rows.iter().any(|row| row.compared > 2), "{report}");
}

/// Larger traces, which not every checkout has beside it.
#[test]
fn supplied_traces_come_out_the_same() {
    for dir in traces(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/traces")) {
        check(&dir);
    }
}
