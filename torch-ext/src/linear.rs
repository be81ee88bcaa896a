//! Linear layers in oneDNN's packed layout: on processors, and for inference only.
//!
//! MKL, which `torch.nn.functional.linear` uses, runs at less than half of oneDNN's speed on AMD processors
//! with AVX-512; with AVX2 the two are level, and packing still wins for few rows.

use std::ffi::{CStr, c_char, c_int};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{TorchError, call};

unsafe extern "C" {
    fn beige_pack_linear(weight: *const C_tensor, rows: i64, out: *mut *mut C_tensor) -> c_int;
    fn beige_linear(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        activation: *const c_char,
        out: *mut *mut C_tensor,
    ) -> c_int;
}

/// What is applied to the outputs inside the matrix product, while they are in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// The exact, erf-based Gaussian error linear unit (Hendrycks and Gimpel 2016, arXiv:1606.08415).
    Gelu,
    /// The rectifier.
    Relu,
    /// The hyperbolic tangent.
    Tanh,
}

impl Activation {
    fn name(self) -> &'static CStr {
        match self {
            Self::None => c"none",
            Self::Gelu => c"gelu",
            Self::Relu => c"relu",
            Self::Tanh => c"tanh",
        }
    }
}

/// `activation(x W^T + b)` with the weight in oneDNN's layout.
#[derive(Debug)]
pub struct PackedLinear {
    weight: Tensor,
    bias: Tensor,
}

impl PackedLinear {
    /// Packs a weight `[out, in]` with its bias `[out]`, both of one kind (f32 or bf16), for inputs of about
    /// `rows` rows. The weight is copied; nothing refers to it afterwards.
    ///
    /// # Errors
    /// [`TorchError::Failed`] where the processor cannot multiply this kind.
    pub fn pack(weight: &Tensor, bias: Tensor, rows: i64) -> Result<Self, TorchError> {
        // SAFETY: both pointers are of live tensors, and the shim takes no ownership.
        let weight = call(|out| unsafe { beige_pack_linear(weight.as_ptr(), rows, out) })?;
        Ok(Self { weight, bias })
    }

    /// `[rows, in]` to `[rows, out]`.
    ///
    /// # Errors
    /// [`TorchError::OutOfMemory`], or [`TorchError::Failed`] when the shapes do not fit.
    pub fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor, TorchError> {
        let (weight, bias, name) = (self.weight.as_ptr(), self.bias.as_ptr(), activation.name().as_ptr());
        // SAFETY: the pointers are of live tensors and of a static string, and the shim takes no ownership.
        call(|out| unsafe { beige_linear(input.as_ptr(), weight, bias, name, out) })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[track_caller]
    fn check(rows: i64, activation: Activation, plain: impl Fn(&Tensor) -> Tensor) {
        tch::manual_seed(7);
        let options = (Kind::Float, Device::Cpu);
        let (input, weight, bias) = (
            Tensor::randn([rows, 48], options),
            Tensor::randn([80, 48], options),
            Tensor::randn([80], options),
        );
        let expected = plain(&input.linear(&weight, Some(&bias)));
        let packed = PackedLinear::pack(&weight, bias, 64).unwrap();
        drop(weight);
        let found = packed.forward(&input, activation).unwrap();
        let worst = f64::try_from((found - expected).abs().max()).unwrap();
        assert!(worst < 1e-4, "{worst}");
    }

    #[test]
    fn packed_layers_agree_with_plain_ones() {
        for rows in [1, 2, 63, 300] {
            check(rows, Activation::None, Tensor::shallow_clone);
            check(rows, Activation::Gelu, |x| x.gelu("none"));
            check(rows, Activation::Relu, Tensor::relu);
            check(rows, Activation::Tanh, Tensor::tanh);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let options = (Kind::Float, Device::Cpu);
        let packed =
            PackedLinear::pack(&Tensor::ones([8, 4], options), Tensor::ones([8], options), 1).unwrap();
        let error = packed.forward(&Tensor::ones([2, 5], options), Activation::None).unwrap_err();
        assert!(matches!(error, TorchError::Failed(_)), "{error}");
    }
}
