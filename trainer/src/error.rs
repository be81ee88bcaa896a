//! What goes wrong in training, in sentences.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use model::{LoadError, RunError};
use tch::TchError;
use thiserror::Error;
use torch_ext::TorchError;

use crate::service::TRY_AGAIN;

/// Why a job cannot go on, by what its owner can do.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The file is missing, or cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Mend the file.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where there are lines.
        reason: String,
    },
    /// Ask for something else: nothing is wrong, but we do not do it.
    #[error("{0}")]
    Unsupported(String),
    /// Take another model, or mend this one.
    #[error(transparent)]
    Model(#[from] LoadError),
    /// Take a lower learning rate, a longer warm-up or a range of numbers that is wider.
    #[error("step {step}: {what} is not finite any more; {advice}")]
    Diverged {
        /// The optimiser step, from 1.
        step: u64,
        /// What is no number, or an infinite one.
        what: &'static str,
        /// What helps.
        advice: &'static str,
    },
    /// Take smaller batches, or more memory.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// libtorch failed.
    #[error("{0}")]
    Torch(String),
}

impl TrainError {
    /// The exit code of a process that ends with it, as `sysexits.h` has them: 65 for data, 74 for files, 71 for memory,
    /// and 75 for what another try may do better, such as ranks that are gone.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Format { .. } | Self::Unsupported(_) | Self::Model(_) | Self::Diverged { .. } => 65,
            Self::Io { .. } => 74,
            Self::OutOfMemory(_) => 71,
            Self::Torch(_) => TRY_AGAIN,
        }
    }

    /// The same of files that go by the names in `names`.
    #[must_use]
    pub fn named(self, names: &BTreeMap<PathBuf, String>) -> Self {
        let rename = |path: PathBuf| names.get(&path).map_or(path.clone(), PathBuf::from);
        match self {
            Self::Io { path, source } => Self::Io { path: rename(path), source },
            Self::Format { path, reason } => Self::Format { path: rename(path), reason },
            other @ (Self::Unsupported(_)
            | Self::Model(_)
            | Self::Diverged { .. }
            | Self::OutOfMemory(_)
            | Self::Torch(_)) => other,
        }
    }

    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn format(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Format { path: path.to_owned(), reason: reason.to_string() }
    }
}

impl From<RunError> for TrainError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::OutOfMemory(text) => Self::OutOfMemory(text),
            RunError::Failed(text) => Self::Torch(text),
        }
    }
}

impl From<TchError> for TrainError {
    fn from(error: TchError) -> Self {
        RunError::from(error).into()
    }
}

impl From<TorchError> for TrainError {
    fn from(error: TorchError) -> Self {
        RunError::from(error).into()
    }
}
