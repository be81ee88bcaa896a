//! From a batch to its loss: what the model makes of it, and which loss that is fed to.

use model::{Dropout, Hidden, Laying, Pooling, Sequence, Task, Trainee, normalized};
use tch::{Kind, TchError, Tensor};

use crate::data::Custom;
use crate::error::TrainError;
use crate::loss::{
    self, Block, Contrast, Known, Loss, Negatives, OwnGroupSum, Ranks, Tokens, Unified, Vocabulary,
};

/// What is minimised, and over which representations.
#[derive(Clone, Debug)]
pub struct Objective {
    /// How rows are compared.
    pub contrast: Contrast,
    /// How tokens' vectors become a text's.
    pub pooling: Pooling,
    /// Whether rows, and what is cut off them, are scaled to length 1 before they are compared.
    pub normalize: bool,
    /// First so many dimensions that are each trained to do alone; empty for the whole row alone.
    pub dimensions: Vec<i64>,
    /// By the reference's, batches are padded, so that sums round as its do: two fifths of its positions are padding. What
    /// it gets wrong is wrong then too.
    pub custom: Custom,
    /// Bge-m3's other two ways, with the ids of the sparse one; `None` for dense alone.
    pub unified: Option<Vocabulary>,
}

/// One rank's share of a micro step.
#[derive(Debug, Default)]
pub struct Batch {
    /// `n` of them.
    pub queries: Side,
    /// `n * group`, query-major, each group's positive first.
    pub passages: Side,
    /// The teacher's scores, `[n * group]`.
    pub teacher: Option<Vec<f64>>,
    /// Whether the data asks for negatives of the own group alone.
    pub own_group: bool,
    /// Whether no text counts twice among a query's passages.
    pub distinct: bool,
    /// A guide's rows of queries and passages.
    pub guide: Option<[Tensor; 2]>,
}

/// Texts of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Side {
    /// In order.
    pub sequences: Vec<Sequence>,
    /// Tokens to which the longest is padded where rows of one width are needed.
    pub width: usize,
}

/// What the model makes of one side of a batch, with its graph.
#[derive(Debug)]
pub struct Embedded {
    /// Pooled, not normalised, `[n, hidden]`.
    pub rows: Tensor,
    /// Where more than rows is compared.
    pub tokens: Option<Tokens>,
    /// What the graph ends at where layers are run again: [`Trainee::send_down`] takes it on.
    pub hidden: Option<Hidden>,
}

impl Side {
    /// Texts padded to the longest.
    #[must_use]
    pub fn new(sequences: Vec<Sequence>) -> Self {
        let width = sequences.iter().map(Sequence::tokens).max().unwrap_or(0);
        Self { sequences, width }
    }

    /// Tokens of all texts.
    #[must_use]
    pub fn tokens(&self) -> f64 {
        let tokens: usize = self.sequences.iter().map(Sequence::tokens).sum();
        #[allow(clippy::cast_precision_loss)] // A batch.
        let tokens = tokens as f64;
        tokens
    }

    /// A number per text, `[n]`, the same for texts of the same tokens and, but for one chance in 2^64, for no others.
    ///
    /// # Errors
    /// [`TrainError::Torch`] when there is no memory.
    pub fn marks(&self) -> Result<Tensor, TrainError> {
        let mark = |sequence: &Sequence| {
            let mark = sequence.ids.iter().fold(0, |mark, &id| mix(mark ^ mix(u64::from(id))));
            i64::from_ne_bytes(mark.to_ne_bytes())
        };
        Ok(Tensor::f_from_slice(&self.sequences.iter().map(mark).collect::<Vec<_>>())?)
    }

    /// How it is laid out.
    #[must_use]
    pub fn laying(&self, custom: Custom) -> Laying {
        match custom {
            Custom::Ours => Laying::EndToEnd,
            Custom::FlagEmbedding => Laying::Padded { width: self.width },
        }
    }
}

impl Objective {
    /// What a model has to be loaded for.
    #[must_use]
    pub fn task(&self) -> Task {
        if self.unified.is_some() { Task::Unified } else { Task::Dense }
    }

    /// Runs the model over one side of a batch.
    ///
    /// # Errors
    /// [`TrainError::OutOfMemory`], [`TrainError::Torch`].
    pub fn embed(&self, model: &Trainee, side: &Side, dropout: &Dropout) -> Result<Embedded, TrainError> {
        let (rows, hidden) = self.dense(model, side, dropout)?;
        if self.unified.is_none() {
            return Ok(Embedded { rows, tokens: None, hidden: Some(hidden) });
        }
        // In the reference's order, in which gradients are added up.
        let weights = model.token_weights(&hidden, side.width)?;
        let vectors = model.token_vectors(&hidden, side.width)?;
        let tokens = Tokens {
            ids: side.sequences.iter().map(|sequence| sequence.ids.clone()).collect(),
            weights,
            vectors: if self.normalize { normalized(&vectors)? } else { vectors },
        };
        Ok(Embedded { rows, tokens: Some(tokens), hidden: Some(hidden) })
    }

