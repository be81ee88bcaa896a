//! Recorded runs of the reference, replayed number by number.
//!
//! A trace folder holds the token batches of a run of `FlagEmbedding`, its losses and gradient norms, and how far each
//! weight went. [`replay`] starts from the same weights, takes the same batches through our model, losses and
//! optimiser, and reports the worst differences.

mod batches;
mod gradients;
mod hyperparameters;
mod recorded;
mod replay;
mod report;
mod samples;
mod source;

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::TrainError;

pub use replay::{Replay, replay};
pub use report::{Report, Row};
pub use source::Places;

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = std::fs::read(path).map_err(|source| TrainError::io(path, source))?;
    serde_json::from_slice(&text).map_err(|error| TrainError::format(path, error))
}
