//! Low-rank adapters: what is trained in place of linear layers' weights.
//!
//! Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; names and initial values are those of `peft`.

use std::collections::HashMap;
use std::path::Path;

use tch::{Kind, TchError, Tensor};
use torch_ext::linear;

use crate::dropout::Dropout;
use crate::error::{LoadError, RunError};

/// Which linear layers have adapters, and of what size.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Numbers per row between an adapter's two matrices.
    pub rank: i64,
    /// What an adapter's output is multiplied by, times the rank.
    pub alpha: f64,
    /// Share of an adapter's inputs that are zeroed in training.
    pub dropout: f64,
    /// Ends of the layers' names: `query`, `attention.output.dense`.
    pub targets: Vec<String>,
}

/// What is added to a linear layer's output: `scale * up(down(x))`.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// Full name of its layer.
    layer: String,
    /// `[rank, input]`.
    down: Tensor,
    /// `[output, rank]`.
    up: Tensor,
    scale: f64,
}

impl Lora {
    /// Whether `layer` has an adapter, by its full name.
    pub(crate) fn fits(&self, layer: &str) -> bool {
        self.targets.iter().any(|target| is_end(layer, target))
    }

    /// Those of `targets` that no adapter is for.
    pub(crate) fn unmet(&self, adapters: &[Adapter]) -> Vec<&str> {
        let met = |target: &str| adapters.iter().any(|adapter| is_end(&adapter.layer, target));
        self.targets.iter().map(String::as_str).filter(|target| !met(target)).collect()
    }
}

/// Whether the last parts of a name are those of `end`.
fn is_end(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

impl Adapter {
    /// An adapter that adds nothing yet: the first matrix is drawn from libtorch's generator, the second is zero.
    pub(crate) fn new(
        lora: &Lora,
        layer: &str,
        [output, input]: [i64; 2],
        device: tch::Device,
    ) -> Result<Self, TchError> {
        let zeros = |shape: [i64; 2]| Tensor::f_zeros(shape, (Kind::Float, device));
        #[allow(clippy::cast_precision_loss)] // Far below 2^52.
        let (bound, rank) = ((input.max(1) as f64).sqrt().recip(), lora.rank.max(1) as f64);
        let down = zeros([lora.rank, input])?.f_uniform_(-bound, bound)?;
        Ok(Self {
            layer: layer.to_owned(),
            down: down.f_set_requires_grad(true)?,
            up: zeros([output, lora.rank])?.f_set_requires_grad(true)?,
            scale: lora.alpha / rank,
        })
    }

    /// A handle on the same memory.
    pub(crate) fn share(&self) -> Self {
        let (down, up) = (self.down.shallow_clone(), self.up.shallow_clone());
        Self { layer: self.layer.clone(), down, up, scale: self.scale }
    }

    /// Its two matrices by their names.
    pub(crate) fn tensors(&self) -> [(String, Tensor); 2] {
        [("A", &self.down), ("B", &self.up)]
            .map(|(side, tensor)| (format!("{}.lora_{side}.weight", self.layer), tensor.shallow_clone()))
    }

    /// `[rows, input]` to `[rows, output]`, in the input's kind.
    pub(crate) fn forward(&self, input: &Tensor, dropout: &Dropout) -> Result<Tensor, RunError> {
        let (down, up) = (self.down.f_to_kind(input.kind())?, self.up.f_to_kind(input.kind())?);
        let input = dropout.adapters(input.shallow_clone())?;
        let narrow = linear(&input, &down, None)?; // [rows, rank]
        Ok(linear(&narrow, &up, None)?.f_mul_scalar(self.scale)?)
    }

    /// Full name of the weight that it adds to.
    pub(crate) fn weight(&self) -> String {
        format!("{}.weight", self.layer)
    }

    /// The weight `[output, input]` that does alone what `weight` and the adapter do together.
    pub(crate) fn merged(&self, weight: &Tensor) -> Result<Tensor, TchError> {
        let _guard = tch::no_grad_guard();
        weight.f_add(&self.up.f_matmul(&self.down)?.f_mul_scalar(self.scale)?)
    }
}

/// Writes adapters as a `*.safetensors` file.
pub(crate) fn save(adapters: &[Adapter], path: &Path) -> Result<(), LoadError> {
    let tensors: Vec<(String, Tensor)> = adapters.iter().flat_map(Adapter::tensors).collect();
    Tensor::write_safetensors(&tensors, path).map_err(|error| LoadError::format(path, error))
}

/// Reads what [`save`] wrote into adapters of the same layers and sizes.
pub(crate) fn read(adapters: &[Adapter], path: &Path) -> Result<(), LoadError> {
    let read = Tensor::read_safetensors(path).map_err(|error| LoadError::format(path, error))?;
    let read: HashMap<String, Tensor> = read.into_iter().collect();
    let _guard = tch::no_grad_guard();
    for (name, mut tensor) in adapters.iter().flat_map(Adapter::tensors) {
        let Some(stored) = read.get(&name).filter(|stored| stored.size() == tensor.size()) else {
            return Err(LoadError::format(path, format!("{name} is missing, or of another shape")));
        };
        tensor.f_copy_(stored)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_known_by_the_last_parts_of_their_names() {
        let lora =
            |target: &str| Lora { rank: 1, alpha: 1.0, dropout: 0.0, targets: vec![target.to_owned()] };
        let name = "roberta.encoder.layer.0.attention.output.dense";
        assert!(
            lora("dense").fits(name) && lora("attention.output.dense").fits(name) && lora(name).fits(name)
        );
        assert!(!lora("ense").fits(name) && !lora("layer").fits(name) && !lora("key").fits(name));
    }
}
