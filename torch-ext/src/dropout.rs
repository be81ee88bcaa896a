//! Dropout that keeps no mask: which numbers fall is found again from a seed when the gradient comes.
//!
//! libtorch's own draws one number at a time on a processor and keeps a mask as large as the tensor.

use std::ffi::c_int;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::error::{TorchError, call};

unsafe extern "C" {
    fn beige_dropout(
        input: *const C_tensor,
        rest: *const C_tensor,
        share: f64,
        seed: i64,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// `input` with about `share` of its numbers, to the nearest of 65,536 parts, zeroed and the others grown, so that sums
/// keep their size, plus `rest` of the same shape. The seed is drawn from libtorch's generator: after it was seeded alike,
/// the same numbers fall, on any number of threads. Where not all is in single precision on a processor it is libtorch's
/// own.
///
/// Sources: Srivastava et al. 2014, JMLR 15, pages 1929-1958; random bits as in Salmon et al. 2011, "Parallel random
/// numbers: as easy as 1, 2, 3".
///
/// # Errors
/// [`TorchError::OutOfMemory`], or [`TorchError::Failed`] when the shapes differ or `share` is not in `0..1`.
pub fn dropout(input: &Tensor, share: f64, rest: Option<&Tensor>) -> Result<Tensor, TorchError> {
    let ours = |tensor: &Tensor| tensor.device() == Device::Cpu && tensor.kind() == Kind::Float;
    if !ours(input) || !rest.is_none_or(ours) {
        return plain(input, share, rest).map_err(|error| TorchError::Failed(error.to_string()));
    }
    let seed = drawn().map_err(|error| TorchError::Failed(error.to_string()))?;
    let rest = rest.map_or(std::ptr::null(), Tensor::as_ptr);
    // SAFETY: the pointers are of live tensors, or null where the shim allows it, and it takes no ownership.
    call(|out| unsafe { beige_dropout(input.as_ptr(), rest, share, seed, out) })
}

fn plain(input: &Tensor, share: f64, rest: Option<&Tensor>) -> Result<Tensor, TchError> {
    let thinned = input.f_dropout(share, true)?;
    rest.map_or_else(|| Ok(thinned.shallow_clone()), |rest| thinned.f_add(rest))
}

fn drawn() -> Result<i64, TchError> {
    Tensor::f_randint(i64::MAX, [1], (Kind::Int64, Device::Cpu))?.f_int64_value(&[0])
}
