//! One micro step of one rank: from its batch to gradients on the parameters.
//!
//! With a chunk size the gradient is cached: the batch is embedded without a graph, the loss is taken over the rows
//! alone, and each chunk is embedded again to send its rows' gradient down. Memory then holds the graph of one chunk, and
//! the batch is bounded by its rows. Source: Gao et al. 2021, arXiv:2101.06983, section 3.

use model::{Dropout, Sequence, Trainee};
use tch::{Kind, Tensor};

use crate::collective::{Collective, Place};
use crate::error::TrainError;
use crate::loss::{self, Block, GradientScale, Known, Negatives, Tokens};
use crate::objective::{Batch, Embedded, Objective, Rows, Side, mix, teacher};

/// How gradients are made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Sequences whose graph is held at a time; `None` holds those of the whole batch.
    pub chunk: Option<usize>,
    /// How the ranks' gradients become one.
    pub scale: GradientScale,
    /// What is dropped.
    pub dropout: Dropout,
    /// Of what is dropped.
    pub seed: u64,
    /// What the loss, and with it every gradient, is multiplied by.
    pub factor: f64,
    /// With a chunk size, scores that are held at a time: [`SCORES`], or fewer in a test.
    pub scores: i64,
}

/// Scores that are held at a time, 128 MiB of them, and some times as many bytes while their gradient is made.
pub const SCORES: i64 = 1 << 25;

/// A rank's model on its way through a run.
#[derive(Debug)]
pub struct Step<'a, C> {
    /// The model.
    pub model: &'a Trainee,
    /// The other ranks.
    pub world: &'a C,
    /// What is minimised.
    pub objective: &'a Objective,
    /// How.
    pub settings: Settings,
}

/// Which micro step of a run it is.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// From 0, over the whole run.
    pub micro_step: u64,
    /// Of how many micro steps the gradients are added up.
    pub accumulated: usize,
    /// Whether bge-m3's ways learn from their sum.
    pub teach: bool,
}

/// Pairs in groups, the positive first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pairs {
    /// Query-major.
    pub pairs: Side,
    /// Pairs of a query.
    pub group: usize,
    /// The teacher's scores, one per pair.
    pub teacher: Option<Vec<f64>>,
}

