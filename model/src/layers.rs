//! Layers as they are loaded: packed for a processor, plain for CUDA, and open to gradients for training.

use std::cell::RefCell;

use tch::{Kind, Tensor};
use torch_ext::{Activation, PackedLinear, linear};

use crate::adapter::Adapter;
use crate::dropout::Dropout;
use crate::error::{LoadError, RunError};
use crate::trainee::{Manner, Parameter};
use crate::weights::{Pages, Weights};

/// Rows of a typical batch: what packed layouts are chosen for.
const TYPICAL_ROWS: i64 = 1024;

/// Bytes of one copy to a device. Batches of other models run between copies, not during one.
const COPY_BYTES: i64 = 16 << 20;

/// Takes weights out of the files and puts them where they run.
#[derive(Debug)]
pub(crate) struct Loader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) device: tch::Device,
    pub(crate) kind: Kind,
    /// What training needs to know; `None` for a model that serves.
    pub(crate) trained: Option<&'a Trained<'a>>,
}

/// How a model is trained, and what is noted down of it while it is loaded.
#[derive(Debug)]
pub(crate) struct Trained<'a> {
    pub(crate) manner: &'a Manner,
    /// Every tensor that training may move.
    pub(crate) parameters: RefCell<Vec<Parameter>>,
    pub(crate) adapters: RefCell<Vec<Adapter>>,
}

impl Loader<'_> {
    /// Linear layers of the body that share their input, as one: outputs side by side.
    pub(crate) fn fused(&self, names: &[String], [output, input]: [i64; 2]) -> Result<Linear, LoadError> {
        if self.trained.is_some() {
            let parts = names.iter().map(|name| self.open(&self.weights.name(name), [output, input]));
            return Ok(Linear::Open { parts: parts.collect::<Result<_, _>>()?, kind: self.products() });
        }
        let parts = |field: &str, shape: &[i64]| -> Result<Tensor, LoadError> {
            let parts: Result<Vec<_>, _> =
                names.iter().map(|name| self.weights.body(&format!("{name}.{field}"), shape)).collect();
            Ok(Tensor::f_cat(&parts?, 0)?)
        };
        self.place(&parts("weight", &[output, input])?, &parts("bias", &[output])?)
    }

    /// A linear layer of the body.
    pub(crate) fn linear(&self, name: &str, [output, input]: [i64; 2]) -> Result<Linear, LoadError> {
        if self.trained.is_some() {
            let parts = vec![self.open(&self.weights.name(name), [output, input])?];
            return Ok(Linear::Open { parts, kind: self.products() });
        }
        let weight = self.weights.body(&format!("{name}.weight"), &[output, input])?;
        let bias = self.weights.body(&format!("{name}.bias"), &[output])?;
        self.place(&weight, &bias)
    }

    /// A linear layer of a head, by its full name: small, run in single precision.
    pub(crate) fn head(&self, name: &str, [output, input]: [i64; 2]) -> Result<Linear, LoadError> {
        if self.trained.is_some() {
            return Ok(Linear::Open { parts: vec![self.open(name, [output, input])?], kind: Kind::Float });
        }
        let weight = self.weights.tensor(&format!("{name}.weight"), &[output, input])?;
        let bias = self.weights.tensor(&format!("{name}.bias"), &[output])?;
        let place = |tensor: &Tensor| -> Result<Tensor, LoadError> {
            Ok(moved(tensor, self.device, COPY_BYTES)?.f_to_kind(Kind::Float)?)
        };
        Ok(Linear::Plain { weight: place(&weight)?, bias: place(&bias)? })
    }

    /// Weight and bias of a normalisation of the body, in `kind`.
    pub(crate) fn norm(&self, name: &str, width: i64, kind: Kind, epsilon: f64) -> Result<Norm, LoadError> {
        let read = |field: &str| -> Result<Tensor, LoadError> {
            let name = self.weights.name(&format!("{name}.{field}"));
            self.settle(&name, &self.weights.tensor(&name, &[width])?, kind)
        };
        Ok(Norm { weight: read("weight")?, bias: read("bias")?, epsilon })
    }

    /// A table of vectors of the body, `[rows, width]`, as stored: on a processor it stays in the file.
    pub(crate) fn table(&self, name: &str, rows: i64, width: i64) -> Result<Table, LoadError> {
        let name = format!("{name}.weight");
        let vectors = self.weights.body(&name, &[rows, width])?;
        if self.trained.is_some() {
            let vectors = self.settle(&self.weights.name(&name), &vectors, Kind::Float)?;
            return Ok(Table { vectors, pages: None });
        }
        let vectors = moved(&vectors, self.device, COPY_BYTES)?;
        let pages = (self.device == tch::Device::Cpu).then(|| self.weights.pages(&name)).flatten();
        Ok(Table { vectors, pages })
    }

    /// What the body's linear layers multiply in.
    fn products(&self) -> Kind {
        self.trained.map_or(self.kind, |trained| trained.manner.products.kind())
    }

    /// Weight and bias of a linear layer, by its full name, as parameters.
    fn open(&self, name: &str, [output, input]: [i64; 2]) -> Result<Parts, LoadError> {
        let part = |field: &str, shape: &[i64]| {
            let name = format!("{name}.{field}");
            self.settle(&name, &self.weights.tensor(&name, shape)?, Kind::Float)
        };
        let (weight, bias) = (part("weight", &[output, input])?, part("bias", &[output])?);
        let as_pytorch = self.trained.is_some_and(|trained| trained.manner.as_pytorch);
        Ok(Parts { weight, bias, adapter: self.adapter(name, [output, input])?, as_pytorch })
    }

    /// The adapter of a linear layer, by its full name, where it shall have one.
    fn adapter(&self, name: &str, shape: [i64; 2]) -> Result<Option<Adapter>, LoadError> {
        let Some(trained) = self.trained else { return Ok(None) };
        let Some(lora) = trained.manner.lora.as_ref().filter(|lora| lora.fits(name)) else { return Ok(None) };
        let adapter = Adapter::new(lora, name, shape, self.device)?;
        let parameters = adapter.tensors().map(|(name, tensor)| Parameter::new(&name, tensor));
        trained.parameters.borrow_mut().extend(parameters);
        trained.adapters.borrow_mut().push(adapter.share());
        Ok(Some(adapter))
    }

    /// A stored tensor where it runs. In training it is a parameter of its own memory, in single precision.
    fn settle(&self, name: &str, stored: &Tensor, kind: Kind) -> Result<Tensor, LoadError> {
        let Some(trained) = self.trained else {
            return Ok(stored.f_to_device(self.device)?.f_to_kind(kind)?);
        };
        let mut tensor = Tensor::f_empty(stored.size(), (Kind::Float, self.device))?;
        tensor.f_copy_(stored)?;
        let tensor = tensor.f_set_requires_grad(trained.manner.lora.is_none())?;
        trained.parameters.borrow_mut().push(Parameter::new(name, tensor.shallow_clone()));
        Ok(tensor)
    }

    fn place(&self, weight: &Tensor, bias: &Tensor) -> Result<Linear, LoadError> {
        let weight = moved(weight, self.device, COPY_BYTES)?.f_to_kind(self.kind)?;
        let bias = bias.f_to_device(self.device)?.f_to_kind(self.kind)?;
        if self.device == tch::Device::Cpu {
            Ok(Linear::Packed(PackedLinear::pack(&weight, bias, TYPICAL_ROWS)?))
        } else {
            Ok(Linear::Plain { weight, bias })
        }
    }
}

