//! Checkpoints opened, and made ready to be put on the device: what happens apart from it.

use std::panic::resume_unwind;
use std::thread;
use std::time::{Duration, Instant};

use cluster::Name;
use model::{Checkpoint, Device, LoadError, Model, Precision, Rows, RunError, Sequence, Tokenizer};

use crate::bisect::{Encode, EncodeError};
use crate::device::Resident;
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
    /// Mend the device, or use another.
    #[error("model {name} does not run: {source}")]
    Run {
        /// Its name.
        name: Name,
        /// What the first batch says.
        source: EncodeError,
    },
}

/// A checkpoint that was laid out for the device.
#[derive(Debug)]
pub struct Built {
    /// What the device is to keep.
    pub resident: Resident<Model>,
    /// What makes its tokens.
    pub tokenizer: Tokenizer,
    /// How long it took.
    pub took: Duration,
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
}

/// Lays out a checkpoint, with its tokenizer. Blocks.
///
/// # Errors
/// [`BuildError`].
pub fn build(checkpoint: &Checkpoint, place: Place) -> Result<Built, BuildError> {
    let start = Instant::now();
    let (tokenizer, encoder) = thread::scope(|scope| {
        let tokenizer = thread::Builder::new()
            .name("load-tokenizer".to_owned())
            .spawn_scoped(scope, || checkpoint.tokenizer());
        let encoder = Model::load(checkpoint, place.device, place.precision);
        let tokenizer = match tokenizer {
            Ok(reading) => reading.join().unwrap_or_else(|panic| resume_unwind(panic)),
            // Without another thread it takes a little longer.
            Err(_) => checkpoint.tokenizer(),
        };
        (tokenizer, encoder)
    });
    let (tokenizer, encoder) = (tokenizer?, encoder?);
    let probe = warm::probe(&tokenizer).map_err(|error| EncodeError::Failed(error.to_string()))?;
    Ok(Built { resident: Resident { encoder, probe }, tokenizer, took: start.elapsed() })
}

impl Encode for Model {
    fn encode(&mut self, batch: &[&Sequence]) -> Result<Rows, EncodeError> {
        self.run(batch).map_err(|error| match error {
            RunError::OutOfMemory(reason) => EncodeError::OutOfMemory(reason),
            RunError::Failed(reason) => EncodeError::Failed(reason),
        })
    }
}
