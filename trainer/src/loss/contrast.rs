//! A query's positive against other passages: of its group, of its batch, or of all ranks' batches.
//!
//! Source: van den Oord et al. 2018, arXiv:1807.03748; negatives over devices as in Qu et al. 2020, arXiv:2010.08191.

use tch::{TchError, Tensor};

use super::distill::{Distillation, towards, weighted};
use super::sift::{Known, Sifting, sifted};
use super::{Block, Loss, cross_entropy, own_group, scores};

/// Which passages a query's positive stands against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Negatives {
    /// The others of its group.
    OwnGroup,
    /// All of this rank's batch.
    InBatch,
    /// All of all ranks' batches.
    AllRanks,
}

/// How rows are compared.
#[derive(Clone, Copy, Debug)]
pub struct Contrast {
    /// What inner products are divided by.
    pub temperature: f64,
    /// Against which passages.
    pub negatives: Negatives,
    /// How the teacher is used where there is one.
    pub distillation: Distillation,
    /// Which of them count, and how much, where a positive is compared with them; a teacher judges all of its group.
    pub sifting: Sifting,
}

/// All ranks' rows of a micro step. Of them `own` have a graph; the others are numbers.
#[derive(Debug)]
pub struct Ranks<'a> {
    /// This rank.
    pub own: usize,
    /// `[n, dimensions]` of each rank, the same `n` on all where [`Negatives::AllRanks`] asks for them.
    pub queries: &'a [Tensor],
    /// `[n * group, dimensions]` of each rank.
    pub passages: &'a [Tensor],
    /// The teacher's distribution over each group, `[n, group]` of each rank.
    pub teacher: Option<&'a [Tensor]>,
    /// What else is known of each rank's texts.
    pub known: Known<'a>,
    /// Of all queries that are compared, those whose part of the loss is asked for; `None` for all.
    pub block: Option<Block>,
}

/// Those of `rows` that are a block's.
fn cut(rows: &Tensor, block: Block) -> Result<Tensor, TchError> {
    rows.f_narrow(0, block.first, block.rows)
}

/// The loss over rows as they are.
///
/// # Errors
/// [`TchError`] when shapes do not fit.
pub fn contrast(ranks: &Ranks<'_>, how: &Contrast) -> Result<Loss, TchError> {
    match how.negatives {
        Negatives::OwnGroup | Negatives::InBatch => alone(ranks, how),
        Negatives::AllRanks => over_ranks(ranks, how),
    }
}

/// Against this rank's passages.
fn alone(ranks: &Ranks<'_>, how: &Contrast) -> Result<Loss, TchError> {
    let own = ranks.own;
    let (queries, passages) = (&ranks.queries[own], &ranks.passages[own]);
    let block = ranks.block.map_or_else(|| Ok(Block::whole(queries.size2()?.0)), Ok::<_, TchError>)?;
    let scores = scores(&cut(queries, block)?, passages, how.temperature)?;
    let compared = sifted(&scores, &ranks.known.of(own), how, block)?;
    let teacher = ranks.teacher.map(|teacher| cut(&teacher[own], block)).transpose()?;
    Loss::own(on_scores([&scores, &compared], teacher.as_ref(), how, block)?).times(block.share())
}

/// Against the passages of all ranks.
fn over_ranks(ranks: &Ranks<'_>, how: &Contrast) -> Result<Loss, TchError> {
    let (scores, block) = all_scores(ranks, how.temperature)?;
    on_all_scores(&scores, ranks, how, block)
}

/// The scores of a block of all ranks' queries against all ranks' passages, `[rows, ranks * n * group]`, and the block.
pub(super) fn all_scores(ranks: &Ranks<'_>, temperature: f64) -> Result<(Tensor, Block), TchError> {
    let (queries, passages) = (Tensor::f_cat(ranks.queries, 0)?, Tensor::f_cat(ranks.passages, 0)?);
    let block = ranks.block.map_or_else(|| Ok(Block::whole(queries.size2()?.0)), Ok::<_, TchError>)?;
    Ok((scores(&cut(&queries, block)?, &passages, temperature)?, block))
}

