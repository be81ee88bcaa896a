//! Which negatives count, and how much: those that are answers too are left out, hard ones weigh more.
//!
//! A negative is judged by numbers alone; no gradient comes out of a judgement.

use std::collections::HashSet;

use model::normalized;
use tch::{Kind, TchError, Tensor};

use super::Block;
use super::contrast::{Contrast, Negatives};

/// What a masked score gets lower by: its weight is 0 in single precision, and all numbers stay finite.
const MASKED: f64 = -1e30;

/// How negatives are judged. By default all count alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sifting {
    /// A negative whose inner product is more than this above the positive's is left out. Source: Zhang et al. 2025,
    /// arXiv:2506.05176, section 3, where it is 0.1.
    pub false_negative_margin: Option<f64>,
    /// A negative is left out that the guide, where there is one, puts above the positive less this. Source: Solatorio
    /// 2024, arXiv:2402.16829.
    pub guide_margin: f64,
    /// A negative weighs `exp` of so many times its inner product; 0 for all alike. Source: Lan et al. 2025,
    /// arXiv:2503.04812, section 3.2, where it is 9.
    pub hardness_weight: f64,
}

/// What is known of texts beside their rows, of each rank that is compared with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// A number per passage, the same for the same text, `[n * group]`: with it, no text counts twice.
    pub texts: Option<&'a [Tensor]>,
    /// A guide's rows of queries `[n, any]` and of passages `[n * group, any]`.
    pub guide: Option<[&'a [Tensor]; 2]>,
}

impl<'a> Known<'a> {
    /// What is known of one rank's alone.
    pub(super) fn of(&self, rank: usize) -> Self {
        let only = |all: &'a [Tensor]| &all[rank..=rank];
        Self { texts: self.texts.map(only), guide: self.guide.map(|sides| sides.map(only)) }
    }
}

/// Scores as the positive is compared with them.
///
/// * `scores` - of a block, inner products over the temperature, `[rows, n * group]`
/// * `known` - of the ranks whose rows they are of
pub(super) fn sifted(
    scores: &Tensor,
    known: &Known<'_>,
    how: &Contrast,
    block: Block,
) -> Result<Tensor, TchError> {
    let Contrast { temperature, negatives, sifting, .. } = *how;
    if sifting == Sifting::default() && known.texts.is_none() && known.guide.is_none() {
        return Ok(scores.shallow_clone());
    }
    let (_, columns) = scores.size2()?;
    let group = block.group(columns);
    let device = scores.device();
    let positives = Tensor::f_from_slice(&block.positives(group))?.f_to_device(device)?;
    let own = positives.f_unsqueeze(1)?; // [rows, 1]
    let products = scores.f_detach()?.f_mul_scalar(temperature)?;

    let mut masked = products.f_zeros_like()?.f_to_kind(Kind::Bool)?;
    if let Some(margin) = sifting.false_negative_margin {
        masked = masked.f_logical_or(&above(&products, &own, margin)?)?;
    }
    if let Some([queries, passages]) = known.guide {
        let (queries, passages) = (Tensor::f_cat(queries, 0)?, Tensor::f_cat(passages, 0)?);
        let queries = queries.f_narrow(0, block.first, block.rows)?;
        let products = normalized(&queries)?.f_matmul(&normalized(&passages)?.f_transpose(0, 1)?)?;
        let products = products.f_to_device(device)?;
        masked = masked.f_logical_or(&above(&products, &own, -sifting.guide_margin)?)?;
    }
    if let Some(texts) = known.texts {
        let texts = Tensor::f_cat(texts, 0)?.f_to_device(device)?;
        let positive = texts.f_index_select(0, &positives)?.f_unsqueeze(1)?;
        let apart = if negatives == Negatives::OwnGroup { group } else { columns };
        let again = repeated(&texts, apart)?.f_to_device(device)?.f_unsqueeze(0)?;
        masked = masked.f_logical_or(&positive.f_eq_tensor(&texts)?)?.f_logical_or(&again)?;
    }
    let changed = products.f_mul_scalar(sifting.hardness_weight)?.f_masked_fill(&masked, MASKED)?;
    // A positive stays as it is.
    scores.f_add(&changed.f_scatter_value(1, &own, 0.0)?)
}

/// Where a product is more than `margin` above that with the positive, `[rows, columns]`.
fn above(products: &Tensor, own: &Tensor, margin: f64) -> Result<Tensor, TchError> {
    products.f_greater_tensor(&products.f_gather(1, own, false)?.f_add_scalar(margin)?)
}

