//! The optimiser's arithmetic, fused over all parameters.

use std::ffi::c_int;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{TorchError, check};

unsafe extern "C" {
    fn beige_adamw(
        groups: *const *const C_tensor,
        count: i64,
        rate: f64,
        betas: *const f64,
        decay: f64,
        epsilon: f64,
    ) -> c_int;
}

/// What AdamW does to one parameter.
#[derive(Debug)]
pub struct Moved<'a> {
    /// Moved in place.
    pub parameter: &'a Tensor,
    /// Of the loss, the parameter's shape.
    pub gradient: &'a Tensor,
    /// Running mean of gradients, updated in place.
    pub first: &'a Tensor,
    /// Running mean of their squares, updated in place.
    pub second: &'a Tensor,
    /// Steps taken so far, one f32; counted up in place.
    pub step: &'a Tensor,
}

/// How far and how it moves them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// The learning rate.
    pub rate: f64,
    /// Decay of the two running means.
    pub betas: [f64; 2],
    /// Share of a parameter that is taken off per unit of learning rate.
    pub decay: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl AdamW {
    /// Takes one step, as `torch.optim.AdamW(fused=True)` does. All tensors of a call are on one device.
    ///
    /// Source: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.
    ///
    /// # Errors
    /// [`TorchError::Failed`] when shapes, kinds or devices do not fit.
    pub fn step(&self, moved: &[Moved<'_>]) -> Result<(), TorchError> {
        let lists: [fn(&Moved<'_>) -> *const C_tensor; 5] = [
            |m| m.parameter.as_ptr(),
            |m| m.gradient.as_ptr(),
            |m| m.first.as_ptr(),
            |m| m.second.as_ptr(),
            |m| m.step.as_ptr(),
        ];
        let groups: Vec<*const C_tensor> = lists.iter().flat_map(|list| moved.iter().map(list)).collect();
        let count = i64::try_from(moved.len()).map_err(|_| TorchError::Failed("too many tensors".into()))?;
        let Self { rate, betas, decay, epsilon } = *self;
        // SAFETY: five lists of `count` pointers to live tensors and two numbers behind `betas`; the shim keeps
        // none of them.
        check(unsafe { beige_adamw(groups.as_ptr(), count, rate, betas.as_ptr(), decay, epsilon) })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    /// The algorithm as published, in double precision.
    fn reference(weight: f64, gradients: &[f64], adam: &AdamW) -> f64 {
        let (mut weight, mut first, mut second) = (weight, 0.0, 0.0);
        for (gradient, step) in gradients.iter().zip(1..) {
            weight -= adam.rate * adam.decay * weight;
            first = adam.betas[0] * first + (1.0 - adam.betas[0]) * gradient;
            second = adam.betas[1] * second + (1.0 - adam.betas[1]) * gradient * gradient;
            let (first, second) =
                (first / (1.0 - adam.betas[0].powi(step)), second / (1.0 - adam.betas[1].powi(step)));
            weight -= adam.rate * first / (second.sqrt() + adam.epsilon);
        }
        weight
    }

    #[test]
    fn steps_are_those_of_the_paper() {
        let adam = AdamW { rate: 0.01, betas: [0.9, 0.999], decay: 0.1, epsilon: 1e-8 };
        let options = (Kind::Float, Device::Cpu);
        let (weights, gradients) = ([0.5_f32, -2.0], [[0.1_f32, -0.3], [0.2, 0.0], [-0.4, 1.5]]);
        let parameter = Tensor::from_slice(&weights);
        let (first, second, step) =
            (Tensor::zeros([2], options), Tensor::zeros([2], options), Tensor::zeros([], options));
        for gradient in &gradients {
            let gradient = Tensor::from_slice(gradient);
            let moved = Moved {
                parameter: &parameter,
                gradient: &gradient,
                first: &first,
                second: &second,
                step: &step,
            };
            adam.step(&[moved]).unwrap();
        }
        for (i, weight) in weights.iter().enumerate() {
            let gradients: Vec<f64> = gradients.iter().map(|g| f64::from(g[i])).collect();
            let expected = reference(f64::from(*weight), &gradients, &adam);
            let found = parameter.double_value(&[i64::try_from(i).unwrap()]);
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_an_error() {
        let options = (Kind::Float, Device::Cpu);
        let (two, three, step) =
            (Tensor::zeros([2], options), Tensor::zeros([3], options), Tensor::zeros([], options));
        let moved = Moved { parameter: &two, gradient: &three, first: &two, second: &two, step: &step };
        let adam = AdamW { rate: 0.01, betas: [0.9, 0.999], decay: 0.0, epsilon: 1e-8 };
        adam.step(&[moved]).unwrap_err();
    }
}
