//! Checkpoints opened, and made ready to be put on the device: what happens apart from it.

use std::panic::resume_unwind;
use std::thread;

use cluster::{Golden, Name};
use model::{Checkpoint, Device, LoadError, Model, Precision, Rows, RunError, Sequence, Tokenizer};

use crate::bisect::{Encode, EncodeError};
use crate::device::Resident;
use crate::golden;
use crate::prepare;
use crate::spec::ModelSpec;
use crate::warm;

/// A checkpoint that has been opened, under a name.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The name it is served under.
    pub name: Name,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
}

/// Opens all checkpoints. Blocks: every byte is read and hashed.
///
/// # Errors
/// [`StartError::Load`] for the first directory that does not hold a checkpoint.
pub fn open(specs: &[ModelSpec]) -> Result<Vec<Opened>, StartError> {
    let open = |spec: &ModelSpec| {
        let name = spec.name.clone();
        match Checkpoint::open(&spec.dir, &spec.overrides) {
            Ok(checkpoint) => Ok(Opened { name, checkpoint }),
            Err(source) => Err(StartError::Load { name, source }),
        }
    };
    specs.iter().map(open).collect()
}

/// Where and how models run.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// The kind of number asked for.
    pub precision: Precision,
}

/// Why a worker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Mend the checkpoint's files.
    #[error("model {name}: {source}")]
    Load {
        /// The name it was to be served under.
        name: Name,
        /// What is wrong.
        source: LoadError,
    },
    /// Mend the checkpoint, or give it what it lacks.
    #[error("model {name}: {failure}")]
    Prepare {
        /// The name it was to be served under.
        name: String,
        /// Why it is not ready.
        failure: prepare::Failure,
    },
}

/// A checkpoint that was laid out for the device.
#[derive(Debug)]
pub struct Built {
    /// What the device is to keep.
    pub resident: Resident<Model>,
    /// What makes its tokens.
    pub tokenizer: Tokenizer,
    /// The lowest cosine of its golden vectors and those recorded, where there are any.
    pub golden_cosine: Option<f32>,
}

/// Why a checkpoint was not laid out.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It does not run.
    #[error(transparent)]
    Run(#[from] EncodeError),
    /// It runs, and makes of its golden inputs something else than was recorded.
    #[error("golden inputs: {0}")]
    Golden(String),
}

/// Lays out a checkpoint, with its tokenizer, in the first kind of number in which it meets its golden inputs; without
/// any, as [`Model::load`] does. Blocks.
///
/// # Errors
/// [`BuildError`].
pub fn build(
    checkpoint: &Checkpoint,
    Place { device, precision }: Place,
    golden: Option<&Golden>,
) -> Result<Built, BuildError> {
    let (tokenizer, encoder, golden_cosine) = if let Some(recorded) = golden {
        let (tokenizer, card) = (checkpoint.tokenizer()?, checkpoint.card());
        let judge = |model: &Model| {
            let found = golden::answers(model, &tokenizer, card, &recorded.texts)?;
            golden::check(recorded, card, &found).map_err(|unfaithful| unfaithful.to_string())
        };
        let judged = Model::load_judged(checkpoint, (device, precision), judge)?;
        let (encoder, cosine) = judged.map_err(BuildError::Golden)?;
        (tokenizer, encoder, cosine)
    } else {
        let (tokenizer, encoder) =
            at_once(|| checkpoint.tokenizer(), || Model::load(checkpoint, device, precision));
        (tokenizer?, encoder?, None)
    };
    let probe = warm::probe(&tokenizer).map_err(|error| EncodeError::Failed(error.to_string()))?;
    Ok(Built { resident: Resident { encoder, probe }, tokenizer, golden_cosine })
}

/// What both answer; `aside` is done by a thread of its own, where there is one to be had.
fn at_once<A: Send, B>(aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let begun = thread::Builder::new().name("load-tokenizer".to_owned()).spawn_scoped(scope, &aside);
        let done = here();
        let beside = match begun {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => aside(),
        };
        (beside, done)
    })
}

impl Encode for Model {
    fn encode(&mut self, batch: &[&Sequence]) -> Result<Rows, EncodeError> {
        self.run(batch).map_err(|error| match error {
            RunError::OutOfMemory(reason) => EncodeError::OutOfMemory(reason),
            RunError::Failed(reason) => EncodeError::Failed(reason),
        })
    }
}
