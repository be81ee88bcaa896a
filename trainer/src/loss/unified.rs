//! Bge-m3's three ways of scoring, trained together, and taught by their sum.
//!
//! Source: Chen et al. 2024, arXiv:2402.03216, section 3.3; weights as in `FlagEmbedding`, not as in the paper.

use std::collections::{BTreeSet, HashMap};

use tch::{Kind, TchError, Tensor};

use super::contrast::{Contrast, Negatives, Ranks, all_scores, on_all_scores, on_scores};
use super::distill::towards;
use super::{Block, Loss, own_group, scores};

/// The part of sparse scores in the sum, and of their loss.
const SPARSE_SCORE: f64 = 0.3;
const SPARSE_LOSS: f64 = 0.1;

/// What a batch's tokens became, rows of one width.
#[derive(Debug)]
pub struct Tokens {
    /// `[n][width]`: token ids, short behind a sequence's end.
    pub ids: Vec<Vec<u32>>,
    /// At least 0; 0 behind a sequence's end, `[n, width]`.
    pub weights: Tensor,
    /// Behind the first token; zeros behind a sequence's end, `[n, width - 1, dimensions]`.
    pub vectors: Tensor,
}

/// What the three ways add to the dense one.
#[derive(Debug)]
pub struct Unified<'a> {
    /// Of this rank's queries.
    pub queries: &'a Tokens,
    /// Of this rank's passages.
    pub passages: &'a Tokens,
    /// What ids there are.
    pub vocabulary: &'a Vocabulary,
    /// Whether each way learns from the sum of all.
    pub teach: bool,
    /// What becomes of the sum over own groups.
    pub sum: OwnGroupSum,
}

/// The ids that tokens have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    /// Those that carry no meaning, and no sparse weight.
    pub markers: Vec<u32>,
    /// How many there are, where sparse scores are sums over all of them, as the reference's are, and round as its do;
    /// `None` leaves out those that cannot meet.
    pub size: Option<u32>,
}

/// The sum of scores where negatives are the own group's alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnGroupSum {
    /// It is compared within the group, like its parts.
    #[default]
    Compared,
    /// As in the reference, a single score is left of it, which is compared with nothing: it adds no loss, and teaches
    /// that all of a group are alike.
    Lost,
}

/// The mean of the losses of the dense, sparse and multi-vector scores and of their sum; where it teaches, the mean
/// of that and of what each way lacks of the sum's distribution.
///
/// Only dense rows are compared over ranks.
///
/// # Errors
/// [`TchError`] when shapes do not fit.
pub fn unified(ranks: &Ranks<'_>, how: &Contrast, unified: &Unified<'_>) -> Result<Loss, TchError> {
    let Unified { queries, passages, vocabulary, teach, sum } = *unified;
    let without_sum = sum == OwnGroupSum::Lost && how.negatives == Negatives::OwnGroup;
    let local = Contrast {
        negatives: if how.negatives == Negatives::AllRanks { Negatives::InBatch } else { how.negatives },
        ..*how
    };
    let teacher = ranks.teacher.map(|teacher| &teacher[ranks.own]);
    let block = Block::whole(ranks.queries[ranks.own].size2()?.0);
    let own = |scores: &Tensor| on_scores([scores, scores], teacher, &local, block).map(Loss::own);

    // One way after the other, and then their sum, as in the reference: gradients are added up in this order.
    let (dense, dense_loss) = dense(ranks, how, own)?;
    let sparse = sparse(queries, passages, vocabulary)?.f_div_scalar(how.temperature)?;
    let sparse_loss = own(&sparse)?;
    let multi = multi(queries, passages)?.f_div_scalar(how.temperature)?;
    let multi_loss = own(&multi)?;
    let together = dense.f_add(&sparse.f_mul_scalar(SPARSE_SCORE)?)?.f_add(&multi)?;
    let loss = dense_loss
        .plus(if without_sum { Loss::default() } else { own(&together)? })?
        .plus(sparse_loss.times(SPARSE_LOSS)?)?
        .plus(multi_loss)?
        .over(4.0)?;
    if !teach {
        return Ok(loss);
    }
    let seen = |scores: &Tensor| match local.negatives {
        Negatives::OwnGroup => own_group(scores, block),
        Negatives::InBatch | Negatives::AllRanks => Ok(scores.shallow_clone()),
    };
    let sum = seen(&together)?.f_detach()?;
    let sum = if without_sum { sum.f_ones_like()? } else { sum.f_softmax(-1, Kind::Float)? };
    let lacks = |scores: &Tensor| towards(&sum, &seen(scores)?).map(Loss::own);
    let taught = lacks(&dense)?.plus(lacks(&sparse)?.times(SPARSE_LOSS)?)?.plus(lacks(&multi)?)?;
    loss.plus(taught.over(3.0)?)?.over(2.0)
}