impl<C: Collective> Step<'_, C> {
    /// Adds this rank's part of the gradient to the parameters' gradients; the sum over ranks is the gradient.
    /// Returns this rank's loss.
    ///
    /// # Errors
    /// [`TrainError::OutOfMemory`], for which smaller chunks may do; [`TrainError::Torch`], also when a rank is gone.
    pub fn texts(&self, batch: &Batch, moment: &Moment) -> Result<f64, TrainError> {
        let chunks = self.chunks(batch);
        if chunks.len() <= 2 {
            let [queries, passages] = [0, 1].map(|at| self.embed(&chunks[at], at, moment));
            let sides = [queries?, passages?];
            let loss = self.backward(batch, &sides, moment)?;
            sides.iter().try_for_each(|side| self.send_down(side))?;
            return Ok(loss);
        }
        let (of_queries, of_passages) = (self.count(&batch.queries), self.count(&batch.passages));
        let mut cached = Vec::with_capacity(chunks.len());
        for (at, chunk) in chunks.iter().enumerate() {
            let _guard = tch::no_grad_guard();
            cached.push(Embedded { hidden: None, ..self.embed(chunk, at, moment)? });
        }
        let sides = [leaf(&cached[..of_queries])?, leaf(&cached[of_queries..of_queries + of_passages])?];
        drop(cached);
        let loss = self.backward(batch, &sides, moment)?;
        let [queries, passages] = &sides;
        self.again(&chunks[..of_queries], 0, queries, moment)?;
        self.again(&chunks[of_queries..], of_queries, passages, moment)?;
        Ok(loss)
    }

    /// As [`Step::texts`], for a cross-encoder: groups do not meet, and a chunk's loss is a share of the batch's.
    ///
    /// # Errors
    /// As [`Step::texts`].
    pub fn pairs(&self, batch: &Pairs, moment: &Moment) -> Result<f64, TrainError> {
        let groups = batch.pairs.sequences.len() / batch.group.max(1);
        let per_chunk = self.settings.chunk.map_or(groups, |chunk| (chunk / batch.group.max(1)).max(1));
        let mut total = 0.0;
        for (at, sequences) in batch.pairs.sequences.chunks(per_chunk.max(1) * batch.group.max(1)).enumerate()
        {
            let start = at * per_chunk * batch.group;
            let scores = batch.teacher.as_ref().and_then(|scores| scores.get(start..start + sequences.len()));
            #[allow(clippy::cast_precision_loss)] // A batch.
            let share = (sequences.len() / batch.group.max(1)) as f64 / groups.max(1) as f64;
            total += share * self.pairs_chunk(batch, (at, sequences, scores), share, moment)?;
        }
        Ok(total)
    }

    fn pairs_chunk(
        &self,
        batch: &Pairs,
        (at, sequences, scores): (usize, &[Sequence], Option<&[f64]>),
        share: f64,
        moment: &Moment,
    ) -> Result<f64, TrainError> {
        self.seed(at, moment);
        let dropout = &self.settings.dropout;
        let all: Vec<&Sequence> = sequences.iter().collect();
        let hidden = self.model.hidden(&all, batch.pairs.laying(self.objective.custom), dropout)?;
        let logits = self.model.logits(&hidden, dropout)?;
        let group = i64::try_from(batch.group).unwrap_or(i64::MAX);
        let teacher =
            scores.map(|scores| teacher(scores, sequences.len() / batch.group.max(1))).transpose()?;
        let finish = |scores: Tensor| scores.f_to_device(logits.device())?.f_softmax(-1, Kind::Float);
        let teacher = teacher.map(finish).transpose()?;
        let loss = loss::grouped(&logits, group, teacher.as_ref())?;
        let objective = loss.objective(self.world.place().ranks, self.settings.scale)?;
        objective.f_mul_scalar(share / accumulated(moment) * self.settings.factor)?.f_backward()?;
        self.model.send_down(&hidden)?;
        Ok(loss.value()?)
    }

    /// The loss of this rank's rows among all ranks', and its gradient sent into their graph.
    fn backward(&self, batch: &Batch, sides: &[Embedded; 2], moment: &Moment) -> Result<f64, TrainError> {
        let Place { rank, ranks } = self.world.place();
        let negatives = if batch.own_group { Negatives::OwnGroup } else { self.objective.contrast.negatives };
        let alone = negatives != Negatives::AllRanks;
        let everyones = |rows: &Tensor| -> Result<Vec<Tensor>, TrainError> {
            let rows = &rows.f_to_device(self.model.device())?;
            let mut all = if alone {
                // Nobody looks at the others'.
                (0..ranks).map(|_| rows.f_detach()).collect::<Result<Vec<_>, _>>()?
            } else {
                self.world.gather(rows)?
            };
            all[rank] = rows.shallow_clone();
            Ok(all)
        };
        let [queries, passages] = sides;
        let teacher = batch.teacher.as_deref().map(|scores| teacher(scores, batch.queries.sequences.len()));
        let teacher = teacher.transpose()?.map(|scores| everyones(&scores)).transpose()?;
        let texts = batch.distinct.then(|| everyones(&batch.passages.marks()?)).transpose()?;
        let guide = match &batch.guide {
            Some([queries, passages]) => Some([everyones(queries)?, everyones(passages)?]),
            None => None,
        };
        let guide = guide.as_ref().map(|sides| sides.each_ref().map(Vec::as_slice));
        let tokens = queries.tokens.as_ref().zip(passages.tokens.as_ref());
        let rows = Rows {
            own: rank,
            queries: &everyones(&queries.rows)?,
            passages: &everyones(&passages.rows)?,
            tokens: tokens.map(|(queries, passages)| [queries, passages]),
            teacher: teacher.as_deref(),
            known: Known { texts: texts.as_deref(), guide },
            block: None,
        };
        let mut total = 0.0;
        for block in self.blocks(sides, if alone { 1 } else { ranks })? {
            let loss = self.objective.loss(&Rows { block, ..rows }, negatives, moment.teach)?;
            let objective = loss.objective(ranks, self.settings.scale)?;
            objective.f_div_scalar(accumulated(moment) / self.settings.factor)?.f_backward()?;
            total += loss.value()?;
        }
        Ok(total)
    }

    /// How the matrix of scores is cut, `ranks` of which are compared. Where rows have a graph below them it is not: that
    /// is gone through once.
    fn blocks(&self, sides: &[Embedded; 2], ranks: usize) -> Result<Vec<Option<Block>>, TrainError> {
        let ranks = i64::try_from(ranks).unwrap_or(1);
        let [queries, passages] =
            sides.each_ref().map(|side| side.rows.size2().map(|(rows, _)| rows * ranks));
        let blocks = Block::cut(queries?, passages?, self.settings.scores);
        let cached = sides[0].rows.f_is_leaf()? && sides[1].rows.f_is_leaf()?;
        if blocks.len() == 1 || !cached || self.objective.unified.is_some() {
            return Ok(vec![None]);
        }
        Ok(blocks.into_iter().map(Some).collect())
    }

    /// Embeds chunks once more and sends the gradient of their rows down.
    fn again(
        &self,
        chunks: &[Side],
        first: usize,
        cached: &Embedded,
        moment: &Moment,
    ) -> Result<(), TrainError> {
        let gradients = Gradients::of(cached)?;
        let mut start = 0;
        for (at, chunk) in chunks.iter().enumerate() {
            let count = i64::try_from(chunk.sequences.len()).unwrap_or(i64::MAX);
            let embedded = self.embed(chunk, first + at, moment)?;
            gradients.surrogate(&embedded, start, count)?.f_backward()?;
            self.send_down(&embedded)?;
            start += count;
        }
        Ok(())
    }

    fn chunks(&self, batch: &Batch) -> Vec<Side> {
        let cut = |side: &Side| -> Vec<Side> {
            let chunk = self.settings.chunk.unwrap_or(side.sequences.len()).max(1);
            let chunks = side.sequences.chunks(chunk);
            chunks.map(|sequences| Side { sequences: sequences.to_vec(), width: side.width }).collect()
        };
        let mut chunks = cut(&batch.queries);
        chunks.extend(cut(&batch.passages));
        chunks
    }

    fn count(&self, side: &Side) -> usize {
        let chunk = self.settings.chunk.unwrap_or(side.sequences.len()).max(1);
        side.sequences.len().div_ceil(chunk)
    }

    fn embed(&self, chunk: &Side, at: usize, moment: &Moment) -> Result<Embedded, TrainError> {
        self.seed(at, moment);
        self.objective.embed(self.model, chunk, &self.settings.dropout)
    }

    /// From where a graph ends to the parameters.
    fn send_down(&self, embedded: &Embedded) -> Result<(), TrainError> {
        Ok(embedded.hidden.as_ref().map_or(Ok(()), |hidden| self.model.send_down(hidden))?)
    }

    /// The same chunk of the same micro step drops the same numbers, whenever it is run. The generator is the
    /// process's, hence one rank per process.
    fn seed(&self, chunk: usize, moment: &Moment) {
        let words = [moment.micro_step, self.world.place().rank as u64, chunk as u64];
        let seed = words.into_iter().fold(self.settings.seed, |seed, word| mix(seed ^ mix(word)));
        model::seed(i64::from_ne_bytes(seed.to_ne_bytes()));
    }
}

