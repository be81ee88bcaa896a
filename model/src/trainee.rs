//! A model that learns: the bodies and heads that serve, over parameters that are open to gradients.
//!
//! It runs without padding, as in serving: linear layers see `[tokens, hidden]`, attention sees sequences. What is
//! laid out by `[sequences, width]` comes only where a loss needs it. Parameters go by the names that they have in
//! the checkpoint's files, and are saved under them beside everything else that the files hold.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::{Kind, TchError, Tensor};
use torch_ext::Activation;

use crate::adapter::{self, Adapter, Lora};
use crate::body::{Body, Trail};
use crate::config::{Config, Family};
use crate::device::Device;
use crate::dropout::Dropout;
use crate::error::{LoadError, RunError};
use crate::head::{Classifier, Head};
use crate::layers::{Linear, Loader, Trained};
use crate::layout::Layout;
use crate::modules::Pooling;
use crate::saved::{self, Saved};
use crate::sequence::Sequence;
use crate::weights::{HEADS, Weights};

/// A tensor that training may move.
#[derive(Debug)]
pub struct Parameter {
    name: String,
    tensor: Tensor,
}

impl Parameter {
    pub(crate) fn new(name: &str, tensor: Tensor) -> Self {
        Self { name: name.to_owned(), tensor }
    }

    /// As in the checkpoint's files, such as `encoder.layer.0.output.dense.weight`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value, f32: a handle on the memory that the model computes with.
    pub fn tensor(&self) -> Tensor {
        self.tensor.shallow_clone()
    }

    /// Takes it out of training: no gradient reaches it.
    ///
    /// # Errors
    /// As libtorch has it.
    pub fn freeze(&self) -> Result<(), RunError> {
        let _ = self.tensor.f_set_requires_grad(false)?;
        Ok(())
    }
}

/// What a model learns to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// One vector per text.
    Dense,
    /// Bge-m3's three: one vector per text, a weight per token, a vector per token.
    Unified,
    /// One logit per pair.
    Score,
}

/// How a model is trained; by default whole, in single precision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manner {
    /// Adapters that are trained while all else stays as it is.
    pub lora: Option<Lora>,
    /// What the body's matrix products are computed in.
    pub products: Products,
    /// Whether layers are run again for their gradients, and only what each one reads is kept until then.
    pub recompute: bool,
    /// Whether linear layers round as PyTorch's do, for the replay of a recorded run; oneDNN's are faster.
    pub as_pytorch: bool,
}

/// What linear layers and attention compute in. Weights, sums of layers, normalisations, heads and gradients of weights
/// are in single precision. Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// Half precision: small gradients become 0 unless the loss is multiplied up.
    F16,
}

impl Products {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

/// How a batch is laid out. The results are the same but for rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Laying {
    /// Without padding.
    EndToEnd,
    /// Every sequence padded to `width`, as the reference does it: where a replay shall round as it does.
    Padded {
        /// In tokens.
        width: usize,
    },
}

#[derive(Debug)]
enum Heads {
    None,
    Unified { sparse: Linear, multi: Linear },
    Classify(Head),
}

/// A model in training. It is used by one thread at a time.
#[derive(Debug)]
pub struct Trainee {
    body: Body,
    heads: Heads,
    parameters: Vec<Parameter>,
    adapters: Vec<Adapter>,
    weights: Weights,
    dropout: Dropout,
    device: tch::Device,
    recompute: bool,
}

/// The vectors of all tokens of a batch, with their graph.
#[derive(Debug)]
pub struct Hidden {
    /// `[tokens, hidden]`, in laid-out order.
    vectors: Tensor,
    layout: Layout,
    /// In place of the graph.
    trail: Option<Trail>,
}

impl Trainee {
    /// Reads the architecture from the file `config` and the weights from the directory `weights`.
    ///
    /// # Errors
    /// A [`LoadError`] that names the file and the tensor.
    pub fn load(config: &Path, weights: &Path, task: Task, device: Device) -> Result<Self, LoadError> {
        Self::load_for(config, weights, (task, &Manner::default()), device)
    }