/// This rank's dense scores, `[queries, passages]`, and the loss of the dense way, which alone is compared over ranks.
fn dense(
    ranks: &Ranks<'_>,
    how: &Contrast,
    own: impl Fn(&Tensor) -> Result<Loss, TchError>,
) -> Result<(Tensor, Loss), TchError> {
    let (queries, passages) = (&ranks.queries[ranks.own], &ranks.passages[ranks.own]);
    if how.negatives != Negatives::AllRanks {
        let scores = scores(queries, passages, how.temperature)?;
        let loss = own(&scores)?;
        return Ok((scores, loss));
    }
    let (all, block) = all_scores(ranks, how.temperature)?;
    let loss = on_all_scores(&all, ranks, how, block)?;
    let rank = i64::try_from(ranks.own).unwrap_or(0);
    let [(rows, _), (columns, _)] = [queries.size2()?, passages.size2()?];
    Ok((all.f_narrow(0, rank * rows, rows)?.f_narrow(1, rank * columns, columns)?, loss))
}

/// Inner products of token weights by id, the largest weight of each id, `[queries, passages]`.
///
/// Only ids that queries have can meet: columns are theirs, and the vocabulary's where that is asked for.
fn sparse(queries: &Tokens, passages: &Tokens, vocabulary: &Vocabulary) -> Result<Tensor, TchError> {
    let Vocabulary { markers, size } = vocabulary;
    let meant = |id: &u32| !markers.contains(id);
    let columns: HashMap<u32, i64> = if let Some(size) = size {
        // A column that nobody has is in its place, and 0.
        (0..*size).zip(0..).filter(|(id, _)| meant(id)).collect()
    } else {
        let ids: BTreeSet<u32> = queries.ids.iter().flatten().copied().filter(meant).collect();
        ids.into_iter().zip(0..).collect()
    };
    let count = size.map_or_else(|| i64::try_from(columns.len()).unwrap_or(i64::MAX), i64::from);
    let by_id = |tokens| by_id(tokens, &columns, count);
    by_id(queries)?.f_matmul(&by_id(passages)?.f_transpose(0, 1)?)
}

/// The largest weight of each id, `[n, count]`.
fn by_id(tokens: &Tokens, columns: &HashMap<u32, i64>, count: i64) -> Result<Tensor, TchError> {
    let (rows, width) = tokens.weights.size2()?;
    let width = usize::try_from(width).unwrap_or(0);
    let column = |ids: &Vec<u32>, place: usize| ids.get(place).and_then(|id| columns.get(id)).copied();
    let index: Vec<i64> = tokens
        .ids
        .iter()
        .flat_map(|ids| (0..width).map(move |place| column(ids, place).unwrap_or(count)))
        .collect();
    let weights = tokens.weights.f_to_kind(Kind::Float)?;
    let index = Tensor::f_from_slice(&index)?.f_view_as(&weights)?.f_to_device(weights.device())?;
    // All other ids go behind the last column.
    let zeros = Tensor::f_zeros([rows, count + 1], (Kind::Float, weights.device()))?;
    let largest = zeros.f_internal_scatter_reduce(1, &index, &weights, "amax", true)?;
    // Rows that lie close together are multiplied as the reference's are.
    largest.f_narrow(1, 0, count)?.f_contiguous()
}

