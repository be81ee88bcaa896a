//! The bidirectional encoder of BERT and XLM-RoBERTa, over `[tokens, hidden]`.
//!
//! Source: Devlin et al. 2018, arXiv:1810.04805, section 3; layer norm after each residual sum, as published.

use tch::{Kind, Tensor};
use torch_ext::{Activation, varlen_attention};

use crate::config::{Config, Family, HiddenActivation};
use crate::dropout::Dropout;
use crate::error::{LoadError, RunError};
use crate::layers::{Linear, Loader, Norm, Table};
use crate::layout::{Group, Layout};

/// Embeddings and layers.
#[derive(Debug)]
pub(crate) struct Body {
    embeddings: Embeddings,
    layers: Vec<Layer>,
    device: tch::Device,
    kind: Kind,
}

/// Sum of the vectors of a token, its place and its segment, in single precision.
#[derive(Debug)]
struct Embeddings {
    words: Table,
    positions: Table,
    segments: Table,
    norm: Norm,
    first_position: i64,
}

#[derive(Debug)]
struct Layer {
    attention: Attention,
    attention_norm: Norm,
    up: Linear,
    activation: Activation,
    down: Linear,
    output_norm: Norm,
}

#[derive(Debug)]
struct Attention {
    /// Query, key and value side by side: one product instead of three.
    qkv: Linear,
    output: Linear,
    heads: i64,
}

/// What all layers of one pass share.
#[derive(Debug)]
struct Pass<'a> {
    layout: &'a Layout,
    /// For the attention that takes all sequences at once.
    starts: Option<Tensor>,
    /// For each group, which of its rows are tokens; `None` where all are.
    masks: Vec<Option<Tensor>>,
    dropout: &'a Dropout,
}

/// What is left of a pass without a graph, from which its layers can be run again.
#[derive(Debug)]
pub(crate) struct Trail {
    /// What each layer read, `[tokens, hidden]`.
    inputs: Vec<Tensor>,
    /// Of what the embeddings dropped, and then each layer.
    seeds: Vec<i64>,
    dropout: Dropout,
}

/// `[count, 1, 1, tokens]`, true where there is a token.
fn mask(layout: &Layout, group: &Group, device: tch::Device) -> Result<Option<Tensor>, RunError> {
    if !layout.is_ragged(group) {
        return Ok(None);
    }
    let lengths = Tensor::f_from_slice(layout.lengths_of(group))?.f_view([group.count, 1, 1, 1])?;
    let places = Tensor::f_arange(group.tokens, (Kind::Int64, tch::Device::Cpu))?;
    Ok(Some(places.f_less_tensor(&lengths)?.f_to_device(device)?))
}

/// Attention whose weights are thinned, of query, key and value `[count, heads, tokens, width]` each: libtorch's is fused
/// on a processor only where nothing is dropped.
fn thinned_attention(
    [query, key, value]: [&Tensor; 3],
    mask: Option<&Tensor>,
    dropout: &Dropout,
) -> Result<Tensor, RunError> {
    let width = query.size().last().copied().unwrap_or(1);
    #[allow(clippy::cast_precision_loss)] // Small.
    let scale = 1.0 / (width as f64).sqrt();
    let mut scores = query.f_mul_scalar(scale)?.f_matmul(&key.f_transpose(2, 3)?)?;
    if let Some(mask) = mask {
        scores = scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?;
    }
    let weights = dropout.attention(scores.f_softmax(-1, scores.kind())?)?; // [count, heads, tokens, tokens]
    Ok(weights.f_matmul(value)?)
}

