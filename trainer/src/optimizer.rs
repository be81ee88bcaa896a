//! AdamW over a model's parameters, with the gradients' common norm held down first.

use std::collections::HashMap;
use std::path::Path;

use model::Parameter;
use tch::{Kind, TchError, Tensor};
use torch_ext::{AdamW, Moved, TorchError};

use crate::error::TrainError;

/// What `transformers` sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Decay of the running means of gradients and of their squares.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Share taken off weights per unit of learning rate; not off biases and normalisations.
    pub weight_decay: f64,
    /// The norm that all gradients together are cut down to; `None` leaves them.
    pub max_norm: Option<f64>,
}

/// A parameter and its running means.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
}

/// The optimiser of a model's parameters.
#[derive(Debug)]
pub struct Optimizer {
    slots: Vec<Slot>,
    settings: Settings,
}

/// Whether weight decay takes of a parameter: weights and tables, not biases and normalisations.
#[must_use]
pub fn decays(name: &str) -> bool {
    let name = name.to_lowercase();
    !["bias", "layernorm", "rmsnorm", "_norm"].iter().any(|part| name.contains(part))
}

impl Optimizer {
    /// An optimiser that has taken no step. Parameters that are frozen are not its.
    ///
    /// # Errors
    /// [`TchError`] when there is no memory.
    pub fn new(parameters: &[Parameter], settings: Settings) -> Result<Self, TchError> {
        let slot = |parameter: &Parameter| -> Result<Slot, TchError> {
            let tensor = parameter.tensor();
            let zeros = || Tensor::f_zeros(tensor.size(), (Kind::Float, tensor.device()));
            Ok(Slot {
                name: parameter.name().to_owned(),
                first: zeros()?,
                second: zeros()?,
                step: Tensor::f_zeros([0; 0], (Kind::Float, tensor.device()))?,
                parameter: tensor,
            })
        };
        let open = parameters.iter().filter(|parameter| parameter.tensor().requires_grad());
        Ok(Self { slots: open.map(slot).collect::<Result<_, _>>()?, settings })
    }

    /// The parameters that have a gradient, each with it.
    ///
    /// # Errors
    /// [`TchError`] as libtorch has it.
    pub fn gradients(&self) -> Result<Vec<(&str, Tensor)>, TchError> {
        let mut gradients = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            gradients.extend(slot.gradient()?.map(|gradient| (slot.name.as_str(), gradient)));
        }
        Ok(gradients)
    }

    /// Divides the gradients by `factor`. Whether all of them are finite.
    ///
    /// # Errors
    /// [`TchError`] as libtorch has it.
    pub fn unscale(&self, factor: f64) -> Result<bool, TchError> {
        let _guard = tch::no_grad_guard();
        let mut all = true;
        for (_, mut gradient) in self.gradients()? {
            let _ = gradient.f_mul_scalar_(factor.recip())?;
            all &= gradient.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0;
        }
        Ok(all)
    }

    /// Cuts the gradients down, moves the parameters by them at `rate`, and clears them. Returns the gradients' norm
    /// before it was cut down.
    ///
    /// # Errors
    /// [`TorchError`] as libtorch has it.
    pub fn step(&mut self, rate: f64) -> Result<f64, TorchError> {
        let _guard = tch::no_grad_guard();
        let norm = self.cut_down().map_err(failed)?;
        let Settings { betas, epsilon, weight_decay, .. } = self.settings;
        for (decayed, decay) in [(true, weight_decay), (false, 0.0)] {
            let slots = self.slots.iter().filter(|slot| decays(&slot.name) == decayed);
            let gradients = slots.map(|slot| Ok((slot, slot.gradient()?)));
            let gradients: Vec<_> = gradients.collect::<Result<_, TchError>>().map_err(failed)?;
            let moved = gradients.iter().filter_map(|(slot, gradient)| {
                let Slot { parameter, first, second, step, .. } = slot;
                gradient.as_ref().map(|gradient| Moved { parameter, gradient, first, second, step })
            });
            let moved: Vec<_> = moved.collect();
            // Of adapters all decay.
            if !moved.is_empty() {
                AdamW { rate, betas, decay, epsilon }.step(&moved)?;
            }
        }
        self.clear().map_err(failed)?;
        Ok(norm)
    }

    /// Writes moments and step numbers as a `*.safetensors` file.
    ///
    /// # Errors
    /// [`TrainError::Format`] when it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TrainError> {
        let named = self.slots.iter().flat_map(Slot::moments);
        let named: Vec<(String, Tensor)> =
            named.map(|(name, tensor)| (name, tensor.shallow_clone())).collect();
        Tensor::write_safetensors(&named, path).map_err(|error| TrainError::format(path, error))
    }

    /// Reads what [`Optimizer::save`] wrote.
    ///
    /// # Errors
    /// [`TrainError::Format`] when it is of other parameters.
    pub fn load(&mut self, path: &Path) -> Result<(), TrainError> {
        let read = Tensor::read_safetensors(path).map_err(|error| TrainError::format(path, error))?;
        let read: HashMap<String, Tensor> = read.into_iter().collect();
        for (name, mut moment) in
            self.slots.iter().flat_map(Slot::moments).map(|(n, t)| (n, t.shallow_clone()))
        {
            let Some(stored) = read.get(&name).filter(|stored| stored.size() == moment.size()) else {
                return Err(TrainError::format(path, format!("{name} is missing, or of another shape")));
            };
            moment.f_copy_(stored)?;
        }
        Ok(())
    }

    /// As `torch.nn.utils.clip_grad_norm_`: the norm of the norms, and a factor of at most 1.
    fn cut_down(&self) -> Result<f64, TchError> {
        let mut gradients: Vec<Tensor> =
            self.gradients()?.into_iter().map(|(_, gradient)| gradient).collect();
        if gradients.is_empty() {
            return Ok(0.0);
        }
        let norms = gradients.iter().map(Tensor::f_norm).collect::<Result<Vec<_>, _>>()?;
        let norm = Tensor::f_stack(&norms, 0)?.f_norm()?;
        if let Some(max) = self.settings.max_norm {
            let factor = norm.f_add_scalar(1e-6)?.f_reciprocal()?.f_mul_scalar(max)?.f_clamp_max(1.0)?;
            for gradient in &mut gradients {
                let _ = gradient.f_mul_(&factor)?;
            }
        }
        norm.f_double_value(&[])
    }

    /// Sets the gradients to 0.
    ///
    /// # Errors
    /// [`TchError`] as libtorch has it.
    pub fn clear(&self) -> Result<(), TchError> {
        let _guard = tch::no_grad_guard();
        for (_, mut gradient) in self.gradients()? {
            let _ = gradient.f_zero_()?;
        }
        Ok(())
    }
}

impl Slot {
    fn moments(&self) -> [(String, &Tensor); 3] {
        let Self { name, first, second, step, .. } = self;
        [("first", first), ("second", second), ("step", step)]
            .map(|(moment, tensor)| (format!("{moment}.{name}"), tensor))
    }

    fn gradient(&self) -> Result<Option<Tensor>, TchError> {
        let gradient = self.parameter.f_grad()?;
        if gradient.defined() { Ok(Some(gradient.f_contiguous()?)) } else { Ok(None) }
    }
}

#[allow(clippy::needless_pass_by_value)] // `map_err` hands errors over by value.
fn failed(error: TchError) -> TorchError {
    TorchError::Failed(error.to_string().lines().next().unwrap_or_default().to_owned())
}
