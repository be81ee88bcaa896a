//! What is made of the vectors of all tokens: one vector, or one logit, per sequence.

use tch::{Kind, Tensor};
use torch_ext::Activation;

use crate::config::{Config, Family};
use crate::dropout::Dropout;
use crate::error::{LoadError, RunError};
use crate::layers::{Linear, Loader};
use crate::layout::Layout;
use crate::modules::Pooling;

/// The last step of a model.
#[derive(Debug)]
pub(crate) enum Head {
    /// One vector per sequence, not normalised.
    Pool(Pooling),
    /// One logit per pair, from the first token's vector.
    Classify(Classifier),
}

/// A cross-encoder's last two layers.
#[derive(Debug)]
pub(crate) struct Classifier {
    family: Family,
    /// With a hyperbolic tangent behind it.
    dense: Linear,
    output: Linear,
}

impl Classifier {
    pub(crate) fn load(loader: &Loader<'_>, config: &Config) -> Result<Self, LoadError> {
        let hidden = config.hidden;
        let (dense, output) = match config.family {
            Family::Bert => ("bert.pooler.dense", "classifier"),
            Family::XlmRoberta => ("classifier.dense", "classifier.out_proj"),
        };
        let dense = loader.head(dense, [hidden, hidden])?;
        Ok(Self { family: config.family, dense, output: loader.head(output, [1, hidden])? })
    }

    /// First tokens' vectors `[sequences, hidden]` to logits `[sequences, 1]`.
    fn forward(&self, first: Tensor, dropout: &Dropout) -> Result<Tensor, RunError> {
        let first = match self.family {
            Family::Bert => first,
            Family::XlmRoberta => dropout.classifier(first)?,
        };
        let dense = dropout.classifier(self.dense.forward(&first, Activation::Tanh, dropout)?)?;
        self.output.forward(&dense, Activation::None, dropout)
    }
}

impl Head {
    /// `[tokens, hidden]` in laid-out order to `[sequences, width]` in the order given, single precision.
    pub(crate) fn forward(
        &self,
        hidden: &Tensor,
        layout: &Layout,
        dropout: &Dropout,
    ) -> Result<Tensor, RunError> {
        let rows = match self {
            Self::Pool(pooling) => pool(hidden, layout, *pooling)?,
            Self::Classify(classifier) => classifier.forward(pool(hidden, layout, Pooling::Cls)?, dropout)?,
        };
        let order = Tensor::f_from_slice(&layout.places_of)?.f_to_device(hidden.device())?;
        Ok(rows.f_index_select(0, &order)?)
    }
}

/// `[tokens, hidden]` to `[sequences, hidden]`, both in laid-out order.
fn pool(hidden: &Tensor, layout: &Layout, pooling: Pooling) -> Result<Tensor, RunError> {
    let sequences = layout.starts.len() - 1;
    let rows = match pooling {
        Pooling::Cls => layout.starts[..sequences].to_vec(),
        Pooling::Last => {
            layout.starts.iter().zip(&layout.lengths).map(|(at, tokens)| at + tokens - 1).collect()
        }
        Pooling::Mean => return mean(hidden, layout),
    };
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(hidden.device())?;
    Ok(hidden.f_index_select(0, &rows)?.f_to_kind(Kind::Float)?)
}

fn mean(hidden: &Tensor, layout: &Layout) -> Result<Tensor, RunError> {
    let rows: Vec<i64> = layout.groups.iter().map(|group| group.count * group.tokens).collect();
    let parts = hidden.f_split_with_sizes(&rows, 0)?;
    let means = parts.iter().zip(&layout.groups).map(|(rows, group)| -> Result<Tensor, RunError> {
        let rows = rows.f_view([group.count, group.tokens, -1])?; // [count, tokens, hidden]
        if layout.is_ragged(group) {
            return ragged_mean(&rows, layout.lengths_of(group));
        }
        Ok(rows.f_mean_dim(1, false, Kind::Float)?)
    });
    Ok(Tensor::f_cat(&means.collect::<Result<Vec<_>, _>>()?, 0)?)
}

/// The mean over the first so many of each sequence's rows, `[count, tokens, hidden]` to `[count, hidden]`.
fn ragged_mean(rows: &Tensor, lengths: &[i64]) -> Result<Tensor, RunError> {
    let (_, tokens, _) = rows.size3()?;
    let lengths = Tensor::f_from_slice(lengths)?.f_to_device(rows.device())?.f_unsqueeze(1)?; // [count, 1]
    let places = Tensor::f_arange(tokens, (Kind::Int64, rows.device()))?;
    let there = places.f_less_tensor(&lengths)?.f_to_kind(Kind::Float)?.f_unsqueeze(2)?; // [count, tokens, 1]
    let sums = rows.f_mul(&there)?.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?;
    Ok(sums.f_div(&lengths.f_to_kind(Kind::Float)?)?)
}
