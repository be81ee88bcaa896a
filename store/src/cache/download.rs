//! Brings files from the store into the cache, and into their places.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt as _;
use manifest::ManifestFile;

use super::verify::{Damaged, size_and_inode};
use super::{Cache, Held, Progress, Stage, Told, blocking};
use crate::error::At as _;
use crate::lock::Lock;
use crate::{Error, Store};

/// What of a download is told.
struct Report<'a> {
    told: Told<'a>,
    /// Bytes of the files before this one.
    before: u64,
    total: u64,
}

impl Report<'_> {
    /// So many bytes of this file are there.
    fn at(&self, bytes: u64) {
        (self.told)(Progress { stage: Stage::Downloading, done: self.before + bytes, total: self.total });
    }
}

impl Cache {
    /// Has `absent` in place, as the store has them.
    pub(super) async fn fetch(
        &self,
        store: &Store,
        held: &Held,
        absent: Vec<Damaged>,
        told: Told<'_>,
    ) -> Result<(), Error> {
        if absent.is_empty() {
            return Ok(());
        }
        self.make_room(&absent).await?;
        let total = absent.iter().map(|absent| absent.file.size).sum();
        let mut report = Report { told, before: 0, total };
        for absent in absent {
            report.at(0);
            let size = absent.file.size;
            self.fetch_one(store, held, absent, &report).await?;
            report.before += size;
        }
        report.at(0);
        Ok(())
    }

    async fn fetch_one(
        &self,
        store: &Store,
        held: &Held,
        absent: Damaged,
        report: &Report<'_>,
    ) -> Result<(), Error> {
        let Damaged { file, found, sha256: _ } = absent;
        let (blob, part) = (self.blob_path(&file.sha256), self.part_path(&file));
        // Another process may be at it: its bytes are ours too.
        let waiting = || report.at(fs::metadata(&part).map_or(0, |meta| meta.len().min(file.size)));
        let _alone = Lock::exclusive(self.lock_path(&file.sha256), waiting).await?;
        match size_and_inode(&blob)? {
            Some((size, inode)) if size == file.size && Some(inode) != found => {}
            _ => {
                remove(&blob)?;
                self.download(store, &file, &part, report).await?;
                fs::rename(&part, &blob).at(&blob)?;
            }
        }
        let target = held.dir.join(&file.path);
        match size_and_inode(&target)? {
            // Put there by another process that has waited less.
            Some((size, inode)) if size == file.size && Some(inode) != found => Ok(()),
            _ => Self::place(&blob, &target),
        }
    }

    /// Appends to `part` what it lacks of `file`.
    async fn download(
        &self,
        store: &Store,
        file: &ManifestFile,
        part: &Path,
        report: &Report<'_>,
    ) -> Result<(), Error> {
        let open = OpenOptions::new().create(true).write(true).truncate(false).open(part);
        let (open, path) = (Arc::new(open.at(part)?), Arc::from(part));
        let mut at = open.metadata().at(part)?.len();
        if at > file.size {
            open.set_len(0).at(part)?;
            at = 0;
        }
        if at == file.size {
            return Ok(()); // An empty one, or one that was cut off before it got its name.
        }
        let mut pieces = std::pin::pin!(store.read(file, at).await?);
        while let Some(data) = pieces.try_next().await? {
            report.at(at);
            let bytes = data.len() as u64;
            let (open, path) = (Arc::clone(&open), Arc::clone(&path));
            blocking(move || write(&open, &path, &data, at)).await?;
            at += bytes;
        }
        report.at(at);
        Ok(())
    }

    /// Puts `blob` in place, whatever is there. Whoever looks sees the old file or the new one.
    fn place(blob: &Path, target: &Path) -> Result<(), Error> {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).at(parent)?;
        }
        let link = blob.with_extension("link");
        remove(&link)?; // Of a process that was ended here.
        match fs::hard_link(blob, &link) {
            Ok(()) => {}
            // A file system without links: then it is here and nowhere else.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied) =>
            {
                return fs::rename(blob, target).at(target);
            }
            Err(error) => return Err(error).at(&link),
        }
        fs::rename(&link, target).at(target)?;
        remove(&link) // Renaming a file onto itself leaves both names.
    }

    /// Removes a file that the store has damaged, and says so.
    pub(super) async fn discard(&self, held: &Held, damaged: Damaged) -> Error {
        let Damaged { file, found, sha256 } = damaged;
        let error = Error::Checksum {
            what: format!("blob {}", file.sha256),
            found: sha256.map_or_else(|| "it vanished".to_owned(), |sha256| format!("it hashes to {sha256}")),
        };
        let remove_found = async {
            let _alone = Lock::exclusive(self.lock_path(&file.sha256), || ()).await?;
            for path in [self.blob_path(&file.sha256), held.dir.join(&file.path)] {
                if size_and_inode(&path)?.map(|(_, inode)| inode) == found {
                    remove(&path)?;
                }
            }
            Ok::<(), Error>(())
        };
        if let Err(error) = remove_found.await {
            tracing::warn!(%error, "a damaged file stays in the cache");
        }
        error
    }

    /// Where a file is while it comes.
    pub(super) fn part_path(&self, file: &ManifestFile) -> PathBuf {
        self.blob_path(&format!("{}.{}.part", file.sha256, file.size))
    }
}

/// Writes `data` at `at`. Where the disk does not take it, what came before is given back as well: a full disk is in
/// the way of more than this.
fn write(open: &File, path: &Path, data: &[u8], at: u64) -> Result<(), Error> {
    open.write_all_at(data, at).or_else(|error| {
        remove(path)?;
        Err(error).at(path)
    })
}

/// Removes a file; that there is none is as good.
pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at(path),
        _ => Ok(()),
    }
}
