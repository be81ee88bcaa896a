//! The way of a checkpoint's files into the store.
//!
//! Bytes are hashed as they come, and a blob appears when it is whole and right. A larger file goes in parts, each an
//! object named by its own hash: an upload that is cut short goes on behind its last whole part, after that was read
//! back, and uploads of the same file, honest or not, cannot spoil each other.

mod upload;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use manifest::{Manifest, ManifestFile};
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::time;

use crate::blob::Blob;
use crate::{Error, Store, collect};
use upload::Upload;

/// How long a publication waits for a collection to end, and how often it looks.
const COLLECTION: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(200);

/// Why bytes were not taken.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Nobody asked for this file, or it is whole.
    #[error("no bytes of the file {0} are wanted")]
    Unasked(String),
    /// Bytes come in order.
    #[error("of the file {sha256} the bytes from {wanted} are wanted, not those from {given}")]
    Misplaced {
        /// The file.
        sha256: String,
        /// Where the next bytes belong.
        wanted: u64,
        /// Where these are said to.
        given: u64,
    },
    /// There are more than were announced.
    #[error("the file {sha256} was announced with {size} bytes, and has more")]
    Overlong {
        /// The file.
        sha256: String,
        /// What was announced.
        size: u64,
    },
    /// They are not those that were announced. Nothing of them is kept.
    #[error("the file announced as {sha256} is {found}")]
    Checksum {
        /// What was announced.
        sha256: String,
        /// What the bytes are.
        found: String,
    },
    /// One file cannot have two sizes.
    #[error("the file {0} is announced with two sizes")]
    Contradiction(String),
    /// The store did not take them.
    #[error("the store did not take it")]
    Store(#[from] Error),
}

/// Bytes that the store does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The file.
    pub sha256: String,
    /// From where on; more than 0 where an earlier upload got so far.
    pub offset: u64,
    /// Bytes of the whole file.
    pub size: u64,
}

/// Files on their way into the store. What it relies on is not collected while it goes on, nor for the collection's
/// grace thereafter.
#[derive(Debug)]
pub struct Publication {
    store: Store,
    marker: Path,
    files: Vec<ManifestFile>,
    uploads: BTreeMap<String, Upload>,
}

/// What a publication under way relies on, for a collection to see.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// SHA-256 of each file.
    pub(crate) files: Vec<String>,
    /// Version of this format.
    pub(crate) v: u32,
}

impl Store {
    /// Begins to publish a checkpoint of `files`. Takes as long as it takes to read back what an earlier upload left.
    ///
    /// # Errors
    /// [`Error::Format`] where they cannot be the files of a checkpoint; [`UploadError::Contradiction`];
    /// [`Error::Busy`]; and what befalls a store.
    pub async fn publish(&self, files: &[ManifestFile]) -> Result<Publication, UploadError> {
        manifest::check(files).map_err(Error::files)?;
        let sizes = sizes(files)?;
        let marker = self.announce(files).await?;
        match self.uploads(sizes).await {
            Ok(uploads) => Ok(Publication { store: self.clone(), marker, files: files.to_vec(), uploads }),
            Err(error) => {
                self.delete(&marker).await?;
                Err(error)
            }
        }
    }

    /// What is to come of files with these sizes.
    async fn uploads(&self, sizes: BTreeMap<String, u64>) -> Result<BTreeMap<String, Upload>, UploadError> {
        let mut uploads = BTreeMap::new();
        for (sha256, size) in sizes {
            if self.has(&ManifestFile { path: String::new(), sha256: sha256.clone(), size }).await? {
                continue;
            }
            let mut upload = Upload::resume(self, &sha256, size).await?;
            // Of an empty file nothing will ever come, and of another all parts may be there.
            if upload.is_whole() {
                upload.finish(self).await?;
            } else {
                uploads.insert(sha256, upload);
            }
        }
        Ok(uploads)
    }