    /// As [`Trainee::load`], to be trained in a manner of its own. Adapters are drawn from libtorch's generator, and add
    /// nothing yet; beside them nothing is open to gradients.
    ///
    /// # Errors
    /// As [`Trainee::load`]; [`LoadError::Unsupported`] where an adapter's layer is not there.
    pub fn load_for(
        config: &Path,
        weights: &Path,
        (task, manner): (Task, &Manner),
        device: Device,
    ) -> Result<Self, LoadError> {
        let config = Config::load(config)?;
        let files = Weights::open_for(weights, task)?;
        let device = device.torch();
        let trained = Trained { manner, parameters: RefCell::default(), adapters: RefCell::default() };
        let loader = Loader { weights: &files, device, kind: Kind::Float, trained: Some(&trained) };
        // Parameters are noted in the reference's order: sums over all of them round by it.
        let heads = || Heads::load(&loader, &config, task);
        let heads_first = task == Task::Score && config.family == Family::XlmRoberta;
        let early = if heads_first { Some(heads()?) } else { None };
        let body = Body::load(&loader, &config)?;
        let heads = early.map_or_else(heads, Ok)?;
        let (parameters, adapters) = (trained.parameters.into_inner(), trained.adapters.into_inner());
        let unmet = manner.lora.as_ref().map_or_else(Vec::new, |lora| lora.unmet(&adapters));
        if !unmet.is_empty() {
            let what = format!("no linear layer's name ends in {}", unmet.join(", or in "));
            return Err(LoadError::unsupported(weights, what));
        }
        let adapted = manner.lora.as_ref().map_or(0.0, |lora| lora.dropout);
        let dropout = Dropout { adapters: adapted, ..config.dropout };
        let recompute = manner.recompute;
        Ok(Self { body, heads, parameters, adapters, weights: files, dropout, device, recompute })
    }

    /// All parameters of the body and of the heads of its task.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What the checkpoint's configuration says that it is trained with, and its adapters.
    #[must_use]
    pub fn dropout(&self) -> Dropout {
        self.dropout
    }

    /// Where it runs.
    #[must_use]
    pub fn device(&self) -> tch::Device {
        self.device
    }

    /// Runs the body over a batch.
    ///
    /// # Errors
    /// [`RunError::OutOfMemory`], for which a smaller batch may do, or [`RunError::Failed`].
    pub fn hidden(&self, batch: &[&Sequence], laying: Laying, dropout: &Dropout) -> Result<Hidden, RunError> {
        if batch.iter().any(|sequence| sequence.tokens() == 0) || batch.is_empty() {
            return Err(RunError::Failed("a batch of sequences of at least one token is wanted".into()));
        }
        let layout = match laying {
            Laying::EndToEnd => Layout::new(batch),
            Laying::Padded { width } => Layout::padded(batch, width),
        };
        if !self.recompute {
            return Ok(Hidden { vectors: self.body.forward(&layout, dropout)?, layout, trail: None });
        }
        let (vectors, trail) = self.body.forward_on_trail(&layout, dropout)?;
        Ok(Hidden { vectors: vectors.f_set_requires_grad(true)?, layout, trail: Some(trail) })
    }

    /// Sends the gradient that has come to a batch's vectors down to the parameters, where they are recomputed; where
    /// they are not, their graph has done so.
    ///
    /// # Errors
    /// As [`Trainee::hidden`].
    pub fn send_down(&self, hidden: &Hidden) -> Result<(), RunError> {
        let Some(trail) = &hidden.trail else { return Ok(()) };
        let gradient = hidden.vectors.f_grad()?;
        // What nothing depends on has none.
        if gradient.defined() { self.body.send_down(&hidden.layout, trail, gradient) } else { Ok(()) }
    }

    /// Pooled vectors, not normalised, `[sequences, hidden]` in the batch's order.
    ///
    /// # Errors
    /// As [`Trainee::hidden`].
    pub fn pooled(&self, hidden: &Hidden, pooling: Pooling) -> Result<Tensor, RunError> {
        Head::Pool(pooling).forward(&hidden.vectors, &hidden.layout, &Dropout::NONE)
    }

    /// A pair's logit, `[sequences]` in the batch's order.
    ///
    /// # Errors
    /// [`RunError::Failed`] where its task is not [`Task::Score`].
    pub fn logits(&self, hidden: &Hidden, dropout: &Dropout) -> Result<Tensor, RunError> {
        let Heads::Classify(head) = &self.heads else { return Err(not_its_task("scores pairs")) };
        Ok(head.forward(&hidden.vectors, &hidden.layout, dropout)?.f_squeeze_dim(1)?)
    }