/// The mean over a query's tokens of the best inner product with a passage's tokens, `[queries, passages]`.
///
/// Source: Khattab and Zaharia 2020, arXiv:2004.12832.
fn multi(queries: &Tokens, passages: &Tokens) -> Result<Tensor, TchError> {
    let single = |tokens: &Tokens| tokens.vectors.f_to_kind(Kind::Float);
    let sides = [single(queries)?, single(passages)?];
    let products = Tensor::f_einsum("qin,pjn->qipj", &sides, None::<&[i64]>)?;
    let (best, _) = products.f_max_dim(3, false)?; // [queries, width, passages]
    let sums = best.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?; // [queries, passages]
    #[allow(clippy::cast_precision_loss)] // Far below 2^24.
    let tokens: Vec<f32> = queries.ids.iter().map(|ids| ids.len().saturating_sub(1) as f32).collect();
    sums.f_div(&Tensor::f_from_slice(&tokens)?.f_unsqueeze(1)?.f_to_device(sums.device())?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn tokens(ids: &[&[u32]], seed: i64) -> Tokens {
        tch::manual_seed(seed);
        let options = (Kind::Float, Device::Cpu);
        let (rows, width) = (i64::try_from(ids.len()).unwrap(), 5);
        let lengths: Vec<i64> = ids.iter().map(|ids| i64::try_from(ids.len()).unwrap()).collect();
        let there = Tensor::arange(width, (Kind::Int64, Device::Cpu))
            .less_tensor(&Tensor::from_slice(&lengths).unsqueeze(1));
        let weights = (Tensor::randn([rows, width], options).relu() * &there).set_requires_grad(true);
        let vectors = model::normalized(&Tensor::randn([rows, width - 1, 4], options)).unwrap();
        let vectors = vectors * there.narrow(1, 1, width - 1).unsqueeze(2);
        Tokens { ids: ids.iter().map(|ids| ids.to_vec()).collect(), weights, vectors }
    }

    /// As the reference does it: a column for each id of the vocabulary and each place.
    fn sparse_in_full(tokens: &Tokens, markers: &[u32], vocabulary: i64) -> Tensor {
        let (rows, width) = tokens.weights.size2().unwrap();
        let ids: Vec<i64> = tokens
            .ids
            .iter()
            .flat_map(|ids| {
                (0..width)
                    .map(|place| usize::try_from(place).unwrap())
                    .map(|place| ids.get(place).map_or(1, |&id| i64::from(id)))
            })
            .collect();
        let ids = Tensor::from_slice(&ids).view([rows, width, 1]);
        let full = Tensor::zeros([rows, width, vocabulary], (Kind::Float, Device::Cpu));
        let (largest, _) = full.scatter(2, &ids, &tokens.weights.unsqueeze(2)).max_dim(1, false);
        let meaning: Vec<f32> = (0..vocabulary)
            .map(|id| f32::from(u8::from(!markers.iter().any(|&marker| i64::from(marker) == id))))
            .collect();
        largest * Tensor::from_slice(&meaning)
    }

    #[test]
    fn sparse_scores_are_those_over_the_whole_vocabulary() {
        let queries = tokens(&[&[0, 7, 9, 7, 2], &[0, 5, 2]], 1);
        let passages = tokens(&[&[0, 9, 7, 2], &[0, 11, 2], &[0, 5, 5, 9, 2], &[0, 2]], 2);
        let markers = [0, 1, 2, 3];
        let full =
            sparse_in_full(&queries, &markers, 12).matmul(&sparse_in_full(&passages, &markers, 12).tr());
        let vocabulary = |size| Vocabulary { markers: markers.to_vec(), size };
        let found = sparse(&queries, &passages, &vocabulary(None)).unwrap();
        assert!(found.allclose(&full, 1e-6, 1e-7, false), "{found} {full}");
        // To the bit where columns are the same.
        assert!(sparse(&queries, &passages, &vocabulary(Some(12))).unwrap().equal(&full));
        let gradients = |scores: &Tensor| {
            Tensor::run_backward(
                &[scores.square().sum(Kind::Float)],
                &[&queries.weights, &passages.weights],
                true,
                false,
            )
        };
        // A weight of 0 is one that the rectifier cut off: what comes back to it goes no further.
        let positive = [&queries.weights, &passages.weights].map(|weights| weights.gt(0.0));
        for ((found, full), positive) in gradients(&found).iter().zip(gradients(&full)).zip(positive) {
            assert!((found * &positive).allclose(&(full * positive), 1e-6, 1e-7, false), "{found}");
        }
        let nothing = sparse(&tokens(&[&[0, 2]], 3), &passages, &vocabulary(None)).unwrap();
        assert_eq!(nothing.size(), [1, 4]);
    }

    #[test]
    fn a_query_takes_each_tokens_best() {
        let queries = tokens(&[&[0, 7, 2], &[0, 5, 6, 8, 2]], 4);
        let passages = tokens(&[&[0, 9, 7, 2, 3], &[0, 11, 2, 4, 4]], 5);
        let found = multi(&queries, &passages).unwrap();
        for (query, tokens) in [(0, 2), (1, 4)] {
            for passage in 0..2 {
                let (a, b) = (queries.vectors.get(query).narrow(0, 0, tokens), passages.vectors.get(passage));
                let expected = a.matmul(&b.tr()).max_dim(1, false).0.mean(Kind::Float).double_value(&[]);
                assert!((found.double_value(&[query, passage]) - expected).abs() < 1e-6);
            }
        }
    }
}
