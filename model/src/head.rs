//! What is made of the vectors of all tokens: one vector, or one logit, per sequence.

use tch::{Kind, Tensor};
use torch_ext::Activation;

use crate::config::{Config, Family};
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
    Classify {
        /// With a hyperbolic tangent behind it.
        dense: Linear,
        output: Linear,
    },
}

impl Head {
    /// The classification head of a family.
    pub(crate) fn classifier(loader: &Loader<'_>, config: &Config) -> Result<Self, LoadError> {
        let hidden = config.hidden;
        let (dense, output) = match config.family {
            Family::Bert => ("bert.pooler.dense", "classifier"),
            Family::XlmRoberta => ("classifier.dense", "classifier.out_proj"),
        };
        let dense = loader.head(dense, [hidden, hidden])?;
        Ok(Self::Classify { dense, output: loader.head(output, [1, hidden])? })
    }

    /// `[tokens, hidden]` in laid-out order to `[sequences, width]` in the order given, single precision.
    pub(crate) fn forward(&self, hidden: &Tensor, layout: &Layout) -> Result<Tensor, RunError> {
        let rows = match self {
            Self::Pool(pooling) => pool(hidden, layout, *pooling)?,
            Self::Classify { dense, output } => {
                let first = pool(hidden, layout, Pooling::Cls)?;
                output.forward(&dense.forward(&first, Activation::Tanh)?, Activation::None)?
            }
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
        Pooling::Last => layout.starts[1..].iter().map(|end| end - 1).collect(),
        Pooling::Mean => return mean(hidden, layout),
    };
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(hidden.device())?;
    Ok(hidden.f_index_select(0, &rows)?.f_to_kind(Kind::Float)?)
}

fn mean(hidden: &Tensor, layout: &Layout) -> Result<Tensor, RunError> {
    let means = layout.groups.iter().map(|group| -> Result<Tensor, RunError> {
        let rows = hidden.f_narrow(0, group.start, group.count * group.tokens)?;
        let rows = rows.f_view([group.count, group.tokens, -1])?; // [count, tokens, hidden]
        Ok(rows.f_mean_dim(1, false, Kind::Float)?)
    });
    Ok(Tensor::f_cat(&means.collect::<Result<Vec<_>, _>>()?, 0)?)
}
