//! What a recorded run arrived at: losses, gradient norms, rates, how far each tensor went.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::TrainError;

/// A forward pass of a rank.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct MicroStep {
    /// That rank's loss.
    pub(super) loss: f64,
    /// Present where an optimiser step ends.
    pub(super) optimizer_step: Option<u64>,
    /// Of all gradients together, before they are cut down.
    pub(super) grad_norm: Option<f64>,
    /// The rate of the optimiser step.
    pub(super) lr: Option<f64>,
}

#[derive(Deserialize)]
struct LossFile {
    steps: Vec<MicroStep>,
}

/// Where a tensor ended.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct FinalTensor {
    /// L2 norm of final minus initial.
    pub(super) delta_l2: f64,
}

/// `losses_rank{rank}.json`.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Format`].
pub(super) fn losses(dir: &Path, rank: usize) -> Result<Vec<MicroStep>, TrainError> {
    let read: LossFile = super::read_json(&dir.join(format!("losses_rank{rank}.json")))?;
    Ok(read.steps)
}

/// `final_weights.json`, by the reference's names.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Format`].
pub(super) fn final_weights(dir: &Path) -> Result<BTreeMap<String, FinalTensor>, TrainError> {
    super::read_json(&dir.join("final_weights.json"))
}