#[allow(clippy::cast_precision_loss)] // Few.
fn accumulated(moment: &Moment) -> f64 {
    moment.accumulated.max(1) as f64
}

/// Chunks put together, as the leaves of a graph of their own.
fn leaf(chunks: &[Embedded]) -> Result<Embedded, TrainError> {
    let join = |field: fn(&Embedded) -> Option<&Tensor>| -> Result<Option<Tensor>, TrainError> {
        let parts: Option<Vec<&Tensor>> = chunks.iter().map(field).collect();
        let Some(parts) = parts else { return Ok(None) };
        Ok(Some(Tensor::f_cat(&parts, 0)?.f_detach()?.f_set_requires_grad(true)?))
    };
    let rows = join(|chunk| Some(&chunk.rows))?.unwrap_or_else(Tensor::new);
    let weights = join(|chunk| chunk.tokens.as_ref().map(|tokens| &tokens.weights))?;
    let vectors = join(|chunk| chunk.tokens.as_ref().map(|tokens| &tokens.vectors))?;
    let ids = chunks.iter().filter_map(|chunk| chunk.tokens.as_ref()).flat_map(|tokens| tokens.ids.clone());
    let tokens =
        weights.zip(vectors).map(|(weights, vectors)| Tokens { ids: ids.collect(), weights, vectors });
    Ok(Embedded { rows, tokens, hidden: None })
}

/// The cache: what the loss says of each row.
struct Gradients {
    rows: Tensor,
    tokens: Option<[Tensor; 2]>,
}

impl Gradients {
    fn of(leaf: &Embedded) -> Result<Self, TrainError> {
        let gradient = |leaf: &Tensor| -> Result<Tensor, TrainError> {
            let gradient = leaf.f_grad()?;
            // What the loss does not depend on has none.
            if gradient.defined() { Ok(gradient) } else { Ok(leaf.f_detach()?.f_zeros_like()?) }
        };
        let tokens = leaf.tokens.as_ref().map(|tokens| -> Result<_, TrainError> {
            Ok([gradient(&tokens.weights)?, gradient(&tokens.vectors)?])
        });
        Ok(Self { rows: gradient(&leaf.rows)?, tokens: tokens.transpose()? })
    }

    /// A number whose gradient by a chunk's rows is what is cached for them.
    fn surrogate(&self, chunk: &Embedded, start: i64, count: i64) -> Result<Tensor, TrainError> {
        let product = |rows: &Tensor, gradient: &Tensor| -> Result<Tensor, TrainError> {
            Ok(rows.f_mul(&gradient.f_narrow(0, start, count)?)?.f_sum(Kind::Float)?)
        };
        let mut sum = product(&chunk.rows, &self.rows)?;
        if let (Some(tokens), Some([weights, vectors])) = (&chunk.tokens, &self.tokens) {
            sum = sum.f_add(&product(&tokens.weights, weights)?)?;
            sum = sum.f_add(&product(&tokens.vectors, vectors)?)?;
        }
        Ok(sum)
    }
}
