//! The checkpoints that this worker runs.

use std::fmt;
use std::sync::Arc;

use model::{Card, Kind};
use proto::v1;
use proto::worker::v1::ReadyCheckpoint;

use crate::tokenise::Tokenise;

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

/// All checkpoints of a worker.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(Vec<Arc<Served>>);

impl Catalogue {
    /// A catalogue of these. A checkpoint may be there under several names.
    #[must_use]
    pub fn new(served: impl IntoIterator<Item = Served>) -> Self {
        Self(served.into_iter().map(Arc::new).collect())
    }

    /// The checkpoint with this digest, under the first of its names.
    #[must_use]
    pub fn find(&self, digest: &str) -> Option<&Arc<Served>> {
        self.0.iter().find(|served| &*served.digest == digest)
    }

    /// All of them, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.0.iter()
    }
}
