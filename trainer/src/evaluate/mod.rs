//! How good an embedder is, on questions with judged answers and on pairs with scores; and how good a cross-encoder is, on
//! what was judged for each question.
//!
//! What is evaluated only has to [`Embed`] or to [`Score`]: a model in training here, a served checkpoint elsewhere, so
//! that both are measured on the same texts in the same way.

mod directory;
mod held_out;
mod judged;
mod metrics;
mod pairs;

use std::collections::BTreeMap;

use model::{Dropout, Laying, Sequence, Trainee, normalized};
use tch::{Kind, Tensor};

use crate::collective::Collective;
use crate::data::{Collator, Corpus, Wording};
use crate::error::TrainError;
use crate::job::{self, EvaluationData};
use crate::objective::{Objective, Side};

pub use directory::{CrossEncoder, Directory};
pub use held_out::{hold_out, rows_to_judged};
pub use judged::Judged;
pub use metrics::{Ranked, correlation, retrieval};
pub use pairs::Pairs;

/// Answers of a query that are looked at: deeper ones count for no metric.
pub const DEPTH: usize = 100;
/// Tokens that a model being evaluated reads at once.
const TOKENS: usize = 8_192;
/// Queries whose scores are held at once.
const QUERIES: i64 = 64;

/// Numbers by the names that the field gives them, such as `ndcg_at_10`; higher is better.
pub type Metrics = BTreeMap<String, f64>;

/// A field of an evaluation, and what is wrong with what it names.
pub type Misread = (&'static str, TrainError);

/// Of all that is wrong, the first.
fn first(wrong: Vec<Misread>) -> TrainError {
    let first = wrong.into_iter().next().map(|(_, error)| error);
    first.unwrap_or_else(|| TrainError::Unsupported("an evaluation cannot be read".to_owned()))
}

/// Somebody who makes vectors of texts.
pub trait Embed {
    /// A row per text, `[texts, dimensions]`, f32, ready to be compared by inner product.
    ///
    /// # Errors
    /// Where the texts cannot be embedded.
    fn embed(&mut self, texts: &[String], role: Role) -> Result<Tensor, TrainError>;
}

/// Somebody who reads a query and a passage together.
pub trait Score {
    /// Scores of all passages of the first of `lists`, then of the next; a larger one is better.
    ///
    /// # Errors
    /// Where the texts cannot be scored.
    fn score(&mut self, lists: &[List]) -> Result<Vec<f32>, TrainError>;
}

/// A query, and what is to be ordered for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// The text that asks.
    pub query: String,
    /// Texts that may answer.
    pub passages: Vec<String>,
}

/// What a text is to a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It asks.
    Query,
    /// It may answer.
    Passage,
}

/// What there is to be evaluated on.
#[derive(Clone, Debug, Default)]
pub struct Evaluation {
    /// Questions with judged answers.
    pub judged: Option<Judged>,
    /// Pairs with scores.
    pub pairs: Option<Pairs>,
}

impl Evaluation {
    /// What `data` names, for models of a kind; of a share of the training data, `held` is what was held out.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Format`] names the file and the line; [`TrainError::Unsupported`] where a reranker
    /// cannot be told by it.
    pub fn read(data: &EvaluationData, held: &Corpus, kind: job::Kind) -> Result<Self, TrainError> {
        Self::read_all(data, held, kind).map_err(first)
    }

    /// As [`Evaluation::read`].
    ///
    /// # Errors
    /// As [`Evaluation::read`], all that is wrong, with the field of each.
    pub fn read_all(data: &EvaluationData, held: &Corpus, kind: job::Kind) -> Result<Self, Vec<Misread>> {
        let reranks = kind == job::Kind::Reranker;
        let judged = match data.judged() {
            Some(files) => {
                Judged::read_all(files).and_then(|judged| judged.fit(kind, "evaluation.qrels")).map(Some)
            }
            None if data.split.is_some() => {
                let judged = rows_to_judged(held).map_err(|error| vec![("evaluation", error)]);
                judged.and_then(|judged| judged.fit(kind, "evaluation.split")).map(Some)
            }
            None => Ok(None),
        };
        let pairs = match &data.sts {
            Some(_) if reranks => {
                Err(TrainError::Unsupported("evaluation.sts is only for embedders".to_owned()))
            }
            sts => sts.as_deref().map(Pairs::read).transpose(),
        };
        match (judged, pairs) {
            (Ok(judged), Ok(pairs)) => Ok(Self { judged, pairs }),
            (judged, pairs) => {
                let pairs = pairs.err().map(|error| ("evaluation.sts", error));
                Err(judged.err().into_iter().flatten().chain(pairs).collect())
            }
        }
    }

    /// Every metric that there is data for: `ndcg_at_10`, `mrr_at_10`, `recall_at_10`, `recall_at_100`, `map_at_100`;
    /// `spearman`.
    ///
    /// # Errors
    /// As [`Embed::embed`].
    pub fn measure(&self, embedder: &mut impl Embed) -> Result<Metrics, TrainError> {
        let mut metrics = Metrics::new();
        if let Some(judged) = &self.judged {
            metrics.extend(retrieval(&judged.rank(embedder)?));
        }
        if let Some(pairs) = &self.pairs {
            metrics.insert("spearman".to_owned(), pairs.measure(embedder)?);
        }
        Ok(metrics)
    }

