//! What ranks do together.

use std::cell::Cell;
use std::time::{Duration, Instant};

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

/// Ranks, and how long was waited for them.
#[derive(Debug)]
pub struct Timed<'a, C> {
    world: &'a C,
    exchanging: Cell<Duration>,
}

impl<'a, C> Timed<'a, C> {
    /// Nothing has been exchanged yet.
    pub fn new(world: &'a C) -> Self {
        Self { world, exchanging: Cell::default() }
    }

    /// The time of all exchanges so far, on this rank; it includes waiting for ranks that came later.
    pub fn exchanging(&self) -> Duration {
        self.exchanging.get()
    }

    fn timed<T>(&self, of: impl FnOnce(&C) -> T) -> T {
        let began = Instant::now();
        let found = of(self.world);
        self.exchanging.set(self.exchanging.get() + began.elapsed());
        found
    }
}

impl<C: Collective> Collective for Timed<'_, C> {
    fn place(&self) -> Place {
        self.world.place()
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        self.timed(|world| world.gather(tensor))
    }

    fn sum(&self, tensor: &Tensor) -> Result<(), TorchError> {
        self.timed(|world| world.sum(tensor))
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;

    use super::*;

    /// Whose others are late.
    struct Late(Duration);

    impl Collective for Late {
        fn place(&self) -> Place {
            Place { rank: 1, ranks: 2 }
        }

        fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError> {
            sleep(self.0);
            Alone.gather(tensor)
        }

        fn sum(&self, _tensor: &Tensor) -> Result<(), TorchError> {
            sleep(self.0);
            Ok(())
        }
    }

    #[test]
    fn waiting_for_others_is_counted() {
        let (late, began) = (Late(Duration::from_millis(20)), Instant::now());
        let world = Timed::new(&late);
        assert_eq!(world.exchanging(), Duration::ZERO);
        let tensor = Tensor::from_slice(&[1.0_f32]);
        assert_eq!(world.gather(&tensor).unwrap().len(), 1);
        world.sum(&tensor).unwrap();
        assert!(world.exchanging() >= 2 * late.0 && world.exchanging() <= began.elapsed());
        assert_eq!(world.place(), late.place());
    }
}