    /// The dense way alone: pooled rows, not normalised, `[n, hidden]`.
    ///
    /// # Errors
    /// As [`Objective::embed`].
    pub fn dense(
        &self,
        model: &Trainee,
        side: &Side,
        dropout: &Dropout,
    ) -> Result<(Tensor, Hidden), TrainError> {
        let sequences: Vec<&Sequence> = side.sequences.iter().collect();
        let hidden = model.hidden(&sequences, side.laying(self.custom), dropout)?;
        Ok((model.pooled(&hidden, self.pooling)?, hidden))
    }

    /// The loss of rank `own`.
    ///
    /// * `ranks` - rows of queries and of passages of all ranks; those of `own` with their graph
    /// * `tokens` - of `own`, where it is unified
    /// * `teacher` - scores of all ranks, `[n, group]` each
    /// * `micro_step` - forward passes before this one: each way learns from the sum of all from the second on
    ///
    /// # Errors
    /// [`TrainError::Torch`] when shapes do not fit.
    pub fn loss(&self, rows: &Rows<'_>, how: Negatives, teach: bool) -> Result<Loss, TrainError> {
        let contrast = Contrast { negatives: how, ..self.contrast };
        let teacher = rows.teacher.map(distributions).transpose()?;
        let ranks = |queries, passages| Ranks {
            own: rows.own,
            queries,
            passages,
            teacher: teacher.as_deref(),
            known: rows.known,
            block: rows.block,
        };
        if !self.dimensions.is_empty() {
            let ranks = ranks(rows.queries, rows.passages);
            return Ok(loss::matryoshka(&ranks, &contrast, &self.dimensions, |rows| self.finished(rows))?);
        }
        let all =
            |rows: &[Tensor]| rows.iter().map(|rows| self.finished(rows)).collect::<Result<Vec<_>, _>>();
        let (queries, passages) = (all(rows.queries)?, all(rows.passages)?);
        let ranks = ranks(&queries, &passages);
        match (&self.unified, rows.tokens) {
            (Some(vocabulary), Some([queries, passages])) => {
                let sum = match self.custom {
                    Custom::Ours => OwnGroupSum::Compared,
                    Custom::FlagEmbedding => OwnGroupSum::Lost,
                };
                let ways = Unified { queries, passages, vocabulary, teach, sum };
                Ok(loss::unified(&ranks, &contrast, &ways)?)
            }
            _ => Ok(loss::contrast(&ranks, &contrast)?),
        }
    }

    /// Pooled rows as they are compared.
    fn finished(&self, rows: &Tensor) -> Result<Tensor, TchError> {
        if self.normalize { normalized(rows) } else { Ok(rows.shallow_clone()) }
    }
}

/// Everything that a rank's loss is a function of.
#[derive(Debug)]
pub struct Rows<'a> {
    /// This rank.
    pub own: usize,
    /// Pooled queries of all ranks, `[n, hidden]` each; this rank's with their graph.
    pub queries: &'a [Tensor],
    /// Pooled passages of all ranks, `[n * group, hidden]` each; this rank's with their graph.
    pub passages: &'a [Tensor],
    /// This rank's tokens, queries and passages, where it is unified.
    pub tokens: Option<[&'a Tokens; 2]>,
    /// The teacher's scores of all ranks, `[n, group]` each.
    pub teacher: Option<&'a [Tensor]>,
    /// What else is known of all ranks' texts.
    pub known: Known<'a>,
    /// Of all queries that are compared, those whose part of the loss is asked for; `None` for all. Unified it is all.
    pub block: Option<Block>,
}

/// A teacher's scores as rows of a batch of `queries`, `[n, group]`, f32.
///
/// # Errors
/// [`TrainError::Torch`] when there are not as many for each query.
pub fn teacher(scores: &[f64], queries: usize) -> Result<Tensor, TrainError> {
    let rows = i64::try_from(queries).unwrap_or(i64::MAX);
    Ok(Tensor::f_from_slice(scores)?.f_to_kind(Kind::Float)?.f_view([rows, -1])?)
}

fn distributions(scores: &[Tensor]) -> Result<Vec<Tensor>, TrainError> {
    Ok(scores.iter().map(|scores| scores.f_softmax(-1, Kind::Float)).collect::<Result<_, _>>()?)
}

/// `SplitMix64` (Steele et al. 2014): neighbouring words come far apart.
pub(crate) fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
