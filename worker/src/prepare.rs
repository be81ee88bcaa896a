//! Checkpoints that come and go while others are served.
//!
//! A worker follows the cluster and holds what is [desired](cluster::desired): the [`steward`] owns what is loaded and
//! takes the steps that [`plan`] makes of wishes and of what there is. To make a checkpoint ready is to bring its files
//! into the cache, every byte verified; to see whether it fits; to lay it out and hold it against its golden inputs, on
//! a thread that gives way to serving; and to put it on the device, with a question to warm it ([`Shop`]). Only then
//! it is offered. Letting go is the same backwards: it is offered no more, is taken from whoever might still ask, and
//! leaves the device when the last call on it has ended.
//!
//! What goes wrong is said, with a reason, where the cluster can see it, and tried again when that may help
//! ([`setbacks`]). Nothing here decides which checkpoint answers.

pub mod failure;
pub mod plan;
mod readiness;
mod report;
pub mod setbacks;
pub mod steward;

use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Etcd, Golden, Version};
use manifest::{Manifest, ManifestFile};
use model::{Checkpoint, Model, Overrides};
use proto::v1::Stage;
use store::{Cache, Held, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::{runtime, time};
use tokio_util::sync::CancellationToken;

use crate::apart::{Effort, apart};
use crate::catalogue::{Catalogue, Id, Served};
use crate::health::Offer;
use crate::memory::Memory;
use crate::metrics::Metrics;
use crate::models::{self, Built, Place};
use crate::shelf::{Shelf, Warmth};
use crate::warm::Patience;
pub use failure::Failure;

/// How long a worker waits for the cluster where it can do without.
pub const LOOK: Duration = Duration::from_secs(1);

/// How far a preparation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of it that are done.
    pub done: u64,
    /// Bytes of it in all.
    pub total: u64,
}

/// Told of each step, from whichever thread.
pub type Told = Arc<dyn Fn(Step) + Send + Sync>;

/// Where checkpoints come from, beside those that are brought along.
#[derive(Clone, Debug)]
pub struct Source {
    /// All of them.
    pub store: Store,
    /// Those that were needed here.
    pub cache: Cache,
}

/// What it takes to make checkpoints ready.
#[derive(Debug)]
pub struct Shop {
    /// Where versions are known; `None` for a worker that is in no cluster.
    pub etcd: Option<Etcd>,
    /// Where their files are; `None` for a worker that serves what it brought along.
    pub source: Option<Source>,
    /// Where they run.
    pub place: Place,
    /// What they may take.
    pub memory: Memory,
    /// What serving may take of the machine, and preparing while nothing is served.
    pub effort: Effort,
    /// The device.
    pub shelf: Shelf<Model>,
    /// What calls may ask for.
    pub catalogue: Catalogue,
    /// What is counted.
    pub metrics: Metrics,
    /// One checkpoint is brought here and laid out at a time: two would take twice the memory, and twice the cores.
    pub bench: Arc<Semaphore>,
}

/// A checkpoint that is on the device and warm.
#[derive(Debug)]
pub struct Prepared {
    /// What calls may ask for.
    pub served: Arc<Served>,
    /// How long it took.
    pub took: Duration,
    /// The lowest cosine of its golden vectors and those recorded, where there are any.
    pub golden_cosine: Option<f32>,
    /// What the cluster knew of it, if it knew it.
    pub version: Option<Arc<Version>>,
    /// Keeps its files in the cache, together with those of its twins.
    pub cached: Option<Arc<Held>>,
}

/// What one checkpoint has in common under all its names, once it is ready under one.
#[derive(Clone, Debug)]
pub struct Twin {
    served: Served,
    golden_cosine: Option<f32>,
    cached: Option<Arc<Held>>,
}

/// Files to be loaded.
#[derive(Debug)]
pub(crate) enum Files {
    /// They lie here, and were hashed.
    Local(Box<Checkpoint>),
    /// They are in the store.
    Stored { source: Source, files: Vec<ManifestFile>, overrides: Overrides },
}

/// What is done apart from serving.
pub(crate) struct Work {
    pub(crate) files: Files,
    pub(crate) golden: Option<Golden>,
    pub(crate) place: Place,
    pub(crate) memory: Memory,
    pub(crate) told: Told,
    pub(crate) cancel: CancellationToken,
}