/// Which of `texts` have come before, `[columns]`; none comes before another `apart` of them.
fn repeated(texts: &Tensor, apart: i64) -> Result<Tensor, TchError> {
    let mut seen = HashSet::new();
    let texts = Vec::<i64>::try_from(texts)?;
    let again: Vec<bool> =
        (0..).zip(texts).map(|(at, text): (i64, i64)| !seen.insert((at / apart.max(1), text))).collect();
    Tensor::f_from_slice(&again)
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::Distillation;

    /// Of two queries with groups of two; their positives are 0 and 2.
    fn scores() -> Tensor {
        Tensor::from_slice(&[5.0_f32, 5.5, 7.0, 1.0, 4.0, 2.0, 3.0, 4.2]).view([2, 4])
    }

    fn contrast(sifting: Sifting, negatives: Negatives) -> Contrast {
        Contrast { temperature: 0.1, negatives, distillation: Distillation::Group, sifting }
    }

    #[track_caller]
    fn check(known: &Known<'_>, sifting: Sifting, negatives: Negatives, gone: &[(i64, i64)]) {
        let scores = scores();
        let found = sifted(&scores, known, &contrast(sifting, negatives), Block::whole(2)).unwrap();
        for row in 0..2 {
            for column in 0..4 {
                let (found, score) =
                    (found.double_value(&[row, column]), scores.double_value(&[row, column]));
                let at = (row, column);
                assert!(
                    if gone.contains(&at) { found < -1e29 } else { (found - score).abs() < 1e-9 },
                    "{at:?}: {found}"
                );
            }
        }
    }

    #[test]
    fn what_looks_better_than_the_positive_is_left_out() {
        let margin = |margin| Sifting { false_negative_margin: Some(margin), ..Sifting::default() };
        let all = Negatives::InBatch;
        check(&Known::default(), Sifting::default(), all, &[]);
        check(&Known::default(), margin(0.01), all, &[(0, 1), (0, 2), (1, 0), (1, 3)]);
        check(&Known::default(), margin(0.11), all, &[(0, 2), (1, 3)]);
        check(&Known::default(), margin(0.3), all, &[]);
    }

    #[test]
    fn no_text_counts_twice_and_no_positive_is_a_negative() {
        let texts = |texts: [i64; 4]| [Tensor::from_slice(&texts[..2]), Tensor::from_slice(&texts[2..])];
        let case = |numbers, negatives, gone: &[(i64, i64)]| {
            check(&Known { texts: Some(&texts(numbers)), guide: None }, Sifting::default(), negatives, gone);
        };
        case([1, 2, 3, 4], Negatives::AllRanks, &[]);
        // The second group's positive is the first's negative.
        case([1, 3, 3, 4], Negatives::AllRanks, &[(0, 2), (1, 1)]);
        case([1, 2, 1, 4], Negatives::AllRanks, &[(0, 2), (1, 0)]);
        case([1, 2, 3, 2], Negatives::AllRanks, &[(0, 3), (1, 3)]);
        // Where groups are compared alone, what another one has is no repetition.
        case([1, 2, 3, 2], Negatives::OwnGroup, &[]);
        case([1, 1, 3, 2], Negatives::OwnGroup, &[(0, 1), (1, 1)]);
    }

    #[test]
    fn a_guide_tells_answers_from_negatives() {
        let unit = |degrees: &[f64]| {
            let numbers: Vec<f64> =
                degrees.iter().map(|d| d.to_radians()).flat_map(|r| [r.cos(), r.sin()]).collect();
            Tensor::from_slice(&numbers).view([-1, 2])
        };
        let (queries, passages) = ([unit(&[0.0, 90.0])], [unit(&[40.0, 30.0, 60.0, 88.0])]);
        let known = Known { texts: None, guide: Some([&queries, &passages]) };
        let how = |guide_margin| Sifting { guide_margin, ..Sifting::default() };
        check(&known, how(0.0), Negatives::InBatch, &[(0, 1), (1, 3)]);
        check(&known, how(0.3), Negatives::InBatch, &[(0, 1), (0, 2), (1, 0), (1, 3)]);
        check(&known, how(-0.2), Negatives::InBatch, &[]);
    }

    #[test]
    fn hard_negatives_weigh_more() {
        let how = Sifting { hardness_weight: 9.0, ..Sifting::default() };
        let scores = scores().set_requires_grad(true);
        let found =
            sifted(&scores, &Known::default(), &contrast(how, Negatives::InBatch), Block::whole(2)).unwrap();
        for (row, column) in [(0, 1), (0, 3), (1, 0)] {
            let score = scores.double_value(&[row, column]);
            assert!((found.double_value(&[row, column]) - score * 1.9).abs() < 1e-5);
        }
        for (row, column) in [(0, 0), (1, 2)] {
            assert!((found.double_value(&[row, column]) - scores.double_value(&[row, column])).abs() < 1e-9);
        }
        // The weight is a number, not a function.
        found.sum(Kind::Float).backward();
        assert_eq!(scores.grad(), scores.detach().ones_like());
    }
}
