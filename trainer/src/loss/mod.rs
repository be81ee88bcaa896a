//! What training minimises, as functions of what the model makes of a batch.
//!
//! Scores are computed in single precision whatever the model runs in: at temperature 0.02 the scores of bf16 lie on a
//! grid of 0.25. Passages are query-major: query `i`'s group is rows `i * group ..`, its positive first.

mod block;
mod contrast;
mod distill;
mod grouped;
mod sift;
mod unified;

use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, TchError, Tensor};

pub use block::Block;
pub use contrast::{Contrast, Negatives, Ranks, contrast, matryoshka};
pub use distill::Distillation;
pub use grouped::grouped;
pub use sift::{Known, Sifting};
pub use unified::{OwnGroupSum, Tokens, Unified, Vocabulary, unified};

/// A rank's loss in two parts, for the gradient of one is not the other's.
///
/// Every rank computes the *shared* part in full, over all ranks' rows, and sends its gradient through its own rows
/// alone: the sum over ranks is its gradient. The *own* part is of this rank's rows, and its mean over ranks is what is
/// minimised.
#[derive(Debug, Default)]
pub struct Loss {
    /// The same number on every rank.
    pub shared: Option<Tensor>,
    /// This rank's.
    pub own: Option<Tensor>,
}

/// How the gradients of ranks become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientScale {
    /// The gradient of what is minimised.
    #[default]
    Exact,
    /// What `FlagEmbedding` computes: the mean over ranks, also of the shared part, whose gradient is thus divided by
    /// the number of ranks.
    FlagEmbedding,
}

impl Loss {
    fn shared(loss: Tensor) -> Self {
        Self { shared: Some(loss), own: None }
    }

    fn own(loss: Tensor) -> Self {
        Self { shared: None, own: Some(loss) }
    }

    fn plus(self, other: Self) -> Result<Self, TchError> {
        Ok(Self { shared: sum(self.shared, other.shared)?, own: sum(self.own, other.own)? })
    }

    fn times(self, factor: f64) -> Result<Self, TchError> {
        let scaled = |part: Option<Tensor>| part.map(|part| part.f_mul_scalar(factor)).transpose();
        Ok(Self { shared: scaled(self.shared)?, own: scaled(self.own)? })
    }

    fn over(self, divisor: f64) -> Result<Self, TchError> {
        let scaled = |part: Option<Tensor>| part.map(|part| part.f_div_scalar(divisor)).transpose();
        Ok(Self { shared: scaled(self.shared)?, own: scaled(self.own)? })
    }

    /// This rank's loss as one number, `[]`.
    ///
    /// # Errors
    /// [`TchError`] as libtorch has it.
    pub fn value(&self) -> Result<f64, TchError> {
        let value = |part: &Option<Tensor>| part.as_ref().map_or(Ok(0.0), |part| part.f_double_value(&[]));
        // In single precision, as the sum of tensors would be.
        #[allow(clippy::cast_possible_truncation)]
        let sum = value(&self.shared)? as f32 + value(&self.own)? as f32;
        Ok(f64::from(sum))
    }

    /// What this rank differentiates, `[]`, such that the gradient wanted is the sum over `ranks`.
    ///
    /// # Errors
    /// [`TchError`] as libtorch has it.
    pub fn objective(&self, ranks: usize, scale: GradientScale) -> Result<Tensor, TchError> {
        #[allow(clippy::cast_precision_loss)] // Few.
        let ranks = ranks as f64;
        let shared = self.shared.as_ref().map(|shared| match scale {
            GradientScale::Exact => Ok(shared.shallow_clone()),
            GradientScale::FlagEmbedding => shared.f_div_scalar(ranks),
        });
        let own = self.own.as_ref().map(|own| own.f_div_scalar(ranks));
        match sum(shared.transpose()?, own.transpose()?)? {
            Some(objective) => Ok(objective),
            None => Tensor::f_zeros([0; 0], (Kind::Float, tch::Device::Cpu)),
        }
    }
}

fn sum(a: Option<Tensor>, b: Option<Tensor>) -> Result<Option<Tensor>, TchError> {
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some(a.f_add(&b)?)),
        (a, b) => Ok(a.or(b)),
    }
}

/// Inner products `[queries, passages]` over the temperature.
fn scores(queries: &Tensor, passages: &Tensor, temperature: f64) -> Result<Tensor, TchError> {
    let single = |rows: &Tensor| rows.f_to_kind(Kind::Float);
    // As the reference multiplies them: a low temperature multiplies what rounds otherwise.
    single(queries)?.f_matmul(&single(passages)?.f_transpose(0, 1)?)?.f_div_scalar(temperature)
}

/// Of a block's scores against all passages `[rows, queries * group]`, those against the own group, `[rows, group]`.
fn own_group(scores: &Tensor, block: Block) -> Result<Tensor, TchError> {
    let (rows, passages) = scores.size2()?;
    let group = block.group(passages);
    let columns: Vec<i64> = (block.first * group..(block.first + rows) * group).collect();
    let columns = Tensor::f_from_slice(&columns)?.f_view([rows, group])?;
    scores.f_gather(1, &columns.f_to_device(scores.device())?, false)
}