/// A checkpoint that was laid out, and what it was made of.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) built: Built,
    pub(crate) cached: Option<Held>,
}

impl Shop {
    /// Makes a checkpoint ready: one that was brought along, or one that the cluster knows.
    ///
    /// # Errors
    /// [`Failure`]; then nothing of it is on the device.
    pub async fn prepare(
        &self,
        id: &Id,
        brought: Option<Checkpoint>,
        (told, cancel): (Told, CancellationToken),
    ) -> Result<Prepared, Failure> {
        let start = Instant::now();
        let version = match brought {
            // It is ready without the cluster too.
            Some(_) => time::timeout(LOOK, self.version(id)).await.ok().and_then(Result::ok).flatten(),
            None => self.version(id).await?,
        };
        let golden = version.as_ref().and_then(|version| version.golden.clone());
        let known = version.clone().map(Arc::new);
        let files = match brought {
            Some(checkpoint) => Files::Local(Box::new(checkpoint)),
            None => self.stored(id, version)?,
        };
        let effort = self.effort();
        let (place, memory) = (self.place, self.memory);
        let work = Work { files, golden, place, memory, told: told.clone(), cancel };
        let (digest, bench) = (id.digest.clone(), self.bench().await);
        let work = move || {
            // Until this is done, whoever still waits for it.
            let _until_done = bench;
            work.run(Some(&digest))
        };
        let made = apart("prepare", effort, work).await??;
        told(Step { stage: Stage::Warming, done: 0, total: 0 });
        let Made { checkpoint, built, cached } = made;
        let Built { resident, tokenizer, golden_cosine } = built;
        let (digest, dtype) = (Arc::<str>::from(checkpoint.digest()), resident.encoder.dtype());
        let warmth =
            self.shelf.put(&digest, resident, checkpoint.card().max_tokens, patience(effort)).await?;
        let served = Served {
            name: id.model.as_str().into(),
            index_space: known
                .as_ref()
                .map_or(checkpoint.index_space(), |known| &known.index_space)
                .to_owned(),
            digest,
            card: checkpoint.card().clone(),
            dtype: dtype.to_owned(),
            tokenizer: Arc::new(tokenizer),
        };
        let (served, took, cached) = (Arc::new(served), start.elapsed(), cached.map(Arc::new));
        let prepared = Prepared { served, took, golden_cosine, version: known, cached };
        prepared.log(warmth);
        Ok(prepared)
    }

    /// Makes a checkpoint ready that is on the device already, under another name.
    ///
    /// # Errors
    /// [`Failure::Later`].
    pub async fn share(&self, id: &Id, twin: Twin) -> Result<Prepared, Failure> {
        let start = Instant::now();
        let version = self.version(id).await?.map(Arc::new);
        let Twin { served, golden_cosine, cached } = twin;
        let index_space = version.as_ref().map_or(served.index_space, |version| version.index_space.clone());
        let served = Arc::new(Served { name: id.model.as_str().into(), index_space, ..served });
        Ok(Prepared { served, took: start.elapsed(), golden_cosine, version, cached })
    }

    /// Takes a checkpoint off the device and out of memory. No call for it is left.
    pub async fn unload(&self, digest: &Arc<str>) {
        let Some(model) = self.shelf.take(digest).await else { return };
        // Giving back so much memory takes a while.
        if let Err(error) = apart("unload", Effort::Spare, move || model.unload()).await {
            tracing::error!(%error, "a checkpoint could not be unloaded");
        }
    }

    /// What is known of a checkpoint, if it was published.
    async fn version(&self, id: &Id) -> Result<Option<Version>, Failure> {
        let Some(etcd) = &self.etcd else { return Ok(None) };
        Ok(etcd.version(&id.model, &id.digest).await?)
    }

    fn stored(&self, id: &Id, version: Option<Version>) -> Result<Files, Failure> {
        let Some(version) = version else {
            return Err(Failure::Absent(format!("{id} was not published")));
        };
        match &self.source {
            Some(source) if version.stored => {
                let overrides = overrides(&version.manifest)?;
                Ok(Files::Stored { source: source.clone(), files: version.manifest.files, overrides })
            }
            Some(_) => {
                Err(Failure::Absent(format!("{id} is only where it was brought along, not in the store")))
            }
            None => Err(Failure::Absent("this worker has no store".to_owned())),
        }
    }