    /// Whether the store has all of a file, as far as names and sizes tell.
    async fn has(&self, file: &ManifestFile) -> Result<bool, Error> {
        match self.locate(file).await {
            Ok(Some(Blob::Whole)) => Ok(true),
            Ok(Some(Blob::Parts(parts))) => self.has_parts(&file.sha256, &parts).await,
            // What is not as it should be is written again.
            Ok(None) | Err(Error::Checksum { .. } | Error::Format { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes known which blobs must stay, and waits until every collection heeds it.
    async fn announce(&self, files: &[ManifestFile]) -> Result<Path, Error> {
        let marker = self.path(&format!("publishing/{}.json", uuid::Uuid::new_v4()));
        let content = Marker { files: files.iter().map(|file| file.sha256.clone()).collect(), v: 1 };
        let json = serde_json::to_vec(&content).map_err(|error| Error::format(marker.as_ref(), error))?;
        self.put(&marker, json).await?;
        // A collection that began before may have read the markers already. One that begins now sees this one.
        let over = async {
            while collect::is_under_way(self).await? {
                time::sleep(LOOK).await;
            }
            Ok(marker.clone())
        };
        if let Ok(over) = time::timeout(COLLECTION, over).await {
            return over;
        }
        self.delete(&marker).await?;
        Err(Error::Busy)
    }
}

/// Each file once, with its size.
fn sizes(files: &[ManifestFile]) -> Result<BTreeMap<String, u64>, UploadError> {
    let mut sizes = BTreeMap::new();
    for file in files {
        if *sizes.entry(file.sha256.clone()).or_insert(file.size) != file.size {
            return Err(UploadError::Contradiction(file.sha256.clone()));
        }
    }
    Ok(sizes)
}

impl Publication {
    /// The bytes that are still to come, files of equal bytes once.
    #[must_use]
    pub fn wanted(&self) -> Vec<Wanted> {
        let wanted = |(sha256, upload): (&String, &Upload)| Wanted {
            sha256: sha256.clone(),
            offset: upload.taken(),
            size: upload.size(),
        };
        self.uploads.iter().map(wanted).collect()
    }

    /// Whether all files are in the store.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.uploads.is_empty()
    }

    /// Takes the bytes of the file `sha256` that begin at `offset`. Files may take turns; each comes in order.
    ///
    /// # Errors
    /// [`UploadError`]: the bytes are not those that were announced, or the store does not take them. After an error
    /// the publication can only be begun again.
    pub async fn write(&mut self, sha256: &str, offset: u64, data: Bytes) -> Result<(), UploadError> {
        let upload = self.uploads.get_mut(sha256).ok_or_else(|| UploadError::Unasked(sha256.into()))?;
        upload.write(&self.store, offset, data).await?;
        if upload.is_whole() {
            upload.finish(&self.store).await?;
            self.uploads.remove(sha256);
        }
        Ok(())
    }

    /// Ends it: the checkpoint is in the store. Returns its digest. Published files that `manifest` does not list are
    /// left to a collection.
    ///
    /// # Errors
    /// [`Error::Format`] where `manifest` lists another file; [`Error::Missing`] where not all that were published came;
    /// and what befalls a store.
    pub async fn finish(self, manifest: &Manifest) -> Result<String, Error> {
        if let Some(sha256) = self.uploads.keys().next() {
            return Err(Error::Missing(format!("blob {sha256}")));
        }
        if let Some(file) = manifest.files.iter().find(|file| !self.files.contains(file)) {
            return Err(Error::format("the manifest", format!("{} was not published with it", file.path)));
        }
        let digest = manifest.digest();
        self.store.put(&self.store.manifest_path(&digest), manifest.canonical().into_bytes()).await?;
        self.store.delete(&self.marker).await?;
        Ok(digest)
    }

    /// Ends it without a checkpoint. What came stays for the collection's grace: a next attempt goes on from it.
    ///
    /// # Errors
    /// What befalls a store; then a collection does the rest.
    pub async fn abandon(self) -> Result<(), Error> {
        self.store.delete(&self.marker).await
    }
}
