//! Removes what nothing refers to any more.
//!
//! A publication puts its marker and then looks for a collection; a collection puts `collecting.json` and then looks
//! for markers. Whichever comes second sees the other, so that no blob goes that a publication has found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use futures::TryStreamExt as _;
use futures::stream::{self, StreamExt as _};
use manifest::is_digest;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _, PutMode};

use crate::publication::Marker;
use crate::{Error, Store, digest_of};

/// After so long a collection is taken for dead.
const DEAD: Duration = Duration::from_secs(600);
/// After so long one ends itself, well before.
const LONGEST: Duration = Duration::from_secs(300);
/// Objects deleted between two looks at the clock.
const BATCH: usize = 500;

/// What a collection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Delete.
    Delete,
    /// Only say what would be deleted.
    Report,
}

/// What a collection found that nothing refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Digests of checkpoints.
    pub manifests: Vec<String>,
    /// Files, whole or not.
    pub blobs: usize,
    /// Bytes that were freed, or would be.
    pub bytes: u64,
}

/// What is to go: a file or a checkpoint with all its objects.
struct Condemned {
    objects: Vec<ObjectMeta>,
}

impl Store {
    /// Deletes the manifests that are not in `keep`, and the files that no manifest that is left refers to. Nothing
    /// goes that is younger than `grace`, by the store's clock, nor what a publication relies on that began within it.
    ///
    /// It ends after five minutes at the latest; a next one does the rest.
    ///
    /// # Errors
    /// [`Error::Busy`] while another collection is under way; [`Error::Checksum`] or [`Error::Format`] where a manifest
    /// that is to be kept cannot be read: what it refers to is not known; and what befalls a store.
    pub async fn collect(
        &self,
        keep: &BTreeSet<String>,
        grace: Duration,
        purpose: Purpose,
    ) -> Result<Collected, Error> {
        match purpose {
            Purpose::Report => Ok(self.condemn(keep, grace).await?.0),
            Purpose::Delete => {
                let began = Instant::now();
                let mark = self.begin_collection().await?;
                let swept = self.sweep(keep, grace, began).await;
                self.delete(&mark).await?;
                swept
            }
        }
    }

    async fn sweep(
        &self,
        keep: &BTreeSet<String>,
        grace: Duration,
        began: Instant,
    ) -> Result<Collected, Error> {
        let (collected, condemned) = self.condemn(keep, grace).await?;
        let paths: Vec<Path> =
            condemned.into_iter().flat_map(|it| it.objects).map(|object| object.location).collect();
        for batch in paths.chunks(BATCH) {
            if began.elapsed() > LONGEST {
                tracing::warn!("the collection is not finished, a next one goes on");
                break;
            }
            let locations = stream::iter(batch.to_vec()).map(Ok).boxed();
            let mut deleted = self.objects.delete_stream(locations);
            loop {
                match deleted.try_next().await.map_err(|source| Error::at(&batch[0], source)) {
                    Ok(None) => break,
                    Ok(Some(_)) | Err(Error::Missing(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(collected)
    }

    /// What nothing refers to, in the order in which it is to be deleted: what is missing in the middle of it is
    /// then seen to be missing.
    async fn condemn(
        &self,
        keep: &BTreeSet<String>,
        grace: Duration,
    ) -> Result<(Collected, Vec<Condemned>), Error> {
        let now = self.now().await?;
        let old = |object: &ObjectMeta| age(object, now) >= grace;
        let (mut collected, mut condemned) = (Collected::default(), Vec::new());

        let mut needed = self.announced(old).await?;
        for object in self.list("manifests").await? {
            let Some(digest) = digest_of(&object.location) else { continue };
            if keep.contains(digest) || !old(&object) {
                let manifest = self.manifest(digest).await?;
                needed.extend(manifest.files.into_iter().map(|file| file.sha256));
            } else {
                collected.manifests.push(digest.to_owned());
                collected.bytes += object.size;
                condemned.push(Condemned { objects: vec![object] });
            }
        }
        for (sha256, objects) in self.files().await? {
            if !needed.contains(&sha256) && objects.iter().all(old) {
                collected.blobs += 1;
                collected.bytes += objects.iter().map(|object| object.size).sum::<u64>();
                condemned.push(Condemned { objects });
            }
        }
        let forgotten = self.list("publishing").await?.into_iter().filter(old).collect();
        condemned.push(Condemned { objects: forgotten });
        Ok((collected, condemned))
    }

    /// What publications rely on that are not `old`.
    async fn announced(&self, old: impl Fn(&ObjectMeta) -> bool) -> Result<BTreeSet<String>, Error> {
        let mut needed = BTreeSet::new();
        for object in self.list("publishing").await?.into_iter().filter(|object| !old(object)) {
            let json = match self.record(&object.location).await {
                Ok(json) => json,
                Err(Error::Missing(_)) => continue, // It has ended since.
                Err(error) => return Err(error),
            };
            let marker: Marker = serde_json::from_slice(&json)
                .map_err(|error| Error::format(object.location.as_ref(), error))?;
            needed.extend(marker.files);
        }
        Ok(needed)
    }

    /// All objects of each file, those that make it visible first.
    async fn files(&self) -> Result<BTreeMap<String, Vec<ObjectMeta>>, Error> {
        let mut files: BTreeMap<String, Vec<ObjectMeta>> = BTreeMap::new();
        for object in self.list("blobs").await? {
            let name = object.location.filename().unwrap_or_default();
            let sha256 = name.strip_suffix(".parts").unwrap_or(name);
            if is_digest(sha256) {
                files.entry(sha256.to_owned()).or_default().push(object);
            }
        }
        let below = self.path("parts");
        for object in self.list("parts").await? {
            let part = object.location.prefix_match(&below).and_then(|mut parts| parts.next());
            if let Some(sha256) = part.filter(|part| is_digest(part.as_ref())) {
                files.entry(sha256.as_ref().to_owned()).or_default().push(object);
            }
        }
        Ok(files)
    }

    /// The time by the store's clock, which the ages of its objects are measured by.
    async fn now(&self) -> Result<SystemTime, Error> {
        let path = self.path(&format!("publishing/{}.json", uuid::Uuid::new_v4()));
        self.put(&path, Vec::from(br#"{"files":[],"v":1}"#)).await?;
        let meta = self.objects.head(&path).await.map_err(|source| Error::at(&path, source));
        self.delete(&path).await?;
        Ok(meta?.last_modified.into())
    }

    /// Makes it known that a collection is under way.
    async fn begin_collection(&self) -> Result<Path, Error> {
        let mark = self.path("collecting.json");
        if self.head(&mark).await?.is_some() {
            if is_under_way(self).await? {
                return Err(Error::Busy);
            }
            self.delete(&mark).await?;
        }
        match self.objects.put_opts(&mark, "{}".into(), PutMode::Create.into()).await {
            Ok(_) => Ok(mark),
            Err(object_store::Error::AlreadyExists { .. }) => Err(Error::Busy),
            Err(source) => Err(Error::at(&mark, source)),
        }
    }
}

/// Whether a collection is under way that may not have seen what is put now.
pub(crate) async fn is_under_way(store: &Store) -> Result<bool, Error> {
    let mark = store.path("collecting.json");
    match store.head(&mark).await? {
        None => Ok(false),
        Some(meta) => Ok(age(&meta, store.now().await?) < DEAD),
    }
}

fn age(object: &ObjectMeta, now: SystemTime) -> Duration {
    now.duration_since(object.last_modified.into()).unwrap_or_default()
}
