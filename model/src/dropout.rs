//! Numbers zeroed at random while a model trains.

use tch::Tensor;
use torch_ext::TorchError;

use crate::error::RunError;

/// The share of numbers that are zeroed; the others grow, so that sums keep their size. Which ones fall is drawn
/// from libtorch's generator: after [`crate::seed`] with the same number the same ones do.
///
/// Source: Srivastava et al. 2014, JMLR 15, pages 1929-1958.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropout {
    /// Of the vectors behind embeddings, attention and feed-forward layers.
    pub hidden: f64,
    /// Of attention's weights.
    pub attention: f64,
    /// Of what a cross-encoder's classifier reads.
    pub classifier: f64,
    /// Of what adapters read.
    pub adapters: f64,
}

impl Dropout {
    /// Every number is kept: serving, evaluation, and the replay of a recorded run.
    pub const NONE: Self = Self { hidden: 0.0, attention: 0.0, classifier: 0.0, adapters: 0.0 };

    pub(crate) fn hidden(&self, tensor: Tensor) -> Result<Tensor, TorchError> {
        thin(tensor, self.hidden)
    }

    /// What is left of `tensor`, added to `residual` in its kind.
    pub(crate) fn hidden_onto(&self, tensor: &Tensor, residual: &Tensor) -> Result<Tensor, RunError> {
        let mut tensor = tensor.f_to_kind(residual.kind())?;
        if self.hidden == 0.0 {
            let _ = tensor.f_add_(residual)?;
            return Ok(tensor);
        }
        Ok(torch_ext::dropout(&tensor, self.hidden, Some(residual))?)
    }

    pub(crate) fn attention(&self, tensor: Tensor) -> Result<Tensor, TorchError> {
        thin(tensor, self.attention)
    }

    pub(crate) fn classifier(&self, tensor: Tensor) -> Result<Tensor, TorchError> {
        thin(tensor, self.classifier)
    }

    pub(crate) fn adapters(&self, tensor: Tensor) -> Result<Tensor, TorchError> {
        thin(tensor, self.adapters)
    }
}

fn thin(tensor: Tensor, share: f64) -> Result<Tensor, TorchError> {
    if share == 0.0 { Ok(tensor) } else { torch_ext::dropout(&tensor, share, None) }
}
