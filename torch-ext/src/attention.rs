//! Attention over sequences of different lengths without padding, on CUDA.

use std::ffi::c_int;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{TorchError, call};

unsafe extern "C" {
    fn beige_varlen_attention(
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        starts: *const C_tensor,
        longest: i64,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// Full attention within each of many sequences laid end to end.
///
/// * `query`, `key`, `value` - `[tokens, heads, width]`, half precision, on a CUDA device
/// * `starts` - `[sequences + 1]` int32 on the same device: where each sequence begins, and the end
/// * `longest` - tokens of the longest sequence
///
/// Returns `[tokens, heads, width]`. Source: Dao 2023, arXiv:2307.08691.
///
/// # Errors
/// [`TorchError::OutOfMemory`], or [`TorchError::Failed`] off CUDA and for kinds it does not do.
pub fn varlen_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    starts: &Tensor,
    longest: i64,
) -> Result<Tensor, TorchError> {
    let (query, key, value) = (query.as_ptr(), key.as_ptr(), value.as_ptr());
    // SAFETY: the pointers are of live tensors, and the shim takes no ownership.
    call(|out| unsafe { beige_varlen_attention(query, key, value, starts.as_ptr(), longest, out) })
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn inputs(device: Device) -> (Tensor, Tensor) {
        tch::manual_seed(7);
        let qkv = Tensor::randn([3, 10, 4, 32], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        (qkv.to_device(device), Tensor::from_slice(&[0, 3, 10]).to_device(device))
    }

    #[test]
    fn off_cuda_it_is_an_error() {
        let (qkv, starts) = inputs(Device::Cpu);
        varlen_attention(&qkv.get(0), &qkv.get(1), &qkv.get(2), &starts, 7).unwrap_err();
    }

    #[cfg(feature = "cuda-tests")]
    #[test]
    fn sequences_do_not_see_each_other() {
        crate::load_cuda().unwrap();
        let (qkv, starts) = inputs(Device::Cuda(0));
        let found = varlen_attention(&qkv.get(0), &qkv.get(1), &qkv.get(2), &starts, 7).unwrap();
        for (from, to) in [(0, 3), (3, 10)] {
            let part = |i| qkv.get(i).slice(0, from, to, 1).transpose(0, 1).unsqueeze(0);
            let alone = Tensor::scaled_dot_product_attention::<Tensor>(
                &part(0),
                &part(1),
                &part(2),
                None,
                0.0,
                false,
                None,
                false,
            );
            let alone = alone.squeeze_dim(0).transpose(0, 1);
            let worst = f64::try_from((found.slice(0, from, to, 1) - alone).abs().max()).unwrap();
            assert!(worst < 0.02, "{worst}");
        }
    }
}