/// The mean negative log-likelihood of `targets` `[n]` under scores `[n, columns]`.
fn cross_entropy(scores: &Tensor, targets: &[i64]) -> Result<Tensor, TchError> {
    let targets = Tensor::f_from_slice(targets)?.f_to_device(scores.device())?;
    scores.f_cross_entropy_loss::<Tensor>(&targets, None, Reduction::Mean, -100, 0.0)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    const HOW: Contrast = Contrast {
        temperature: 0.05,
        negatives: Negatives::AllRanks,
        distillation: Distillation::Group,
        sifting: Sifting { false_negative_margin: None, guide_margin: 0.0, hardness_weight: 0.0 },
    };

    fn rows(seed: i64, count: i64) -> Tensor {
        tch::manual_seed(seed);
        model::normalized(&Tensor::randn([count, 8], (Kind::Float, Device::Cpu))).unwrap()
    }

    /// Two ranks with two queries and groups of three each.
    struct World {
        queries: Vec<Tensor>,
        passages: Vec<Tensor>,
        teacher: Option<Vec<Tensor>>,
    }

    impl World {
        fn new(taught: bool) -> Self {
            let teacher = |seed| {
                tch::manual_seed(seed);
                Tensor::randn([2, 3], (Kind::Float, Device::Cpu)).softmax(-1, Kind::Float)
            };
            Self {
                queries: vec![rows(1, 2), rows(2, 2)],
                passages: vec![rows(3, 6), rows(4, 6)],
                teacher: taught.then(|| vec![teacher(5), teacher(6)]),
            }
        }

        /// Gradients of the ranks' objectives by all rows, added up as ranks would.
        fn gradients(&self, how: &Contrast, scale: GradientScale) -> Vec<Tensor> {
            let leaves = self.queries.iter().chain(&self.passages);
            let leaves: Vec<Tensor> = leaves.map(|rows| rows.copy().set_requires_grad(true)).collect();
            for own in 0..2 {
                let side = |from: usize| -> Vec<Tensor> {
                    let of = |rank| {
                        let rows: &Tensor = &leaves[from + rank];
                        if rank == own { rows.shallow_clone() } else { rows.detach() }
                    };
                    (0..2).map(of).collect()
                };
                let (queries, passages) = (side(0), side(2));
                let teacher = self.teacher.as_deref();
                let ranks = Ranks {
                    own,
                    queries: &queries,
                    passages: &passages,
                    teacher,
                    known: Known::default(),
                    block: None,
                };
                contrast(&ranks, how).unwrap().objective(2, scale).unwrap().backward();
            }
            leaves.iter().map(Tensor::grad).collect()
        }

        /// The gradient of what the two ranks minimise together, computed in one piece.
        fn truth(&self, how: &Contrast) -> Vec<Tensor> {
            self.truth_of(how, 1.0)
        }

        /// The same with so much of the part that ranks share.
        fn truth_of(&self, how: &Contrast, share: f64) -> Vec<Tensor> {
            let leaves = self.queries.iter().chain(&self.passages);
            let leaves: Vec<Tensor> = leaves.map(|rows| rows.copy().set_requires_grad(true)).collect();
            let (queries, passages) = (&leaves[..2], &leaves[2..]);
            let total = (0..2).map(|own| {
                let ranks = Ranks {
                    own,
                    queries,
                    passages,
                    teacher: self.teacher.as_deref(),
                    known: Known::default(),
                    block: None,
                };
                let loss = contrast(&ranks, how).unwrap();
                // Of the shared part there is one.
                let shared = loss.shared.map(|shared| shared * if own == 0 { share } else { 0.0 });
                sum(shared, loss.own.map(|own| own / 2.0)).unwrap().unwrap()
            });
            total.reduce(|a, b| a + b).unwrap().backward();
            leaves.iter().map(Tensor::grad).collect()
        }
    }

    fn ratio(found: &[Tensor], expected: &[Tensor]) -> f64 {
        let dot = |a: &[Tensor], b: &[Tensor]| -> f64 {
            a.iter().zip(b).map(|(a, b)| (a * b).sum(Kind::Double).double_value(&[])).sum()
        };
        dot(found, expected) / dot(expected, expected)
    }

    #[track_caller]
    fn check_close(found: &[Tensor], expected: &[Tensor]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.allclose(expected, 1e-4, 1e-6, false), "{found} {expected}");
        }
    }

    #[test]
    fn the_exact_gradient_is_the_sum_over_ranks() {
        for taught in [false, true] {
            for distillation in [Distillation::Group, Distillation::Weighted] {
                let (world, how) = (World::new(taught), Contrast { distillation, ..HOW });
                check_close(&world.gradients(&how, GradientScale::Exact), &world.truth(&how));
            }
            let (world, how) = (World::new(taught), Contrast { negatives: Negatives::InBatch, ..HOW });
            check_close(&world.gradients(&how, GradientScale::Exact), &world.truth(&how));
        }
    }

    #[test]
    fn the_references_gradient_is_a_share_of_it() {
        let world = World::new(false);
        let found = ratio(&world.gradients(&HOW, GradientScale::FlagEmbedding), &world.truth(&HOW));
        assert!((found - 0.5).abs() < 1e-6, "{found}");
        let how = Contrast { negatives: Negatives::InBatch, ..HOW };
        let found = ratio(&world.gradients(&how, GradientScale::FlagEmbedding), &world.truth(&how));
        assert!((found - 1.0).abs() < 1e-6, "{found}");
        // Of two ranks that distil, the teacher's part is whole and the other is not.
        let (world, how) = (World::new(true), Contrast { distillation: Distillation::Group, ..HOW });
        let found = world.gradients(&how, GradientScale::FlagEmbedding);
        check_close(&found, &world.truth_of(&how, 0.5));
        assert!((ratio(&found, &world.truth(&how)) - 1.0).abs() > 1e-3);
    }

    #[test]
    fn scores_of_half_precision_are_of_single_precision() {
        tch::manual_seed(5);
        let rows = |count| {
            let rows = Tensor::randn([count, 64], (Kind::Float, tch::Device::Cpu));
            (&rows / rows.norm_scalaropt_dim(2, [1], true)).to_kind(Kind::BFloat16)
        };
        let (queries, passages) = (rows(6), rows(9));
        let found = scores(&queries, &passages, 0.02).unwrap();
        assert_eq!(found.kind(), Kind::Float);
        let double = |rows: &Tensor| rows.to_kind(Kind::Double);
        let expected = double(&queries).matmul(&double(&passages).transpose(0, 1)) / 0.02;
        let worst = (found.to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
        // In bfloat16 a score of 20 is off by as much as 0.06.
        assert!(worst < 1e-3, "{worst}");
    }

    #[track_caller]
    fn check(taught: bool, how: Contrast, expected: impl Fn(&[f64], &[f64]) -> f64) {
        let world = World::new(taught);
        let ranks = Ranks {
            own: 0,
            queries: &world.queries,
            passages: &world.passages,
            teacher: world.teacher.as_deref(),
            known: Known::default(),
            block: None,
        };
        let found = contrast(&ranks, &how).unwrap().value().unwrap();
        let scores = scores(&world.queries[0], &world.passages[0], how.temperature).unwrap();
        let teacher = world.teacher.as_ref().map(|teacher| &teacher[0]);
        let per_query = (0..2_i64).map(|query| {
            let numbers = |row: Tensor| Vec::<f64>::try_from(row.to_kind(Kind::Double)).unwrap();
            // The own group first, whatever else there is behind it.
            let row = numbers(scores.get(query).roll([-3 * query], [0]));
            expected(&row, &teacher.map(|teacher| numbers(teacher.get(query))).unwrap_or_default())
        });
        let expected = per_query.sum::<f64>() / 2.0;
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }

    /// How unlikely `place` is among `scores`.
    fn surprise(scores: &[f64], place: usize) -> f64 {
        scores.iter().map(|score| score.exp()).sum::<f64>().ln() - scores[place]
    }

    #[test]
    fn losses_are_those_of_the_formulas() {
        let own = Contrast { negatives: Negatives::OwnGroup, ..HOW };
        let batch = Contrast { negatives: Negatives::InBatch, ..HOW };
        check(false, own, |row, _| surprise(&row[..3], 0));
        check(false, batch, |row, _| surprise(row, 0));
        let towards = |row: &[f64], teacher: &[f64]| -> f64 {
            (0..3).map(|place| teacher[place] * surprise(&row[..3], place)).sum()
        };
        check(true, own, |row, teacher| surprise(&row[..3], 0) + towards(row, teacher));
        check(true, batch, |row, teacher| surprise(row, 0) + towards(row, teacher));
        let weighted = |row: &[f64], teacher: &[f64]| -> f64 {
            (0..3).map(|place| teacher[place] * surprise(&row[place..], 0)).sum()
        };
        let weigh = |how: Contrast| Contrast { distillation: Distillation::Weighted, ..how };
        check(true, weigh(batch), weighted);
        check(true, weigh(own), |row, teacher| weighted(&row[..3], teacher));
    }

    #[test]
    fn groups_of_logits_are_told_apart() {
        let logits = Tensor::from_slice(&[1.0_f32, 0.5, -1.0, 0.0, 2.0, 0.3]);
        let found = grouped(&logits, 3, None).unwrap().value().unwrap();
        let expected = f64::midpoint(surprise(&[1.0, 0.5, -1.0], 0), surprise(&[0.0, 2.0, 0.3], 0));
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        let even = Tensor::from_slice(&[1.0_f32 / 3.0; 6]).view([2, 3]);
        let taught = grouped(&logits, 3, Some(&even)).unwrap().value().unwrap();
        let mean: f64 =
            (0..3).map(|place| surprise(&[1.0, 0.5, -1.0], place) + surprise(&[0.0, 2.0, 0.3], place)).sum();
        assert!((taught - expected - mean / 6.0).abs() < 1e-6, "{taught}");
    }
}
