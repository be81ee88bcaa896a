//! Keeps the cache within its bound: what was used longest ago goes, unless a process uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirEntry, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use manifest::{ManifestFile, is_digest};

use super::download::remove;
use super::verify::{Damaged, Inode};
use super::{Cache, blocking};
use crate::Error;
use crate::error::At as _;
use crate::lock::Lock;

/// Hexadecimal digits at the beginning of the name of everything among the blobs.
const DIGITS: usize = 64;

/// Something that may be evicted.
#[derive(Debug)]
struct Entry {
    /// A directory of a checkpoint, or a file among the blobs that belongs to none.
    path: PathBuf,
    /// What is locked by whoever uses it.
    lock: String,
    used: SystemTime,
    /// The files that go with it, unless they belong to another one too.
    inodes: BTreeSet<Inode>,
}

/// What is in a cache.
#[derive(Debug, Default)]
struct Survey {
    /// Bytes that each file takes, or will once it is whole.
    bytes: BTreeMap<Inode, u64>,
    /// Files among the blobs, by name.
    blobs: BTreeMap<String, Inode>,
    /// What may go, the least recently used first.
    entries: Vec<Entry>,
}

impl Cache {
    /// Makes room for `absent`, and takes it: a file that is to come counts as whole from here on.
    pub(super) async fn make_room(&self, absent: &[Damaged]) -> Result<(), Error> {
        let cache = self.clone();
        let wanted: BTreeMap<String, ManifestFile> =
            absent.iter().map(|absent| (absent.file.sha256.clone(), absent.file.clone())).collect();
        // One at a time, or two would take the same room. It is held for a moment.
        let _alone = Lock::exclusive(self.lock_path("room"), || ()).await?;
        blocking(move || cache.evict_for(&wanted)).await
    }

    fn evict_for(&self, wanted: &BTreeMap<String, ManifestFile>) -> Result<(), Error> {
        let mut busy = BTreeSet::new();
        loop {
            let survey = self.survey()?;
            let new: Vec<_> = wanted.values().filter(|file| !survey.has(file)).collect();
            let wanted_bytes: u64 = new.iter().map(|file| file.size).sum();
            let held: u64 = survey.bytes.values().sum();
            if held + wanted_bytes <= self.bound {
                return new.into_iter().try_for_each(|file| self.reserve(file));
            }
            let mut candidates =
                survey.entries.iter().filter(|it| !wanted.contains_key(&it.lock) && !busy.contains(&it.lock));
            let Some(oldest) = candidates.next() else {
                return Err(Error::Room { wanted: wanted_bytes, bound: self.bound, held });
            };
            if !self.evict(oldest, &survey, wanted)? {
                busy.insert(oldest.lock.clone());
            }
        }
    }

    fn reserve(&self, file: &ManifestFile) -> Result<(), Error> {
        let path = self.part_path(file);
        OpenOptions::new().create(true).write(true).truncate(false).open(&path).map(drop).at(&path)
    }

    /// Removes `entry`; `false` where a process uses it.
    fn evict(
        &self,
        entry: &Entry,
        survey: &Survey,
        wanted: &BTreeMap<String, ManifestFile>,
    ) -> Result<bool, Error> {
        let Some(lock) = Lock::try_exclusive(self.lock_path(&entry.lock))? else { return Ok(false) };
        tracing::info!(path = %entry.path.display(), "makes room in the cache");
        if entry.path.is_dir() {
            fs::remove_dir_all(&entry.path).at(&entry.path)?;
        } else {
            remove(&entry.path)?;
        }
        lock.remove();
        let elsewhere = |inode: &Inode| {
            survey.entries.iter().any(|other| other.path != entry.path && other.inodes.contains(inode))
        };
        for (name, inode) in &survey.blobs {
            let sha256 = &name[..DIGITS];
            if entry.inodes.contains(inode) && !elsewhere(inode) && !wanted.contains_key(sha256) {
                // Whoever has it locked is about to use it.
                if let Some(lock) = Lock::try_exclusive(self.lock_path(sha256))? {
                    remove(&self.blob_path(name))?;
                    lock.remove();
                }
            }
        }
        Ok(true)
    }

    fn survey(&self) -> Result<Survey, Error> {
        let mut survey = Survey::default();
        let mut placed: BTreeSet<Inode> = BTreeSet::new();
        let checkpoints = self.dir.join("checkpoints");
        for entry in list(&checkpoints)? {
            let mut inodes = BTreeSet::new();
            walk(&entry.path(), &mut |inode, bytes| {
                survey.bytes.insert(inode, bytes);
                inodes.insert(inode);
            })?;
            placed.extend(&inodes);
            let lock = entry.file_name().to_string_lossy().into_owned();
            let used = modified(&self.lock_path(&lock));
            survey.entries.push(Entry { path: entry.path(), lock, used, inodes });
        }
        for entry in list(&self.dir.join("blobs"))? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (Ok(meta), Some(sha256)) = (entry.metadata(), name.get(..DIGITS).map(str::to_owned)) else {
                continue;
            };
            if !is_digest(&sha256) {
                continue;
            }
            let inode = (meta.dev(), meta.ino());
            survey.bytes.insert(inode, meta.len().max(announced(&name)));
            if !placed.contains(&inode) {
                let used = modified(&entry.path());
                survey.entries.push(Entry { path: entry.path(), lock: sha256, used, inodes: [inode].into() });
            }
            survey.blobs.insert(name, inode);
        }
        survey.entries.sort_by_key(|entry| entry.used);
        Ok(survey)
    }
}

impl Survey {
    /// Whether `file` is there, or room is taken for it.
    fn has(&self, file: &ManifestFile) -> bool {
        let ManifestFile { sha256, size, path: _ } = file;
        self.blobs.contains_key(sha256) || self.blobs.contains_key(&format!("{sha256}.{size}.part"))
    }
}

/// The bytes that a file will have, by the name it has until then.
fn announced(name: &str) -> u64 {
    name.strip_suffix(".part")
        .and_then(|name| name.get(DIGITS + 1..))
        .and_then(|bytes| bytes.parse().ok())
        .unwrap_or(0)
}

/// What is in `dir`, as far as it is still there.
fn list(dir: &Path) -> Result<Vec<DirEntry>, Error> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<io::Result<_>>().at(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).at(dir),
    }
}

/// Calls `each` with every file below `dir` and its bytes.
fn walk(dir: &Path, each: &mut impl FnMut(Inode, u64)) -> Result<(), Error> {
    for entry in list(dir)? {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => walk(&entry.path(), each)?,
            Ok(meta) => each((meta.dev(), meta.ino()), meta.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at(&entry.path()),
        }
    }
    Ok(())
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}
