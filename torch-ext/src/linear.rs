//! Linear layers by oneDNN, on processors: packed for inference, and open to gradients for training.
//!
//! MKL, which `torch.nn.functional.linear` uses, runs at less than half of oneDNN's speed on AMD processors
//! with AVX-512, in each of the three products of a training step; with AVX2 the two are level, and packing still
//! wins for few rows.

use std::ffi::{CStr, c_char, c_int};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::{TorchError, call};

unsafe extern "C" {
    fn beige_pack_linear(weight: *const C_tensor, rows: i64, out: *mut *mut C_tensor) -> c_int;
    fn beige_packed_linear(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        activation: *const c_char,
        out: *mut *mut C_tensor,
    ) -> c_int;
    fn beige_trained_linear(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
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
        call(|out| unsafe { beige_packed_linear(input.as_ptr(), weight, bias, name, out) })
    }
}

/// `x W^T + b` of `[rows, in]`, a plain weight `[out, in]` and a bias `[out]`: `[rows, out]`, with a graph where one is
/// kept. Single precision on a processor is multiplied by oneDNN, gradients too; all else by libtorch's own layer.
///
/// # Errors
/// [`TorchError::OutOfMemory`], or [`TorchError::Failed`] when shapes or kinds do not fit.
pub fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TorchError> {
    if input.device() != Device::Cpu || input.kind() != Kind::Float {
        return input.f_linear(weight, bias).map_err(|error| TorchError::Failed(error.to_string()));
    }
    let bias = bias.map_or(std::ptr::null(), Tensor::as_ptr);
    // SAFETY: the pointers are of live tensors, or null where the shim allows it, and it takes no ownership.
    call(|out| unsafe { beige_trained_linear(input.as_ptr(), weight.as_ptr(), bias, out) })
}

#[cfg(test)]
mod tests {
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

    /// Of leaves `[rows, in]`, `[out, in]` and `[out]`: the output, and their gradients by that of the output.
    fn with_gradients(
        of: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Tensor,
        [input, weight, bias]: &[Tensor; 3],
        by: &Tensor,
    ) -> [Tensor; 4] {
        let leaf = |tensor: &Tensor| tensor.copy().set_requires_grad(true);
        let (input, weight, bias) = (leaf(input), leaf(weight), leaf(bias));
        let found = of(&input, &weight, Some(&bias));
        (&found * by).sum(Kind::Float).backward();
        [found.detach(), input.grad(), weight.grad(), bias.grad()]
    }

    #[test]
    fn trained_layers_and_their_gradients_agree_with_plain_ones() {
        let drawn = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        for [rows, input, output] in [[1, 48, 80], [7, 384, 1], [300, 48, 80], [2000, 384, 96]] {
            let given = [drawn(&[rows, input]), drawn(&[output, input]), drawn(&[output])];
            // A gradient that is not contiguous, as from a transposed view.
            let by = drawn(&[output, rows]).transpose(0, 1);
            #[allow(clippy::redundant_closure_for_method_calls)]
            // The method's lifetimes are not general enough.
            let expected = with_gradients(|x, weight, bias| x.linear(weight, bias), &given, &by);
            let found = with_gradients(|x, weight, bias| linear(x, weight, bias).unwrap(), &given, &by);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found.size(), expected.size());
                let scale = f64::try_from(expected.abs().max()).unwrap();
                let worst = f64::try_from((found - expected).abs().max()).unwrap();
                assert!(worst <= 1e-5 * scale, "{rows} rows, {input} to {output}: {worst} of {scale}");
            }
        }
    }

    #[test]
    fn frozen_weights_take_no_gradient() {
        let options = (Kind::Float, Device::Cpu);
        let (input, weight) =
            (Tensor::ones([4, 8], options).set_requires_grad(true), Tensor::ones([2, 8], options));
        linear(&input, &weight, None).unwrap().sum(Kind::Float).backward();
        assert!(!weight.grad().defined());
        assert!(input.grad().allclose(&Tensor::full([4, 8], 2.0, options), 0.0, 0.0, false));
        let error = linear(&input, &Tensor::ones([2, 7], options), None).unwrap_err();
        assert!(matches!(error, TorchError::Failed(_)), "{error}");
    }
}
