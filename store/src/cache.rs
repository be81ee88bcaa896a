//! Checkpoints on a local disk, for all worker processes of a host.
//!
//! ```text
//! checkpoints/<files>/…           a checkpoint as it was published; hard links to blobs
//! blobs/<sha256>                  its files, each once
//! blobs/<sha256>.<bytes>.part     what has come so far of one that is to have so many bytes
//! locks/<name>                    shared by whoever uses a checkpoint, exclusive for whoever writes a file
//! ```
//!
//! Processes agree by locks of the system, which go with the process that holds them, however it ends. A file that is
//! there is never believed: it is held against its hash each time a checkpoint is opened, and one that is damaged is
//! fetched again. Files are not synced to disk, for the same reason.

mod download;
mod room;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use manifest::{ManifestFile, hex};
use sha2::{Digest as _, Sha256};
use tokio::task;

use crate::error::At as _;
use crate::lock::Lock;
use crate::{Error, Store};

/// Where checkpoints are kept on this host. A handle: clones are the same cache, and so are those of other processes.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: Arc<Path>,
    bound: u64,
}

/// What is being done to have a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Files come from the store, here or in another process.
    Downloading,
    /// Files are held against their hashes.
    Verifying,
}

/// How far a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of it that are done.
    pub done: u64,
    /// Bytes of it in all.
    pub total: u64,
}

/// Told of progress, every few megabytes.
pub type Told<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// A checkpoint in the cache, all its bytes verified; it is not evicted while this lives.
#[derive(Debug)]
pub struct Held {
    dir: PathBuf,
    lock: Lock,
}

impl Held {
    /// The directory, in the layout in which it was published.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lock.touch(); // It was in use until now.
    }
}

impl Cache {
    /// The cache in `dir`, which is made if it is not there. It is to take `bytes` bytes at most; processes that share
    /// it should agree on that.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn open(dir: &Path, bytes: u64) -> Result<Self, Error> {
        for part in ["blobs", "checkpoints", "locks"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).at(&path)?;
        }
        Ok(Self { dir: dir.into(), bound: bytes })
    }

    /// The checkpoint made of `files`, from the cache or from `store`, every byte of it verified.
    ///
    /// Where it is cut off, by being dropped or with its process, a next one goes on from the bytes that had come.
    /// Where another process is fetching the same file, it waits for that.
    ///
    /// # Errors
    /// [`Error::Format`] where `files` cannot be those of a checkpoint; [`Error::Missing`] and [`Error::Checksum`] where
    /// the store lacks one or has it damaged; [`Error::Disk`] and [`Error::Room`] where there is no place for it, then
    /// nothing of the file at fault is left; and what befalls a store.
    pub async fn checkpoint(
        &self,
        store: &Store,
        files: &[ManifestFile],
        told: Told<'_>,
    ) -> Result<Held, Error> {
        manifest::check(files).map_err(Error::files)?;
        let name = name(files);
        let lock = Lock::shared(self.lock_path(&name), || ()).await?;
        lock.touch();
        let held = Held { dir: self.dir.join("checkpoints").join(&name), lock };

        let absent = self.absent(&held, files).await?;
        self.fetch(store, &held, absent, told).await?;
        let damaged = self.verify(&held, files, told).await?;
        if damaged.is_empty() {
            return Ok(held);
        }
        // Damaged here, or cut off by a crash that lost what had come: once more, from the first byte.
        let suspects: Vec<_> = damaged.iter().map(|damaged| damaged.file.clone()).collect();
        self.fetch(store, &held, damaged, told).await?;
        match self.verify(&held, &suspects, told).await?.into_iter().next() {
            None => Ok(held),
            // It came so: the store has it so.
            Some(damaged) => Err(self.discard(&held, damaged).await),
        }
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.dir.join("locks").join(name)
    }

    fn blob_path(&self, sha256: &str) -> PathBuf {
        self.dir.join("blobs").join(sha256)
    }
}

/// The name of a checkpoint's directory: equal exactly where paths and bytes are.
fn name(files: &[ManifestFile]) -> String {
    let mut hasher = Sha256::new();
    for ManifestFile { path, sha256, size } in files {
        hasher.update(format!("{sha256} {size} {path}\n")); // A path has no line feed.
    }
    hex(&hasher.finalize())
}

/// Runs what blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match task::spawn_blocking(work).await {
        Ok(done) => done,
        // The runtime ends: nobody waits for this any more.
        Err(error) if error.is_cancelled() => std::future::pending().await,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
