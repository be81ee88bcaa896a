//! The checkpoints that this worker runs.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use model::{Card, Kind};
use proto::v1;
use proto::worker::v1::ReadyCheckpoint;
use tokio::time;

use crate::tokenise::Tokenise;

/// Between two looks at whether calls are left.
const POLL: Duration = Duration::from_millis(10);

/// A checkpoint that is loaded and warm.
#[derive(Clone)]
pub struct Served {
    /// The name it was loaded under.
    pub name: Arc<str>,
    /// SHA-256 of its manifest, lower-case hexadecimal.
    pub digest: Arc<str>,
    /// The index space of its vectors.
    pub index_space: String,
    /// What it is.
    pub card: Card,
    /// Arithmetic it runs in here, such as `f32`.
    pub dtype: String,
    /// Its tokenizer.
    pub tokenizer: Arc<dyn Tokenise>,
}

impl Served {
    /// Whether it is this one.
    #[must_use]
    pub fn is(&self, model: &str, digest: &str) -> bool {
        (&*self.name, &*self.digest) == (model, digest)
    }

    /// What gateways are told of it.
    #[must_use]
    pub fn ready(&self) -> ReadyCheckpoint {
        // Windows and widths of models fit; the wire has 32 bits for them.
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let kind = match self.card.kind {
            Kind::Embedder => v1::ModelKind::Embedder,
            Kind::CrossEncoder => v1::ModelKind::CrossEncoder,
        };
        let checkpoint = v1::Checkpoint {
            digest: self.digest.to_string(),
            index_space: self.index_space.clone(),
            kind: kind.into(),
            dimensions: number(self.card.dimensions),
            max_tokens: number(self.card.max_tokens),
            pooling: self.card.pooling.map(|pooling| pooling.to_string()).unwrap_or_default(),
            normalize: self.card.normalize,
            architecture: self.card.architecture.clone(),
            dtypes: vec![self.dtype.clone()],
            ready_workers: 0,
        };
        ReadyCheckpoint { model: self.name.to_string(), checkpoint: Some(checkpoint) }
    }

    /// What an answer with vectors of `dimensions`, or without any, says of the checkpoint.
    #[must_use]
    pub fn provenance(&self, dimensions: u32) -> v1::Provenance {
        v1::Provenance {
            // The gateway knows which alias was asked for, and its epoch.
            model: String::new(),
            digest: self.digest.to_string(),
            epoch: 0,
            index_space: self.index_space.clone(),
            dimensions,
        }
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served")
            .field("name", &self.name)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// The checkpoints that calls may ask for, now. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(Arc<RwLock<Vec<Arc<Served>>>>);

impl Catalogue {
    /// The checkpoint with this digest; under the name `model` where it is there under several.
    #[must_use]
    pub fn find(&self, model: &str, digest: &str) -> Option<Arc<Served>> {
        let all = self.read();
        let mut alike = all.iter().filter(|served| &*served.digest == digest);
        let first = alike.next()?;
        let named = [first].into_iter().chain(alike).find(|served| &*served.name == model);
        Some(named.unwrap_or(first).clone())
    }

    /// Lets calls ask for `served`, from now on.
    pub fn add(&self, served: Arc<Served>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| !other.is(&served.name, &served.digest));
        all.push(served);
    }

    /// Lets no new call ask for this one. Those that have it go on; [`unused`] tells when there are none.
    pub fn remove(&self, model: &str, digest: &str) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|served| !served.is(model, digest));
    }

    /// How many there are, by name and digest.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<Served>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until nobody but the caller holds `served`: every call that asked for it has ended.
pub async fn unused(served: &Arc<Served>) {
    // A call holds a reference as long as it lives, and does not know what it is the last of: hence the polling.
    while Arc::strong_count(served) > 1 {
        time::sleep(POLL).await;
    }
}