impl Body {
    /// Loads every tensor of the body, one layer in memory at a time.
    pub(crate) fn load(loader: &Loader<'_>, config: &Config) -> Result<Self, LoadError> {
        let embeddings = Embeddings::load(loader, config)?;
        let layers = (0..config.layers).map(|i| {
            let layer = Layer::load(loader, config, i);
            loader.weights.forget();
            layer
        });
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Self { embeddings, layers, device: loader.device, kind: loader.kind })
    }

    /// Vectors of all tokens in laid-out order, `[tokens, hidden]`.
    pub(crate) fn forward(&self, layout: &Layout, dropout: &Dropout) -> Result<Tensor, RunError> {
        let mut hidden = self.embed(layout, dropout)?; // [tokens, hidden]
        let pass = self.pass(layout, dropout)?;
        for layer in &self.layers {
            hidden = layer.forward(hidden, &pass)?;
        }
        Ok(hidden)
    }

    /// As [`Body::forward`], without a graph. What is dropped goes by seeds that are drawn from libtorch's generator.
    pub(crate) fn forward_on_trail(
        &self,
        layout: &Layout,
        dropout: &Dropout,
    ) -> Result<(Tensor, Trail), RunError> {
        let _guard = tch::no_grad_guard();
        let count = i64::try_from(self.layers.len() + 1).unwrap_or(i64::MAX);
        let seeds = Tensor::f_randint(i64::MAX, [count], (Kind::Int64, tch::Device::Cpu))?;
        let seeds = Vec::<i64>::try_from(seeds)?;
        tch::manual_seed(seeds[0]);
        let mut hidden = self.embed(layout, dropout)?; // [tokens, hidden]
        let pass = self.pass(layout, dropout)?;
        let mut inputs = Vec::with_capacity(self.layers.len());
        for (layer, &seed) in self.layers.iter().zip(&seeds[1..]) {
            inputs.push(hidden.shallow_clone());
            tch::manual_seed(seed);
            hidden = layer.forward(hidden, &pass)?;
        }
        Ok((hidden, Trail { inputs, seeds, dropout: *dropout }))
    }

    /// Sends the gradient of a pass's result down, the last layer first, each run again to have its graph.
    ///
    /// Source: Chen et al. 2016, arXiv:1604.06174, section 3, with a segment per layer.
    pub(crate) fn send_down(
        &self,
        layout: &Layout,
        trail: &Trail,
        mut gradient: Tensor,
    ) -> Result<(), RunError> {
        let pass = self.pass(layout, &trail.dropout)?;
        let layers = self.layers.iter().zip(&trail.inputs).zip(&trail.seeds[1..]);
        for ((layer, input), &seed) in layers.rev() {
            let input = input.f_detach()?.f_set_requires_grad(true)?;
            tch::manual_seed(seed);
            let output = layer.forward(input.shallow_clone(), &pass)?;
            output.f_mul(&gradient)?.f_sum(Kind::Float)?.f_backward()?;
            gradient = input.f_grad()?;
        }
        tch::manual_seed(trail.seeds[0]);
        let embedded = self.embed(layout, &trail.dropout)?;
        if embedded.requires_grad() {
            embedded.f_mul(&gradient)?.f_sum(Kind::Float)?.f_backward()?;
        }
        Ok(())
    }

    /// What the first layer reads, `[tokens, hidden]`.
    fn embed(&self, layout: &Layout, dropout: &Dropout) -> Result<Tensor, RunError> {
        let embedded = self.embeddings.forward(layout, self.device)?;
        Ok(dropout.hidden(embedded)?.f_to_kind(self.kind)?)
    }

    fn pass<'a>(&self, layout: &'a Layout, dropout: &'a Dropout) -> Result<Pass<'a>, RunError> {
        let masks = layout.groups.iter().map(|group| mask(layout, group, self.device));
        let masks = masks.collect::<Result<_, _>>()?;
        Ok(Pass { layout, starts: self.varlen_starts(layout)?, masks, dropout })
    }

    /// Whether its linear layers are oneDNN's.
    pub(crate) fn on_processor(&self) -> bool {
        self.device == tch::Device::Cpu
    }

    /// Where sequences start, for the attention that takes them all at once; `None` where it does not run.
    fn varlen_starts(&self, layout: &Layout) -> Result<Option<Tensor>, RunError> {
        if self.on_processor() || self.kind == Kind::Float {
            return Ok(None);
        }
        let starts = Tensor::f_from_slice(&layout.starts)?.f_to_kind(Kind::Int)?;
        Ok(Some(starts.f_to_device(self.device)?))
    }
}

impl Embeddings {
    fn load(loader: &Loader<'_>, config: &Config) -> Result<Self, LoadError> {
        let table = |name: &str, rows| loader.table(&format!("embeddings.{name}"), rows, config.hidden);
        let positions = || table("position_embeddings", config.positions);
        let words = table("word_embeddings", config.vocabulary)?;
        // Parameters are noted in the reference's order: sums over all of them round by it.
        let early = if config.family == Family::Bert { Some(positions()?) } else { None };
        let segments = table("token_type_embeddings", config.segments)?;
        let (hidden, epsilon) = (config.hidden, config.layer_norm_epsilon);
        let norm = loader.norm("embeddings.LayerNorm", hidden, Kind::Float, epsilon)?;
        let positions = early.map_or_else(positions, Ok)?;
        Ok(Self { words, positions, segments, norm, first_position: config.first_position })
    }

    fn forward(&self, layout: &Layout, device: tch::Device) -> Result<Tensor, RunError> {
        let rows = |table: &Table, indices: &[i64], offset: i64| -> Result<Tensor, RunError> {
            let indices = Tensor::f_from_slice(indices)?.f_to_device(device)?;
            let indices = if offset == 0 { indices } else { indices.f_add_scalar(offset)? };
            table.rows(&indices) // [tokens, hidden]
        };
        // In the order in which `transformers` adds them, so that sums round alike.
        let mut sum = rows(&self.words, &layout.ids, 0)?;
        let _ = sum.f_add_(&rows(&self.segments, &layout.segments, 0)?)?;
        let _ = sum.f_add_(&rows(&self.positions, &layout.places, self.first_position)?)?;
        self.words.forget();
        self.norm.forward(&sum)
    }
}

