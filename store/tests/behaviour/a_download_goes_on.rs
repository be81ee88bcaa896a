//! Several processes at one cache, and one that is killed in mid download.
//!
//! The other process is this test, started again with a place in its environment: it downloads half of a checkpoint
//! and then waits to be told, or to be killed.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::{Cache, Stage, Store};
use tempfile::TempDir;

use crate::support::{Checkpoint, PART, assert_same, folder, publish};

/// Tells a process that it is the other one, and where.
const PLACE: &str = "BEIGE_TEST_PLACE";
/// Long enough for what would come at once.
const MOMENT: Duration = Duration::from_millis(500);
/// A noisy machine may take this long for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes after which the other process stops.
const HALF: u64 = 4 * PART;

fn checkpoint() -> Checkpoint {
    Checkpoint::new(1, &[("model.safetensors", 9 * 1000)])
}

/// The store and the cache below `place`.
fn open(place: &Path) -> (Store, Cache) {
    let store = crate::support::open(
        &format!("file://{}", place.join("store").display()),
        &store::Settings::default(),
    );
    (store, Cache::open(&place.join("cache"), 1 << 20).unwrap())
}

/// Where both are, with the checkpoint in the store.
async fn place() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    publish(&open(place.path()).0, &checkpoint()).await;
    place
}

/// What the other process does.
fn be_the_other(place: &OsStr) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, cache) = open(Path::new(place));
    let stopped = AtomicBool::new(false);
    let stop = |progress: store::Progress| {
        let half = progress.stage == Stage::Downloading && progress.done >= HALF;
        if half && !stopped.swap(true, Ordering::Relaxed) {
            let _ = writeln!(std::io::stdout(), "half");
            let _ = std::io::stdin().read(&mut [0]);
        }
    };
    let held = runtime.block_on(cache.checkpoint(&store, &checkpoint().files, &stop)).unwrap();
    assert_same(held.path(), &checkpoint());
}

/// The other process, which has half of the checkpoint and waits.
struct Other(Child);

impl Other {
    /// `test` is the test that calls this.
    fn start(place: &Path, test: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", &format!("a_download_goes_on::{test}")]).env(PLACE, place);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut other = Self(child);
        let lines = BufReader::new(other.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("half")), "it never came so far");
        other
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Deletes the first parts from the store: whoever reads them again fails.
fn forget_first_half(place: &Path) {
    let parts = place.join("store/parts").join(&checkpoint().files[0].sha256);
    for index in 0..HALF / PART {
        let part = fs::read_dir(&parts).unwrap().map(|entry| entry.unwrap().path());
        let name = format!("{index:06}-");
        let part =
            part.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&name));
        fs::remove_file(part.unwrap()).unwrap();
    }
}

#[test]
fn after_a_kill_from_where_it_was() {
    if let Some(place) = std::env::var_os(PLACE) {
        return be_the_other(&place);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = runtime.block_on(place());
    let mut other = Other::start(place.path(), "after_a_kill_from_where_it_was");
    other.0.kill().unwrap(); // SIGKILL.
    other.0.wait().unwrap();
    forget_first_half(place.path());
    let (store, cache) = open(place.path());
    let held = runtime.block_on(cache.checkpoint(&store, &checkpoint().files, &|_| ())).unwrap();
    assert_same(held.path(), &checkpoint());
}

#[test]
fn in_another_process_while_this_one_waits() {
    if let Some(place) = std::env::var_os(PLACE) {
        return be_the_other(&place);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = runtime.block_on(place());
    let mut other = Other::start(place.path(), "in_another_process_while_this_one_waits");
    let (_, cache) = open(place.path());
    // This process has a store with nothing in it: all bytes come through the other one.
    let (_dir, nothing) = folder();
    let (seen, files) = (AtomicU64::new(0), checkpoint().files);
    let told = |progress: store::Progress| {
        seen.fetch_max(progress.done, Ordering::Relaxed);
    };
    let held = runtime.block_on(async {
        let mut waiting = std::pin::pin!(cache.checkpoint(&nothing, &files, &told));
        let begun = Instant::now();
        while seen.load(Ordering::Relaxed) == 0 || begun.elapsed() < MOMENT {
            let early = tokio::time::timeout(MOMENT / 5, &mut waiting).await;
            assert!(early.is_err(), "it did not wait");
            assert!(begun.elapsed() < PATIENCE, "it shows nothing");
        }
        assert_eq!(seen.load(Ordering::Relaxed), HALF, "it shows what the other one has");
        other.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        waiting.await
    });
    assert_same(held.unwrap().path(), &checkpoint());
    assert!(other.0.wait().unwrap().success());
}

#[test]
fn where_the_other_process_was_killed() {
    if let Some(place) = std::env::var_os(PLACE) {
        return be_the_other(&place);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let place = runtime.block_on(place());
    let mut other = Other::start(place.path(), "where_the_other_process_was_killed");
    forget_first_half(place.path());
    let (store, cache) = open(place.path());
    let files = checkpoint().files;
    let held = runtime.block_on(async {
        let mut waiting = std::pin::pin!(cache.checkpoint(&store, &files, &|_| ()));
        let early = tokio::time::timeout(MOMENT, &mut waiting).await;
        assert!(early.is_err(), "it did not wait");
        other.0.kill().unwrap();
        waiting.await
    });
    assert_same(held.unwrap().path(), &checkpoint());
}