    /// The right to lay out a checkpoint.
    pub(crate) async fn bench(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.bench.clone().acquire_owned().await.ok()
    }

    /// As much as there is while nothing is served.
    pub(crate) fn effort(&self) -> Effort {
        if self.catalogue.is_empty() { self.effort } else { Effort::Spare }
    }
}

fn patience(effort: Effort) -> Patience {
    match effort {
        Effort::All(_) => Patience::Ample,
        Effort::Spare => Patience::Short,
    }
}

/// What the manifest says in place of the files, or as they do.
fn overrides(manifest: &Manifest) -> Result<Overrides, Failure> {
    let pooling = manifest.pooling.as_deref().map(str::parse).transpose();
    let pooling = pooling.map_err(|reason: String| Failure::refused(cluster::NackReason::Format, reason))?;
    Ok(Overrides { pooling, max_tokens: Some(manifest.max_tokens) })
}

impl Work {
    /// Has the files here, verified, opens them, sees whether they fit, and lays them out. Blocks. Where `digest` is
    /// given they must make up that checkpoint.
    pub(crate) fn run(self, digest: Option<&str>) -> Result<Made, Failure> {
        let Self { files, golden, place, memory, told, cancel } = self;
        let (checkpoint, cached) = match files {
            Files::Local(checkpoint) => (*checkpoint, None),
            Files::Stored { source, files, overrides } => {
                let cached = fetch(&source, &files, (&told, &cancel))?;
                let opened = Checkpoint::open_verified(cached.path(), &overrides, &files)?;
                (opened, Some(cached))
            }
        };
        if let Some(digest) = digest
            && digest != checkpoint.digest()
        {
            let detail = format!("its files make up the checkpoint {}", checkpoint.digest());
            return Err(Failure::refused(cluster::NackReason::Format, detail));
        }
        memory.fits(checkpoint.footprint(place.device, place.precision)?)?;
        if cancel.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        told(Step { stage: Stage::Loading, done: 0, total: 0 });
        let built = models::build(&checkpoint, place, golden.as_ref())?;
        if cancel.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        Ok(Made { checkpoint, built, cached })
    }
}

/// Has the files in the cache. All of it happens on this thread, and on others that it starts and that are as nice.
fn fetch(
    source: &Source,
    files: &[ManifestFile],
    (told, cancel): (&Told, &CancellationToken),
) -> Result<Held, Failure> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("prepare-files")
        .build()
        .map_err(|error| Failure::Later(format!("no runtime: {error}")))?;
    let progress = |progress: store::Progress| {
        let stage = match progress.stage {
            store::Stage::Downloading => Stage::Downloading,
            store::Stage::Verifying => Stage::Verifying,
        };
        told(Step { stage, done: progress.done, total: progress.total });
    };
    let files = source.cache.checkpoint(&source.store, files, &progress);
    match runtime.block_on(cancel.run_until_cancelled(files)) {
        Some(fetched) => Ok(fetched?),
        None => Err(Failure::Cancelled),
    }
}

impl Prepared {
    /// For another name of the same checkpoint.
    #[must_use]
    pub fn twin(&self) -> Twin {
        let Self { served, golden_cosine, cached, took: _, version: _ } = self;
        Twin { served: (**served).clone(), golden_cosine: *golden_cosine, cached: cached.clone() }
    }

    /// What gateways are told of it.
    #[must_use]
    pub fn offer(&self) -> Offer {
        let Self { served, took, golden_cosine, version: _, cached: _ } = self;
        Offer { checkpoint: served.ready(), took: *took, golden_cosine: *golden_cosine }
    }

    fn log(&self, warmth: Warmth) {
        let card = &self.served.card;
        tracing::info!(
            model = %self.served.name,
            digest = %self.served.digest,
            architecture = card.architecture,
            dimensions = card.dimensions,
            window = card.max_tokens,
            dtype = self.served.dtype,
            golden_cosine = self.golden_cosine,
            batch_tokens = warmth.batch_tokens,
            tokens_per_second = warmth.tokens_per_second.round(),
            took = ?self.took,
            "model is warm"
        );
    }
}