/// The loss of a block of [`all_scores`].
pub(super) fn on_all_scores(
    scores: &Tensor,
    ranks: &Ranks<'_>,
    how: &Contrast,
    block: Block,
) -> Result<Loss, TchError> {
    let compared = sifted(scores, &ranks.known, how, block)?;
    let shared = |loss: Tensor| Loss::shared(loss).times(block.share());
    match (ranks.teacher, how.distillation) {
        (None, _) => shared(plain(&compared, block)?),
        (Some(teacher), Distillation::Weighted) => {
            shared(weighted(&cut(&Tensor::f_cat(teacher, 0)?, block)?, scores, block)?)
        }
        (Some(teacher), Distillation::Group) => {
            let contrast = shared(plain(&compared, block)?)?;
            let (count, _) = teacher[ranks.own].size2()?;
            let start = count * i64::try_from(ranks.own).unwrap_or(0);
            let Some(own) = block.within(start, count) else { return Ok(contrast) };
            let at = start + own.first - block.first;
            let student = own_group(scores, block)?.f_narrow(0, at, own.rows)?; // [rows, group]
            let towards = towards(&cut(&teacher[ranks.own], own)?, &student)?;
            contrast.plus(Loss::own(towards).times(own.share())?)
        }
    }
}

/// The mean of the losses over the first so many dimensions, each cut off rows as they are pooled and finished by itself.
///
/// Source: Kusupati et al. 2022, arXiv:2205.13147.
///
/// * `finish` - makes of cut rows what is compared: normalises them, or leaves them
///
/// # Errors
/// [`TchError`] when shapes do not fit.
pub fn matryoshka(
    ranks: &Ranks<'_>,
    how: &Contrast,
    dimensions: &[i64],
    finish: impl Fn(&Tensor) -> Result<Tensor, TchError>,
) -> Result<Loss, TchError> {
    let mut total = Loss::default();
    for &wanted in dimensions {
        let cut = |rows: &Tensor| {
            let (_, all) = rows.size2()?;
            finish(&rows.f_narrow(1, 0, wanted.min(all))?)
        };
        let cut = |rows: &[Tensor]| rows.iter().map(cut).collect::<Result<Vec<_>, _>>();
        let (queries, passages) = (cut(ranks.queries)?, cut(ranks.passages)?);
        let ranks = Ranks { queries: &queries, passages: &passages, ..*ranks };
        total = total.plus(contrast(&ranks, how)?)?;
    }
    #[allow(clippy::cast_precision_loss)] // Few.
    total.over(dimensions.len() as f64)
}

/// The loss of a block of one rank's scores, `[rows, n * group]`: as they are for a teacher, and as positives are compared with them.
pub(super) fn on_scores(
    [scores, compared]: [&Tensor; 2],
    teacher: Option<&Tensor>,
    how: &Contrast,
    block: Block,
) -> Result<Tensor, TchError> {
    let of_group = how.negatives == Negatives::OwnGroup;
    let group = own_group(scores, block)?; // [rows, group]
    let contrast = || if of_group { first(&own_group(compared, block)?) } else { plain(compared, block) };
    match (teacher, how.distillation) {
        (None, _) => contrast(),
        (Some(teacher), Distillation::Group) => towards(teacher, &group)?.f_add(&contrast()?),
        (Some(teacher), Distillation::Weighted) if of_group => weighted_group(teacher, &group),
        (Some(teacher), Distillation::Weighted) => weighted(teacher, scores, block),
    }
}

/// Each group's first against the group.
fn first(group: &Tensor) -> Result<Tensor, TchError> {
    let (rows, _) = group.size2()?;
    cross_entropy(group, &Block::whole(rows).positives(0))
}

/// Each query's positive against all passages.
fn plain(scores: &Tensor, block: Block) -> Result<Tensor, TchError> {
    let (_, passages) = scores.size2()?;
    cross_entropy(scores, &block.positives(block.group(passages)))
}

/// [`weighted`] within groups: each row alone is a batch of one.
fn weighted_group(teacher: &Tensor, group: &Tensor) -> Result<Tensor, TchError> {
    let (rows, _) = group.size2()?;
    let mut total = None;
    for row in 0..rows {
        let one = |rows: &Tensor| rows.f_narrow(0, row, 1);
        total = super::sum(total, Some(weighted(&one(teacher)?, &one(group)?, Block::whole(1))?))?;
    }
    #[allow(clippy::cast_precision_loss)] // A batch.
    total.map_or_else(|| first(group), |total| total.f_div_scalar(rows as f64))
}
