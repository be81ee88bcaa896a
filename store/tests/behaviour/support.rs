//! Checkpoints of random bytes, and stores to put them in.

use bytes::Bytes;
use manifest::{Manifest, ManifestFile, hex};
use sha2::{Digest as _, Sha256};
use store::{Publication, Settings, Store, UploadError};
use tempfile::TempDir;

/// Bytes of a part in tests: small, so that a small file has several.
pub(crate) const PART: u64 = 1000;

/// A checkpoint that a publisher has.
#[derive(Clone)]
pub(crate) struct Checkpoint {
    pub(crate) files: Vec<ManifestFile>,
    pub(crate) contents: Vec<Bytes>,
}

impl Checkpoint {
    /// Of files with these paths and as many bytes, which `seed` determines.
    pub(crate) fn new(seed: u8, files: &[(&str, usize)]) -> Self {
        let mut files: Vec<_> =
            files.iter().map(|(path, size)| (*path, content(seed, path, *size))).collect();
        files.sort();
        let (files, contents) = files
            .into_iter()
            .map(|(path, data)| {
                let (size, sha256) = (data.len() as u64, hex(&Sha256::digest(&data)));
                (ManifestFile { path: path.into(), sha256, size }, data)
            })
            .unzip();
        Self { files, contents }
    }

    /// One like that of a small model.
    pub(crate) fn usual(seed: u8) -> Self {
        Self::new(seed, &[("1_Pooling/config.json", 40), ("config.json", 100), ("model.safetensors", 4321)])
    }

    pub(crate) fn manifest(&self) -> Manifest {
        Manifest::new(self.files.clone(), 4, 8, Some("mean".into()), true)
    }

    /// The file with that hash.
    pub(crate) fn content(&self, sha256: &str) -> Bytes {
        let index = self.files.iter().position(|file| file.sha256 == sha256).unwrap();
        self.contents[index].clone()
    }
}

/// Bytes that look random and are the same each time.
fn content(seed: u8, path: &str, size: usize) -> Bytes {
    let mut data = Vec::new();
    for block in 0_u64.. {
        if data.len() >= size {
            break;
        }
        data.extend(Sha256::digest(format!("{seed} {path} {block}")));
    }
    data.truncate(size);
    data.into()
}

/// A store in a directory.
pub(crate) fn folder() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&format!("file://{}", dir.path().display()), &Settings::default());
    (dir, store)
}

pub(crate) fn open(url: &str, settings: &Settings) -> Store {
    Store::open(url, settings).unwrap().with_part_bytes(PART)
}

/// Sends what is wanted, in chunks of `chunk` bytes; at most `most` bytes.
pub(crate) async fn send(
    publication: &mut Publication,
    checkpoint: &Checkpoint,
    chunk: usize,
    most: u64,
) -> Result<u64, UploadError> {
    let mut sent = 0;
    for wanted in publication.wanted() {
        let data = checkpoint.content(&wanted.sha256);
        let mut at = usize::try_from(wanted.offset).unwrap();
        while at < data.len() && sent < most {
            let room = usize::try_from(most - sent).unwrap();
            let end = data.len().min(at + chunk.min(room));
            publication.write(&wanted.sha256, at as u64, data.slice(at..end)).await?;
            sent += (end - at) as u64;
            at = end;
        }
    }
    Ok(sent)
}

/// Publishes a checkpoint; answers its digest.
pub(crate) async fn publish(store: &Store, checkpoint: &Checkpoint) -> String {
    let mut publication = store.publish(&checkpoint.files).await.unwrap();
    send(&mut publication, checkpoint, 300, u64::MAX).await.unwrap();
    assert!(publication.is_whole());
    publication.finish(&checkpoint.manifest()).await.unwrap()
}

/// Asserts that `dir` has exactly the files of the checkpoint.
#[track_caller]
pub(crate) fn assert_same(dir: &std::path::Path, checkpoint: &Checkpoint) {
    for (file, data) in checkpoint.files.iter().zip(&checkpoint.contents) {
        assert_eq!(std::fs::read(dir.join(&file.path)).unwrap(), *data, "{}", file.path);
    }
}
