//! What ranks do together.

use tch::{TchError, Tensor};
use torch_ext::{Group, TorchError};

/// Ranks that make the same calls in the same order.
pub trait Collective {
    /// This rank and how many there are.
    fn place(&self) -> Place;

    /// Every rank's `tensor`, by rank; of one shape on all, without a graph. They are where ranks exchange.
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
        self.all_gather(&tensor.and_then(|tensor| tensor.f_to_device(self.device())).map_err(failed)?)
    }

    fn sum(&self, tensor: &Tensor) -> Result<(), TorchError> {
        if tensor.device() == self.device() {
            return self.all_reduce(tensor);
        }
        let there = tensor.f_to_device(self.device()).map_err(failed)?;
        self.all_reduce(&there)?;
        tensor.shallow_clone().f_copy_(&there).map_err(failed)
    }
}

#[allow(clippy::needless_pass_by_value)] // `map_err` hands errors over by value.
fn failed(error: TchError) -> TorchError {
    TorchError::Failed(error.to_string())
}

/// A rank that is the only one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn place(&self) -> Place {
        Place { rank: 0, ranks: 1 }
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        Ok(vec![tensor.f_detach().map_err(failed)?])
    }

    fn sum(&self, _tensor: &Tensor) -> Result<(), TorchError> {
        Ok(())
    }
}
