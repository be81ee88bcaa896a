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

impl MicroStep {
    /// Whether the record says that an optimiser step ends with it.
    fn ends(&self) -> bool {
        self.optimizer_step.is_some() || self.grad_norm.is_some() || self.lr.is_some()
    }
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

/// `losses_rank{rank}.json`. Where it does not say where an optimiser step ends, one ends after each `accumulated`.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Format`].
pub(super) fn losses(dir: &Path, rank: usize, accumulated: usize) -> Result<Vec<MicroStep>, TrainError> {
    let read: LossFile = super::read_json(&dir.join(format!("losses_rank{rank}.json")))?;
    Ok(numbered(read.steps, accumulated))
}

/// Micro steps with the numbers of the optimiser steps that end with them.
fn numbered(mut steps: Vec<MicroStep>, accumulated: usize) -> Vec<MicroStep> {
    let said = steps.iter().any(MicroStep::ends);
    let mut next = 0;
    for (step, number) in steps.iter_mut().zip(1..) {
        if if said { step.ends() } else { number % accumulated.max(1) == 0 } {
            step.optimizer_step = Some(step.optimizer_step.unwrap_or(next));
            next += 1;
        }
    }
    steps
}

/// `final_weights.json`, by the reference's names; `None` where it is not there.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Format`].
pub(super) fn final_weights(dir: &Path) -> Result<Option<BTreeMap<String, FinalTensor>>, TrainError> {
    let path = dir.join("final_weights.json");
    if path.exists() { super::read_json(&path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(ends: &[(Option<u64>, Option<f64>)]) -> Vec<MicroStep> {
        let step =
            |&(optimizer_step, grad_norm)| MicroStep { loss: 1.0, optimizer_step, grad_norm, lr: None };
        ends.iter().map(step).collect()
    }

    #[test]
    fn steps_are_numbered_where_the_record_does_not() {
        let numbers = |ends: &[_], accumulated| -> Vec<Option<u64>> {
            numbered(steps(ends), accumulated).iter().map(|step| step.optimizer_step).collect()
        };
        let (none, norm) = ((None, None), (None, Some(2.0)));
        assert_eq!(numbers(&[none, (Some(0), None), (Some(1), None)], 9), [None, Some(0), Some(1)]);
        assert_eq!(numbers(&[none, norm, norm, none], 9), [None, Some(0), Some(1), None]);
        assert_eq!(numbers(&[none, none, none], 1), [Some(0), Some(1), Some(2)]);
        assert_eq!(numbers(&[none, none, none], 2), [None, Some(0), None]);
    }
}
