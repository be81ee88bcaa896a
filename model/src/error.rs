//! What goes wrong with checkpoints and devices, in sentences.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use tch::TchError;
use thiserror::Error;
use torch_ext::TorchError;

/// Why a checkpoint cannot be served. Each says which file, and which tensor.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file is missing or cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file is damaged or not of the format its name says.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor that the architecture needs is in none of the weight files.
    #[error("{}: tensor {tensor} is missing", path.display())]
    MissingTensor {
        /// The weight file, or the directory of the shards.
        path: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor is there, in another shape than the configuration says.
    #[error("{}: tensor {tensor} has shape {found:?}, the configuration wants {wanted:?}", path.display())]
    Shape {
        /// The weight file.
        path: PathBuf,
        /// Its name.
        tensor: String,
        /// By the configuration.
        wanted: Vec<i64>,
        /// In the file.
        found: Vec<i64>,
    },
    /// Nothing is wrong, but we do not do it.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What, and what to do instead.
        what: String,
    },
    /// The device cannot run it.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// libtorch failed while the weights were laid out.
    #[error("weights could not be laid out: {0}")]
    Torch(String),
}

impl LoadError {
    pub(crate) fn format(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Format { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into() }
    }
}

impl From<TchError> for LoadError {
    fn from(error: TchError) -> Self {
        Self::Torch(first_line(&error))
    }
}

impl From<TorchError> for LoadError {
    fn from(error: TorchError) -> Self {
        Self::Torch(error.to_string())
    }
}

/// Why a device cannot be used as asked.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DeviceError {
    /// Repair the name.
    #[error("device is auto, cpu, cuda or cuda:N, not {0:?}")]
    Unknown(String),
    /// Run without it, or mend its driver.
    #[error("{device} cannot be used: {reason}")]
    Unusable {
        /// Its name.
        device: String,
        /// Why not.
        reason: String,
    },
    /// Ask for another kind of number.
    #[error("{0}")]
    Precision(String),
}

/// Why a batch has no result.
#[derive(Debug, Error)]
pub enum RunError {
    /// Smaller batches may do.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// This batch cannot be run.
    #[error("{0}")]
    Failed(String),
}

impl From<TchError> for RunError {
    fn from(error: TchError) -> Self {
        let text = first_line(&error);
        // tch hands on libtorch's text alone; these are the words of its two allocators.
        if text.contains("out of memory") || text.contains("can't allocate memory") {
            Self::OutOfMemory(text)
        } else {
            Self::Failed(text)
        }
    }
}

impl From<TorchError> for RunError {
    fn from(error: TorchError) -> Self {
        match error {
            TorchError::OutOfMemory(text) => Self::OutOfMemory(text),
            TorchError::Failed(text) => TchError::Torch(text).into(),
        }
    }
}

/// libtorch's texts end in a C++ backtrace.
fn first_line(error: &TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
