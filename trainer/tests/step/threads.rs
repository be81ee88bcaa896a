//! Ranks that are threads. Several of libtorch's own groups in one process are not safe: they write to one flight recorder
//! without a lock.

use std::cell::Cell;
use std::sync::{Arc, Barrier, Mutex};
use std::thread::Builder;

use tch::Tensor;
use torch_ext::TorchError;
use trainer::collective::{Collective, Place};

/// Where the threads of three ranks meet: each leaves a tensor, and all take all of them.
#[derive(Debug)]
struct Meeting {
    barrier: Barrier,
    left: Mutex<[Option<Tensor>; 3]>,
}

/// One of three ranks.
#[derive(Debug)]
pub(crate) struct Threaded {
    rank: usize,
    meeting: Arc<Meeting>,
    /// Numbers that it has exchanged.
    pub(crate) exchanged: Cell<usize>,
}

impl Collective for Threaded {
    fn place(&self) -> Place {
        Place { rank: self.rank, ranks: 3 }
    }

    fn gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, TorchError> {
        self.exchanged.set(self.exchanged.get() + tensor.numel());
        let Meeting { barrier, left } = &*self.meeting;
        left.lock().unwrap()[self.rank] = Some(tensor.detach().copy());
        barrier.wait();
        let all = left.lock().unwrap().iter().flatten().map(Tensor::copy).collect();
        barrier.wait();
        Ok(all)
    }

    fn sum(&self, tensor: &Tensor) -> Result<(), TorchError> {
        let total = self.gather(tensor)?.into_iter().reduce(|a, b| a + b).unwrap();
        tensor.shallow_clone().copy_(&total);
        Ok(())
    }
}

/// What three ranks make of `each`, by rank.
pub(crate) fn on_ranks<T: Send + 'static>(
    each: impl Fn(u32, &Threaded) -> T + Copy + Send + 'static,
) -> Vec<T> {
    let meeting = Arc::new(Meeting { barrier: Barrier::new(3), left: Mutex::new([None, None, None]) });
    let ranks = (0..3_u32).map(|rank| {
        let meeting = Arc::clone(&meeting);
        let run = move || {
            each(rank, &Threaded { rank: usize::try_from(rank).unwrap(), meeting, exchanged: Cell::new(0) })
        };
        Builder::new().name(format!("rank-{rank}")).spawn(run).unwrap()
    });
    ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
}