    /// A weight per token, at least 0, `[sequences, width]` in the batch's order; 0 behind a sequence's end.
    ///
    /// # Errors
    /// [`RunError::Failed`] where its task is not [`Task::Unified`].
    pub fn token_weights(&self, hidden: &Hidden, width: usize) -> Result<Tensor, RunError> {
        let Heads::Unified { sparse, .. } = &self.heads else { return Err(not_its_task("weighs tokens")) };
        let weights = sparse.forward(&hidden.vectors, Activation::Relu, &Dropout::NONE)?; // [tokens, 1]
        Ok(hidden.padded(&weights, 0..width)?.f_squeeze_dim(2)?)
    }

    /// A vector per token behind the first, not normalised, `[sequences, width - 1, hidden]` in the batch's order;
    /// zeros behind a sequence's end.
    ///
    /// # Errors
    /// [`RunError::Failed`] where its task is not [`Task::Unified`].
    pub fn token_vectors(&self, hidden: &Hidden, width: usize) -> Result<Tensor, RunError> {
        let Heads::Unified { multi, .. } = &self.heads else { return Err(not_its_task("has token vectors")) };
        let read = |rows: &Tensor| multi.forward(rows, Activation::None, &Dropout::NONE);
        if let Some(behind) = hidden.behind_first(width)? {
            let (sequences, _, n) = behind.size3()?;
            let vectors = read(&behind.f_reshape([-1, n])?)?.f_view([sequences, as_index(width) - 1, -1])?;
            return Ok(vectors.f_mul(&hidden.there(1..width)?)?);
        }
        hidden.padded(&read(&hidden.vectors)?, 1..width)
    }

    /// Whether adapters are what is trained.
    #[must_use]
    pub fn is_adapted(&self) -> bool {
        !self.adapters.is_empty()
    }

    /// Writes the adapters alone as a `*.safetensors` file.
    ///
    /// # Errors
    /// [`LoadError::Format`] when the file cannot be written.
    pub fn save_adapters(&self, path: &Path) -> Result<(), LoadError> {
        adapter::save(&self.adapters, path)
    }

    /// Reads adapters that [`Trainee::save_adapters`] wrote.
    ///
    /// # Errors
    /// [`LoadError::Format`] where they are of other layers or sizes.
    pub fn read_adapters(&self, path: &Path) -> Result<(), LoadError> {
        adapter::read(&self.adapters, path)
    }

    /// Writes every tensor of the checkpoint's files, trained ones as they are now, as one `*.safetensors` file. What
    /// adapters add is merged into their layers' weights.
    ///
    /// # Errors
    /// [`LoadError::Read`] when the file cannot be written, [`LoadError::Torch`].
    pub fn save(&self, path: &Path) -> Result<(), LoadError> {
        let mut trained: HashMap<String, Tensor> =
            self.parameters.iter().map(|parameter| (parameter.name.clone(), parameter.tensor())).collect();
        for adapter in &self.adapters {
            if let Some(weight) = trained.get_mut(&adapter.weight()) {
                *weight = adapter.merged(weight)?;
            }
        }
        let views = self.weights.stored().into_iter().map(|(name, stored)| {
            let view = match trained.get(name) {
                Some(tensor) => Saved::of(tensor)?,
                None => Saved::stored(stored),
            };
            Ok((name, view))
        });
        saved::write(path, views.collect::<Result<Vec<_>, TchError>>()?)
    }
}

impl Trainee {
    /// Writes bge-m3's heads as they are now to `dir`, as the reference reads them; answers the files. A model of another
    /// task has none.
    ///
    /// # Errors
    /// [`LoadError::Read`] when a file cannot be written, [`LoadError::Torch`].
    pub fn save_heads(&self, dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
        let Heads::Unified { .. } = &self.heads else { return Ok(Vec::new()) };
        let save = |head: &str| {
            let part = |field: &str| {
                let name = format!("{head}.{field}");
                let parameter = self.parameters.iter().find(|parameter| parameter.name == name);
                let missing = || LoadError::MissingTensor { path: dir.to_owned(), tensor: name.clone() };
                parameter.map(|parameter| &parameter.tensor).ok_or_else(missing)
            };
            saved::write_head(dir, head, part("weight")?, part("bias")?)
        };
        HEADS.into_iter().map(save).collect()
    }
}

