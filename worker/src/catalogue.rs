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

/// Which checkpoint, of which model: the same bytes may be there under several names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The model's name.
    pub model: String,
    /// SHA-256 of its manifest, lower-case hexadecimal.
    pub digest: String,
}

impl Id {
    /// The checkpoint `digest` of `model`.
    pub fn new(model: impl Into<String>, digest: impl Into<String>) -> Self {
        Self { model: model.into(), digest: digest.into() }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.model, self.digest)
    }
}

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
    /// Which one it is.
    #[must_use]
    pub fn id(&self) -> Id {
        Id::new(&*self.name, &*self.digest)
    }

    /// What gateways are told of it.
    #[must_use]
    pub fn ready(&self) -> ReadyCheckpoint {
        let checkpoint = v1::Checkpoint {
            dtypes: vec![self.dtype.clone()],
            ..describe(&self.card, &self.digest, &self.index_space)
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

/// What a checkpoint is, on the wire; loaded nowhere yet.
#[must_use]
pub fn describe(card: &Card, digest: &str, index_space: &str) -> v1::Checkpoint {
    // Windows and widths of models fit; the wire has 32 bits for them.
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let kind = match card.kind {
        Kind::Embedder => v1::ModelKind::Embedder,
        Kind::CrossEncoder => v1::ModelKind::CrossEncoder,
    };
    v1::Checkpoint {
        digest: digest.to_owned(),
        index_space: index_space.to_owned(),
        kind: kind.into(),
        dimensions: number(card.dimensions),
        max_tokens: number(card.max_tokens),
        pooling: card.pooling.map(|pooling| pooling.to_string()).unwrap_or_default(),
        normalize: card.normalize,
        architecture: card.architecture.clone(),
        dtypes: Vec::new(),
        ready_workers: 0,
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
        all.retain(|other| other.id() != served.id());
        all.push(served);
    }

    /// Lets no new call ask for this one. Those that have it go on; [`unused`] tells when there are none.
    pub fn remove(&self, id: &Id) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|served| served.id() != *id);
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
