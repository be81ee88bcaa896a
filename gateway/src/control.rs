//! What the calls that change models work with: the cluster's records, and the store.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Etcd, ListedVersion, Name, View};
use store::Store;
use tokio::sync::{Semaphore, watch};

use crate::error::{ManageError, Unmet};
use crate::wire::swaps::Prefix;

/// Checkpoints that are taken at a time: each holds a part of a file in memory.
const PUBLICATIONS: usize = 4;

/// What the store is to take, and to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Bytes that a checkpoint may have.
    pub max_checkpoint_bytes: u64,
    /// What is younger is never collected: a publication may rely on it.
    pub grace: Duration,
}

impl Default for Collection {
    fn default() -> Self {
        Self { max_checkpoint_bytes: 1 << 40, grace: Duration::from_secs(3600) }
    }
}

/// The cluster's records, and the store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Control {
    /// Where records are.
    pub etcd: Etcd,
    /// Where checkpoints are; none where the gateway was given none.
    pub store: Option<Store>,
    /// The cluster as it was last seen.
    pub views: watch::Receiver<Arc<View>>,
    /// What the store is to take, and to keep.
    pub collection: Collection,
    /// Room for publications.
    pub publications: Arc<Semaphore>,
}

impl Control {
    /// Works with `etcd` and `store`.
    #[must_use]
    pub fn new(
        (etcd, store): (Etcd, Option<Store>),
        views: watch::Receiver<Arc<View>>,
        collection: Collection,
    ) -> Self {
        let publications = Arc::new(Semaphore::new(PUBLICATIONS));
        Self { etcd, store, views, collection, publications }
    }

    /// The cluster as it was last seen.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.views.borrow().clone()
    }

    /// The store.
    ///
    /// # Errors
    /// Where the gateway was given none.
    pub fn store(&self) -> Result<&Store, ManageError> {
        let sentence =
            "this gateway has no store: start it with --store (BEIGE_STORE), such as file:///srv/beige";
        let none = || Unmet { what: "STORE", subject: "store".to_owned(), sentence: sentence.to_owned() };
        Ok(self.store.as_ref().ok_or_else(none)?)
    }

    /// The version of `model` that `digest` names.
    ///
    /// # Errors
    /// Where none does, or several.
    pub async fn version(&self, model: &Name, digest: &Prefix) -> Result<ListedVersion, ManageError> {
        let versions = match digest.whole() {
            Some(whole) => {
                let found = self.etcd.version(model.as_str(), whole.as_str()).await?;
                let listed =
                    |version| ListedVersion { model: model.to_string(), digest: whole.to_string(), version };
                found.map(listed).into_iter().collect()
            }
            None => self.etcd.list_versions(Some(model.as_str())).await?,
        };
        choose(model, digest, versions)
    }
}

fn choose(model: &Name, digest: &Prefix, versions: Vec<ListedVersion>) -> Result<ListedVersion, ManageError> {
    let mut found = versions.into_iter().filter(|version| version.digest.starts_with(digest.as_str()));
    match (found.next(), found.next()) {
        (Some(version), None) => Ok(version),
        (Some(_), Some(_)) => Err(digest.ambiguous(2 + found.count()).into()),
        (None, _) => Err(unknown_version(model.as_str(), digest.as_str())),
    }
}

/// There is no such version.
pub(crate) fn unknown_version(model: &str, digest: &str) -> ManageError {
    let sentence = format!("model {model} has no version {digest}: publish it first");
    ManageError::NotFound { kind: "version", name: digest.to_owned(), sentence }
}