    /// As [`Evaluation::measure`], for who reads a query and a passage together: it orders what was judged for each query.
    ///
    /// # Errors
    /// As [`Score::score`].
    pub fn measure_scorer(&self, scorer: &mut impl Score) -> Result<Metrics, TrainError> {
        let judged = self.judged.as_ref();
        judged.map_or_else(|| Ok(Metrics::new()), |judged| Ok(retrieval(&judged.order(scorer)?)))
    }
}

/// A model in training, on every rank its part of the texts.
pub struct InTraining<'a, C> {
    /// The model.
    pub model: &'a Trainee,
    /// How tokens become rows.
    pub objective: &'a Objective,
    /// How texts become tokens.
    pub collator: &'a Collator,
    /// What goes in front of queries and of passages.
    pub wordings: [&'a Wording; 2],
    /// Who shares the work.
    pub world: &'a C,
}

impl<C: Collective> Embed for InTraining<'_, C> {
    fn embed(&mut self, texts: &[String], role: Role) -> Result<Tensor, TrainError> {
        let _guard = tch::no_grad_guard();
        let rows = self.rows(self.own(texts), role)?;
        let rows = if self.objective.normalize { normalized(&rows)? } else { rows };
        self.everyones(&rows, texts.len())
    }
}

impl<C: Collective> Score for InTraining<'_, C> {
    fn score(&mut self, lists: &[List]) -> Result<Vec<f32>, TrainError> {
        let _guard = tch::no_grad_guard();
        let mut pairs: Vec<(usize, &String)> = Vec::new();
        for (at, list) in lists.iter().enumerate() {
            pairs.extend(list.passages.iter().map(|passage| (at, passage)));
        }
        let own: Vec<(usize, &String)> = self.own(&pairs).copied().collect();
        let [query, passage] = self.wordings;
        let mut sequences = Vec::with_capacity(own.len());
        for of_one in own.chunk_by(|a, b| a.0 == b.0) {
            let passages: Vec<String> = of_one.iter().map(|(_, text)| passage.text(text)).collect();
            sequences.extend(self.collator.pairs(&query.text(&lists[of_one[0].0].query), &passages)?);
        }
        let logits = in_batches(&sequences, |batch| {
            let batch: Vec<&Sequence> = batch.iter().collect();
            let hidden = self.model.hidden(&batch, Laying::EndToEnd, &Dropout::NONE)?;
            Ok(self.model.logits(&hidden, &Dropout::NONE)?.f_to_kind(Kind::Float)?)
        })?;
        Ok(Vec::try_from(self.everyones(&logits, pairs.len())?)?)
    }
}

impl<C: Collective> InTraining<'_, C> {
    /// This rank's part. Parts are of one size, so that they can be gathered; the last is filled up with what is thrown
    /// away.
    fn own<'t, T>(&self, all: &'t [T]) -> impl Iterator<Item = &'t T> {
        let place = self.world.place();
        let part = all.len().div_ceil(place.ranks);
        (0..part).map(move |at| &all[(place.rank * part + at).min(all.len() - 1)])
    }

    /// What all ranks made of their parts, as the first `count` are.
    fn everyones(&self, own: &Tensor, count: usize) -> Result<Tensor, TrainError> {
        let all = Tensor::f_cat(&self.world.gather(own)?, 0)?;
        Ok(all.f_narrow(0, 0, i64::try_from(count).unwrap_or(i64::MAX))?)
    }

    /// Rows in the order of `texts`.
    fn rows<'t>(&self, texts: impl Iterator<Item = &'t String>, role: Role) -> Result<Tensor, TrainError> {
        let wording = self.wordings[usize::from(role == Role::Passage)];
        let texts: Vec<String> = texts.map(|text| wording.text(text)).collect();
        let side = match role {
            Role::Query => self.collator.queries(&texts)?,
            Role::Passage => self.collator.passages(&texts)?,
        };
        in_batches(&side.sequences, |batch| self.run(batch))
    }

    fn run(&self, batch: Vec<Sequence>) -> Result<Tensor, TrainError> {
        let (rows, _) = self.objective.dense(self.model, &Side::new(batch), &Dropout::NONE)?;
        Ok(rows.f_to_kind(Kind::Float)?)
    }
}

/// Rows of `sequences` in their order, run in an order in which neighbours are of a length.
fn in_batches(
    sequences: &[Sequence],
    mut run: impl FnMut(Vec<Sequence>) -> Result<Tensor, TrainError>,
) -> Result<Tensor, TrainError> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&at| sequences[at].tokens());
    let (mut rows, mut batch, mut tokens) = (Vec::new(), Vec::<Sequence>::new(), 0);
    for &at in &order {
        let sequence = &sequences[at];
        if !batch.is_empty() && tokens + sequence.tokens() > TOKENS {
            rows.push(run(std::mem::take(&mut batch))?);
            tokens = 0;
        }
        tokens += sequence.tokens();
        batch.push(sequence.clone());
    }
    rows.push(run(batch)?);
    let mut back = vec![0_i64; order.len()];
    for (row, &at) in order.iter().enumerate() {
        back[at] = i64::try_from(row).unwrap_or(i64::MAX);
    }
    let rows = Tensor::f_cat(&rows, 0)?;
    Ok(rows.f_index_select(0, &Tensor::f_from_slice(&back)?.f_to_device(rows.device())?)?)
}
