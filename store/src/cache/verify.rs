//! Holds a checkpoint's files against what they should be.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use manifest::ManifestFile;
use tokio::sync::mpsc;

use super::{Cache, Held, Progress, Stage, Told, blocking};
use crate::Error;
use crate::error::At as _;

/// A file on this system, whatever its name.
pub(super) type Inode = (u64, u64);

/// A file of a checkpoint that has to be fetched.
#[derive(Clone, Debug)]
pub(super) struct Damaged {
    pub(super) file: ManifestFile,
    /// What is there in its place and must not be taken; `None` where nothing is.
    pub(super) found: Option<Inode>,
    /// What it hashes to instead, where that is known.
    pub(super) sha256: Option<String>,
}

impl Cache {
    /// The files that are not there, or not as long as they should be.
    pub(super) async fn absent(&self, held: &Held, files: &[ManifestFile]) -> Result<Vec<Damaged>, Error> {
        let (dir, files) = (held.dir.clone(), files.to_vec());
        let look = move || {
            let absent = |file: ManifestFile| match size_and_inode(&dir.join(&file.path)) {
                Ok(Some((size, _))) if size == file.size => None,
                Ok(found) => Some(Ok(Damaged { found: found.map(|(_, inode)| inode), sha256: None, file })),
                Err(error) => Some(Err(error)),
            };
            files.into_iter().filter_map(absent).collect()
        };
        blocking(look).await
    }

    /// Reads every byte of `files`; answers those that are not what they should be.
    pub(super) async fn verify(
        &self,
        held: &Held,
        files: &[ManifestFile],
        told: Told<'_>,
    ) -> Result<Vec<Damaged>, Error> {
        let total = files.iter().map(|file| file.size).sum();
        let (mut done, mut damaged) = (0, Vec::new());
        for file in files {
            told(Progress { stage: Stage::Verifying, done, total });
            let path = held.dir.join(&file.path);
            let read = |read| told(Progress { stage: Stage::Verifying, done: done + read, total });
            match hash(&path, read).await? {
                Some((sha256, _)) if sha256 == file.sha256 => {}
                other => {
                    let (sha256, found) = other.unzip();
                    damaged.push(Damaged { file: file.clone(), found, sha256 });
                }
            }
            done += file.size;
        }
        told(Progress { stage: Stage::Verifying, done: total, total });
        Ok(damaged)
    }
}

/// SHA-256 of a file, and which it is; `None` where there is none. `told` hears how many bytes are read.
async fn hash(path: &Path, told: impl Fn(u64)) -> Result<Option<(String, Inode)>, Error> {
    let (progress, mut reports) = mpsc::channel(1);
    let file = path.to_owned();
    let listen = async {
        while let Some(read) = reports.recv().await {
            told(read);
        }
    };
    match tokio::join!(blocking(move || hash_file(&file, &progress)), listen).0 {
        Ok(hashed) => Ok(Some(hashed)),
        // Another process has found it damaged.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(path),
    }
}

fn hash_file(path: &Path, progress: &mpsc::Sender<u64>) -> io::Result<(String, Inode)> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    // Where nobody listens any more, the answer is not wanted either.
    let told = |read| progress.blocking_send(read).map_err(|_| io::ErrorKind::Interrupted.into());
    let (_, sha256) = manifest::hash_read(file, told)?;
    Ok((sha256, (meta.dev(), meta.ino())))
}

/// Bytes of the file at `path`, and which it is; `None` where there is none.
pub(super) fn size_and_inode(path: &Path) -> Result<Option<(u64, Inode)>, Error> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some((meta.len(), (meta.dev(), meta.ino())))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at(path),
    }
}