fn not_its_task(what: &str) -> RunError {
    RunError::Failed(format!("this model was not loaded as one that {what}"))
}

impl Heads {
    fn load(loader: &Loader<'_>, config: &Config, task: Task) -> Result<Self, LoadError> {
        let hidden = config.hidden;
        Ok(match task {
            Task::Dense => Self::None,
            Task::Unified => {
                let multi = loader.head("colbert_linear", [hidden, hidden])?;
                Self::Unified { multi, sparse: loader.head("sparse_linear", [1, hidden])? }
            }
            Task::Score => Self::Classify(Head::Classify(Classifier::load(loader, config)?)),
        })
    }
}

impl Hidden {
    /// Of a batch that is laid out in rows of `width`, what is behind each first token, `[sequences, width - 1, hidden]`:
    /// the reference sums gradients over no more.
    fn behind_first(&self, width: usize) -> Result<Option<Tensor>, RunError> {
        let Layout { starts, places_of, .. } = &self.layout;
        let width = as_index(width);
        let in_rows = places_of.iter().zip(0..).all(|(&place, row)| place == row)
            && starts.iter().zip(0..).all(|(&start, row)| start == row * width)
            && self.vectors.size2()?.0 == as_index(places_of.len()) * width;
        if !in_rows || width < 2 {
            return Ok(None);
        }
        let (_, n) = self.vectors.size2()?;
        Ok(Some(self.vectors.f_view([-1, width, n])?.f_narrow(1, 1, width - 1)?))
    }

    /// 1 at the places that a sequence has, else 0, `[sequences, places, 1]`, for a batch in its order.
    fn there(&self, places: std::ops::Range<usize>) -> Result<Tensor, RunError> {
        let Layout { lengths, .. } = &self.layout;
        let of =
            |&length: &i64| places.clone().map(move |place| f32::from(u8::from(as_index(place) < length)));
        let there: Vec<f32> = lengths.iter().flat_map(of).collect();
        let there =
            Tensor::f_from_slice(&there)?.f_view([as_index(lengths.len()), as_index(places.len()), 1])?;
        Ok(there.f_to_device(self.vectors.device())?.f_to_kind(self.vectors.kind())?)
    }

    /// `[tokens, n]` in laid-out order to `[sequences, places, n]` in the batch's order, zeros where a sequence has
    /// no such place.
    fn padded(&self, rows: &Tensor, places: std::ops::Range<usize>) -> Result<Tensor, RunError> {
        let Layout { starts, lengths, places_of, .. } = &self.layout;
        let (sequences, columns) = (as_index(places_of.len()), as_index(places.len()));
        let nothing = starts.last().copied().unwrap_or(0); // The row of zeros behind the last token's.
        let row = |sequence: i64, place: usize| {
            let sequence = usize::try_from(sequence).unwrap_or(0);
            let place = as_index(place);
            if place < lengths[sequence] { starts[sequence] + place } else { nothing }
        };
        let index: Vec<i64> = places_of
            .iter()
            .flat_map(|&sequence| places.clone().map(move |place| row(sequence, place)))
            .collect();
        let index = Tensor::f_from_slice(&index)?.f_to_device(rows.device())?;
        let n = rows.size().last().copied().unwrap_or(0);
        let zeros = Tensor::f_zeros([1, n], (rows.kind(), rows.device()))?;
        let padded = Tensor::f_cat(&[rows, &zeros], 0)?.f_index_select(0, &index)?;
        Ok(padded.f_view([sequences, columns, n])?)
    }
}

fn as_index(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Rows of length 1, as `torch.nn.functional.normalize` over the last dimension, with their graph.
///
/// # Errors
/// As libtorch has it.
pub fn normalized(rows: &Tensor) -> Result<Tensor, TchError> {
    let lengths = rows.f_norm_scalaropt_dim(2.0, [-1].as_slice(), true)?.f_clamp_min(1e-12)?;
    rows.f_div(&lengths.f_expand_as(rows)?)
}

/// Sets libtorch's generators, from which dropout is drawn.
pub fn seed(number: i64) {
    tch::manual_seed(number);
}
