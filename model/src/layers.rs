//! Layers as they are loaded: packed for a processor, plain for CUDA.

use tch::{Kind, Tensor};
use torch_ext::{Activation, PackedLinear};

use crate::error::{LoadError, RunError};
use crate::weights::{Pages, Weights};

/// Rows of a typical batch: what packed layouts are chosen for.
const TYPICAL_ROWS: i64 = 1024;

/// Takes weights out of the files and puts them where they run.
#[derive(Debug)]
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) device: tch::Device,
    pub(crate) kind: Kind,
}

impl Loader<'_> {
    /// Linear layers of the body that share their input, as one: outputs side by side.
    pub(crate) fn fused(&self, names: &[String], [output, input]: [i64; 2]) -> Result<Linear, LoadError> {
        let parts = |field: &str, shape: &[i64]| -> Result<Tensor, LoadError> {
            let parts: Result<Vec<_>, _> =
                names.iter().map(|name| self.weights.body(&format!("{name}.{field}"), shape)).collect();
            Ok(Tensor::f_cat(&parts?, 0)?)
        };
        self.place(&parts("weight", &[output, input])?, &parts("bias", &[output])?)
    }

    /// A linear layer of the body.
    pub(crate) fn linear(&self, name: &str, [output, input]: [i64; 2]) -> Result<Linear, LoadError> {
        let weight = self.weights.body(&format!("{name}.weight"), &[output, input])?;
        let bias = self.weights.body(&format!("{name}.bias"), &[output])?;
        self.place(&weight, &bias)
    }

    /// A linear layer of a head, by its full name: small, run in single precision.
    pub(crate) fn head(&self, name: &str, [output, input]: [i64; 2]) -> Result<Linear, LoadError> {
        let weight = self.weights.tensor(&format!("{name}.weight"), &[output, input])?;
        let bias = self.weights.tensor(&format!("{name}.bias"), &[output])?;
        let place = |tensor: Tensor| tensor.f_to_device(self.device)?.f_to_kind(Kind::Float);
        Ok(Linear::Plain { weight: place(weight)?, bias: place(bias)? })
    }

    /// Weight and bias of a normalisation of the body, in `kind`.
    pub(crate) fn norm(&self, name: &str, width: i64, kind: Kind, epsilon: f64) -> Result<Norm, LoadError> {
        let read = |field: &str| -> Result<Tensor, LoadError> {
            let tensor = self.weights.body(&format!("{name}.{field}"), &[width])?;
            Ok(tensor.f_to_device(self.device)?.f_to_kind(kind)?)
        };
        Ok(Norm { weight: read("weight")?, bias: read("bias")?, epsilon })
    }

    /// A table of vectors of the body, `[rows, width]`, as stored: on a processor it stays in the file.
    pub(crate) fn table(&self, name: &str, rows: i64, width: i64) -> Result<Table, LoadError> {
        let name = format!("{name}.weight");
        let vectors = self.weights.body(&name, &[rows, width])?.f_to_device(self.device)?;
        let pages = (self.device == tch::Device::Cpu).then(|| self.weights.pages(&name)).flatten();
        Ok(Table { vectors, pages })
    }

    fn place(&self, weight: &Tensor, bias: &Tensor) -> Result<Linear, LoadError> {
        let weight = weight.f_to_device(self.device)?.f_to_kind(self.kind)?;
        let bias = bias.f_to_device(self.device)?.f_to_kind(self.kind)?;
        if self.device == tch::Device::Cpu {
            Ok(Linear::Packed(PackedLinear::pack(&weight, bias, TYPICAL_ROWS)?))
        } else {
            Ok(Linear::Plain { weight, bias })
        }
    }
}

/// `activation(x W^T + b)`.
#[derive(Debug)]
pub(crate) enum Linear {
    Packed(PackedLinear),
    Plain { weight: Tensor, bias: Tensor },
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`.
    pub(crate) fn forward(&self, input: &Tensor, activation: Activation) -> Result<Tensor, RunError> {
        let (weight, bias) = match self {
            Self::Packed(packed) => return Ok(packed.forward(input, activation)?),
            Self::Plain { weight, bias } => (weight, bias),
        };
        let output = input.f_linear(weight, Some(bias))?;
        Ok(match activation {
            Activation::None => output,
            Activation::Gelu => output.f_gelu("none")?,
            Activation::Relu => output.f_relu()?,
            Activation::Tanh => output.f_tanh()?,
        })
    }
}

/// Vectors by number.
#[derive(Debug)]
pub(crate) struct Table {
    /// `[rows, width]`, as stored.
    vectors: Tensor,
    /// Where they lie on a processor.
    pages: Option<Pages>,
}

impl Table {
    /// `[n]` to `[n, width]`, in single precision.
    pub(crate) fn rows(&self, indices: &Tensor) -> Result<Tensor, RunError> {
        Ok(self.vectors.f_index_select(0, indices)?.f_to_kind(Kind::Float)?)
    }

    /// Gives the pages read so far back to the page cache, which keeps them. A batch reads few rows of a large
    /// table, but the kernel maps sixteen pages around each, and soon the whole table would count as resident.
    pub(crate) fn forget(&self) {
        if let Some(pages) = &self.pages {
            pages.forget();
        }
    }
}

/// Layer normalisation (Ba et al. 2016, arXiv:1607.06450).
#[derive(Debug)]
pub(crate) struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl Norm {
    /// `[rows, width]` to the same.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, RunError> {
        let width = [*input.size().last().unwrap_or(&0)];
        Ok(input.f_layer_norm(width, Some(&self.weight), Some(&self.bias), self.epsilon, false)?)
    }
}
