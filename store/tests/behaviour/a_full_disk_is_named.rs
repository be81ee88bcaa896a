//! A disk that takes no more. The disk is a small one in memory, which only root can make: for others the test says
//! that it did not run.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use store::{Cache, Error, Settings, UploadError};
use tempfile::TempDir;

use crate::support::{Checkpoint, assert_same, folder, open, publish, send};

/// A disk of 64 KiB, gone with this.
struct Disk(TempDir);

impl Disk {
    #[expect(clippy::print_stderr, reason = "to be read by whoever runs the tests")]
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(dir.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        if !mounted {
            eprintln!("not run: this user can mount no disk");
        }
        mounted.then(|| Self(dir))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[tokio::test]
async fn a_cache_names_it_and_leaves_nothing() {
    let Some(disk) = Disk::new() else { return };
    let (_dir, store) = folder();
    let large = Checkpoint::new(1, &[("config.json", 100), ("model.safetensors", 100_000)]);
    let small = Checkpoint::new(2, &[("config.json", 200), ("model.safetensors", 20_000)]);
    publish(&store, &large).await;
    publish(&store, &small).await;
    let cache = Cache::open(disk.path(), 1 << 30).unwrap();
    let error = cache.checkpoint(&store, &large.files, &|_| ()).await.unwrap_err();
    let Error::Disk { path, source } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), ErrorKind::StorageFull);
    assert!(path.starts_with(disk.path()), "{}", path.display());
    assert_eq!(count(&disk.path().join("blobs")), 1, "only the file that did fit");
    let held = cache.checkpoint(&store, &small.files, &|_| ()).await.unwrap();
    assert_same(held.path(), &small);
}

#[tokio::test]
async fn a_store_names_it_and_shows_nothing() {
    let Some(disk) = Disk::new() else { return };
    let store = open(&format!("file://{}", disk.path().display()), &Settings::default());
    let large = Checkpoint::new(1, &[("model.safetensors", 100_000)]);
    let mut publication = store.publish(&large.files).await.unwrap();
    let error = send(&mut publication, &large, 1000, u64::MAX).await.unwrap_err();
    let UploadError::Store(Error::Unreachable { source, .. }) = error else { panic!("{error:?}") };
    let source: &dyn std::error::Error = &*source;
    let mut causes = std::iter::successors(Some(source), |cause| cause.source());
    assert!(causes.any(|cause| cause.to_string().contains("No space left")), "{source:?}");
    assert_eq!(count(&disk.path().join("blobs")), 0);
}
