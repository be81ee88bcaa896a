//! Checkpoints in an object store: content-addressed, verified, cached.
//!
//! A [`Store`] is a directory or a bucket:
//!
//! ```text
//! manifests/<digest>.json            what a checkpoint consists of
//! blobs/<sha256>                     a file of a checkpoint, whole
//! blobs/<sha256>.parts               a larger one: the list of its parts, written when the last of them is there
//! parts/<sha256>/<index>-<sha256>    a part, named by the file it belongs to, its place and its own bytes
//! publishing/<id>.json               files that a publication under way relies on
//! collecting.json                    a collection under way
//! ```
//!
//! A [`Publication`] asks for the files that are not there, takes their bytes in order and hashes them on the way; a
//! blob appears when it is whole, and is what its name says. What was sent before an interruption is not sent again.
//! Two publications of the same file, in whatever processes, end in the same objects: every name is that of its
//! content. [`Store::collect`] removes what no manifest that is kept refers to.
//!
//! A [`Cache`] has checkpoints on a local disk, for the worker processes of a host together: downloads go on where
//! they were cut off, every byte is held against its hash before it is handed out, and what has not been used for
//! longest makes room.
//!
//! A [`Source`] has objects that others put there, such as data to train on. They are known by their URLs and by what the
//! store says of them; [`Copies`] has them on a local disk.
//!
//! Nothing here knows a model or what its name means. Nothing here trusts the store: what is read is what was asked
//! for, or an [`Error`].

mod address;
mod blob;
mod cache;
mod collect;
mod copies;
mod error;
mod lock;
mod objects;
mod publication;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt as _;
use manifest::Manifest;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload};

pub use address::{InvalidUrl, Settings};
pub use cache::{Cache, Held, Progress, Stage, Told};
pub use collect::{Collected, Purpose};
pub use copies::Copies;
pub use error::{Cause, Error, ObjectError};
pub use objects::{Object, Place, Source};
pub use publication::{Publication, UploadError, Wanted};

/// Bytes of a part: what an upload that is cut short loses at most, and holds in memory.
const PART_BYTES: u64 = 32 << 20;
/// Bytes of a manifest, or of another of the store's own records; beyond it is not read.
const LARGEST_RECORD: u64 = 16 << 20;

/// Where checkpoints are kept. A handle: clones are the same store.
#[derive(Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    url: Arc<str>,
    part_bytes: u64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.url)
    }
}

impl Store {
    /// The store at `url`: `file:///directory`, `s3://bucket/prefix` or `gs://bucket/prefix`. A directory that is not
    /// there is made; a bucket is not spoken to yet.
    ///
    /// # Errors
    /// [`InvalidUrl`] says what is wrong with the URL, or which setting it lacks.
    pub fn open(url: &str, settings: &Settings) -> Result<Self, InvalidUrl> {
        let (objects, root) = address::open(url, settings)?;
        Ok(Self { objects, root, url: url.into(), part_bytes: PART_BYTES })
    }

    /// The same store, which cuts files that are published into parts of `bytes` bytes instead of 32 MiB. How files
    /// have been cut before makes no difference.
    #[must_use]
    pub fn with_part_bytes(self, bytes: u64) -> Self {
        Self { part_bytes: bytes.max(1), ..self }
    }

    /// Where it is; without credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The manifest of a published checkpoint.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Checksum`] where it is not the one that `digest` names; [`Error::Format`]; and
    /// what befalls a store.
    pub async fn manifest(&self, digest: &str) -> Result<Manifest, Error> {
        let path = self.manifest_path(digest);
        let json = self.record(&path).await?;
        let manifest = Manifest::parse(&json).map_err(|source| Error::format(path.as_ref(), source))?;
        match manifest.digest() {
            found if found == digest => Ok(manifest),
            found => Err(Error::Checksum { what: path.into(), found: format!("its digest is {found}") }),
        }
    }

    /// Digests of all published checkpoints, in no order.
    ///
    /// # Errors
    /// What befalls a store.
    pub async fn manifests(&self) -> Result<Vec<String>, Error> {
        let objects = self.list("manifests").await?;
        Ok(objects.iter().filter_map(|object| digest_of(&object.location).map(str::to_owned)).collect())
    }

    fn manifest_path(&self, digest: &str) -> Path {
        self.path(&format!("manifests/{digest}.json"))
    }

    /// The object called `name` in the layout.
    fn path(&self, name: &str) -> Path {
        self.root.parts().chain(Path::from(name).parts()).collect()
    }

    /// A whole object that is one of the store's own records.
    async fn record(&self, path: &Path) -> Result<Bytes, Error> {
        let found = self.objects.get(path).await.map_err(|source| Error::at(path, source))?;
        if found.meta.size > LARGEST_RECORD {
            return Err(Error::format(path.as_ref(), format!("it has {} bytes", found.meta.size)));
        }
        found.bytes().await.map_err(|source| Error::at(path, source))
    }

    async fn put(&self, path: &Path, data: impl Into<PutPayload>) -> Result<(), Error> {
        self.objects.put(path, data.into()).await.map_err(|source| Error::at(path, source))?;
        Ok(())
    }

    /// Deletes an object; that there is none is as good.
    async fn delete(&self, path: &Path) -> Result<(), Error> {
        match self.objects.delete(path).await.map_err(|source| Error::at(path, source)) {
            Err(Error::Missing(_)) => Ok(()),
            other => other,
        }
    }

    /// The object at `path`, if there is one.
    async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, Error> {
        match self.objects.head(path).await.map_err(|source| Error::at(path, source)) {
            Ok(meta) => Ok(Some(meta)),
            Err(Error::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects below `folder`.
    async fn list(&self, folder: &str) -> Result<Vec<ObjectMeta>, Error> {
        let path = self.path(folder);
        self.objects.list(Some(&path)).try_collect().await.map_err(|source| Error::at(&path, source))
    }
}

/// The digest in the name of a manifest.
fn digest_of(path: &Path) -> Option<&str> {
    path.filename()?.strip_suffix(".json").filter(|digest| manifest::is_digest(digest))
}