/// `tensor` on `device`, copied some rows at a time, of about `bytes` bytes.
fn moved(tensor: &Tensor, device: tch::Device, bytes: i64) -> Result<Tensor, LoadError> {
    if tensor.device() == device {
        return Ok(tensor.f_to_device(device)?);
    }
    copied(tensor, device, bytes)
}

fn copied(tensor: &Tensor, device: tch::Device, bytes: i64) -> Result<Tensor, LoadError> {
    let copy = Tensor::f_empty(tensor.size(), (tensor.kind(), device))?;
    let rows = tensor.size().first().copied().unwrap_or(0);
    let width = i64::try_from(tensor.kind().elt_size_in_bytes()).unwrap_or(1);
    let row = width * i64::try_from(tensor.numel()).unwrap_or(0) / rows.max(1);
    let part = (bytes / row.max(1)).max(1);
    let mut start = 0;
    while start < rows {
        let count = part.min(rows - start);
        copy.f_narrow(0, start, count)?.f_copy_(&tensor.f_narrow(0, start, count)?)?;
        start += count;
    }
    Ok(copy)
}

/// `activation(x W^T + b)`.
#[derive(Debug)]
pub(crate) enum Linear {
    Packed(PackedLinear),
    Plain {
        weight: Tensor,
        bias: Tensor,
    },
    /// Layers in training that share their input: outputs side by side, of the kind that products are of.
    Open {
        parts: Vec<Parts>,
        kind: Kind,
    },
}

/// A linear layer's parameters, open to gradients.
#[derive(Debug)]
pub(crate) struct Parts {
    weight: Tensor,
    bias: Tensor,
    adapter: Option<Adapter>,
    as_pytorch: bool,
}

impl Parts {
    /// In the input's kind; gradients reach the parameters in single precision.
    fn forward(&self, input: &Tensor, dropout: &Dropout) -> Result<Tensor, RunError> {
        let (weight, bias) = (self.weight.f_to_kind(input.kind())?, self.bias.f_to_kind(input.kind())?);
        let output = if self.as_pytorch {
            input.f_linear(&weight, Some(&bias))?
        } else {
            linear(input, &weight, Some(&bias))?
        };
        match &self.adapter {
            Some(adapter) => Ok(output.f_add(&adapter.forward(input, dropout)?)?),
            None => Ok(output),
        }
    }
}

impl Linear {
    /// `[rows, in]` to `[rows, out]`.
    pub(crate) fn forward(
        &self,
        input: &Tensor,
        activation: Activation,
        dropout: &Dropout,
    ) -> Result<Tensor, RunError> {
        let output = match self {
            Self::Packed(packed) => return Ok(packed.forward(input, activation)?),
            Self::Plain { weight, bias } => input.f_linear(weight, Some(bias))?,
            Self::Open { parts, kind } => {
                let input = input.f_to_kind(*kind)?;
                let outputs = parts.iter().map(|part| part.forward(&input, dropout));
                match <[Tensor; 1]>::try_from(outputs.collect::<Result<Vec<_>, _>>()?) {
                    Ok([only]) => only,
                    Err(outputs) => Tensor::f_cat(&outputs, 1)?,
                }
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_in_parts_is_a_copy() {
        let numbers: Vec<f32> = (0..35_u8).map(f32::from).collect();
        let tensor = Tensor::from_slice(&numbers).reshape([7, 5]);
        for bytes in [1, 20, 41, 60, 1 << 20] {
            let copy = copied(&tensor, tch::Device::Cpu, bytes).unwrap();
            assert_eq!(Vec::<f32>::try_from(copy.reshape([35])).unwrap(), numbers, "{bytes}");
        }
        assert_eq!(copied(&tensor.narrow(0, 0, 0), tch::Device::Cpu, 1).unwrap().size(), [0, 5]);
    }
}