impl Layer {
    fn load(loader: &Loader<'_>, config: &Config, index: i64) -> Result<Self, LoadError> {
        let Config { hidden, intermediate, layer_norm_epsilon: epsilon, .. } = *config;
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Self {
            attention: Attention {
                qkv: loader.fused(&qkv, [hidden, hidden])?,
                output: loader.linear(&name("attention.output.dense"), [hidden, hidden])?,
                heads: config.heads,
            },
            attention_norm: loader.norm(&name("attention.output.LayerNorm"), hidden, loader.kind, epsilon)?,
            up: loader.linear(&name("intermediate.dense"), [intermediate, hidden])?,
            activation: match config.activation {
                HiddenActivation::Gelu => Activation::Gelu,
                HiddenActivation::Relu => Activation::Relu,
            },
            down: loader.linear(&name("output.dense"), [hidden, intermediate])?,
            output_norm: loader.norm(&name("output.LayerNorm"), hidden, loader.kind, epsilon)?,
        })
    }

    fn forward(&self, input: Tensor, pass: &Pass<'_>) -> Result<Tensor, RunError> {
        let attended = self.attention.forward(&input, pass)?;
        // Products may be of another kind than sums.
        let attended = pass.dropout.hidden_onto(&attended, &input)?; // [tokens, hidden]
        drop(input);
        let attended = self.attention_norm.forward(&attended)?;
        let wide = self.up.forward(&attended, self.activation, pass.dropout)?; // [tokens, intermediate]
        let output = self.down.forward(&wide, Activation::None, pass.dropout)?;
        self.output_norm.forward(&pass.dropout.hidden_onto(&output, &attended)?)
    }
}

impl Attention {
    fn forward(&self, input: &Tensor, pass: &Pass<'_>) -> Result<Tensor, RunError> {
        let qkv = self.qkv.forward(input, Activation::None, pass.dropout)?; // [tokens, 3 * hidden]
        let mixed = match &pass.starts {
            Some(starts) => self.at_once(&qkv, starts, pass.layout.longest())?,
            None => self.by_group(&qkv, pass)?,
        };
        self.output.forward(&mixed, Activation::None, pass.dropout)
    }

    /// One call for all sequences.
    fn at_once(&self, qkv: &Tensor, starts: &Tensor, longest: i64) -> Result<Tensor, RunError> {
        let parts = qkv.f_view([-1, 3, self.heads, self.width(qkv)])?; // [tokens, 3, heads, width]
        let part = |i| parts.f_select(1, i);
        let mixed = varlen_attention(&part(0)?, &part(1)?, &part(2)?, starts, longest)?;
        Ok(mixed.f_flatten(1, 2)?) // [tokens, hidden]
    }

    /// One call for each group of equal length.
    fn by_group(&self, qkv: &Tensor, pass: &Pass<'_>) -> Result<Tensor, RunError> {
        let groups = &pass.layout.groups;
        let rows: Vec<i64> = groups.iter().map(|group| group.count * group.tokens).collect();
        // Split once: the gradient of many cuts would be as many matrices of the whole size.
        let parts = qkv.f_split_with_sizes(&rows, 0)?;
        let mixed = parts
            .iter()
            .zip(groups)
            .zip(&pass.masks)
            .map(|((part, group), mask)| self.group(part, *group, mask.as_ref(), pass.dropout));
        match <[Tensor; 1]>::try_from(mixed.collect::<Result<Vec<_>, _>>()?) {
            Ok([only]) => Ok(only),
            Err(parts) => Ok(Tensor::f_cat(&parts, 0)?), // [tokens, hidden]
        }
    }

    fn group(
        &self,
        qkv: &Tensor,
        group: Group,
        mask: Option<&Tensor>,
        dropout: &Dropout,
    ) -> Result<Tensor, RunError> {
        let Group { count, tokens, .. } = group;
        let parts = qkv
            .f_view([count, tokens, 3, self.heads, self.width(qkv)])?
            .f_permute([2, 0, 3, 1, 4])? // [3, count, heads, tokens, width]
            .f_unbind(0)?;
        let parts = [&parts[0], &parts[1], &parts[2]];
        let (share, on_cuda) = (dropout.attention, qkv.device().is_cuda());
        let mixed = if share == 0.0 || on_cuda {
            let [query, key, value] = parts;
            Tensor::f_scaled_dot_product_attention(query, key, value, mask, share, false, None, false)?
        } else {
            thinned_attention(parts, mask, dropout)?
        }; // [count, heads, tokens, width]
        Ok(mixed.f_transpose(1, 2)?.f_reshape([count * tokens, -1])?)
    }

    /// Numbers per head.
    fn width(&self, qkv: &Tensor) -> i64 {
        qkv.size().last().map_or(0, |columns| columns / (3 * self.heads))
    }
}
