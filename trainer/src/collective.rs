//! What ranks do together.

use tch::Tensor;
use torch_ext::{Group, TorchError};

/// Ranks that make the same calls in the same order.
pub trait Collective {
    /// This rank and how many there are.
    fn place(&self) -> Place;

    /// Every rank's `tensor`, by rank; of one shape on all, without a graph.
    ///
    /// # Errors
    /// [`TorchError`] when a rank is gone or late.
    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError>;

    /// Overwrites `tensor` with the sum over ranks, the same to the bit on all of them.
    ///
    /// # Errors
    /// [`TorchError`] when a rank is gone or late.
    fn sum(&self, tensor: &Tensor) -> Result<(), TorchError>;
}

/// A rank among ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 0.
    pub rank: usize,
    /// At least 1.
    pub ranks: usize,
}

impl Collective for Group {
    fn place(&self) -> Place {
        Place { rank: self.rank(), ranks: self.size() }
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        let tensor = tensor.f_detach().and_then(|tensor| tensor.f_contiguous());
        self.all_gather(&tensor.map_err(|error| TorchError::Failed(error.to_string()))?)
    }

    fn sum(&self, tensor: &Tensor) -> Result<(), TorchError> {
        self.all_reduce(tensor)
    }
}

/// A rank that is the only one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn place(&self) -> Place {
        Place { rank: 0, ranks: 1 }
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        let tensor = tensor.f_detach().map_err(|error| TorchError::Failed(error.to_string()))?;
        Ok(vec![tensor])
    }

    fn sum(&self, _tensor: &Tensor) -> Result<(), TorchError> {
        Ok(())
    }
}
