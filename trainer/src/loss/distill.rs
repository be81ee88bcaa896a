//! Learning from a teacher's scores.

use tch::{Kind, Reduction, TchError, Tensor};

use super::Block;

/// How a teacher's distribution over a group is learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distillation {
    /// `kl_div`: the own group's distribution comes close to the teacher's, beside the contrastive loss.
    #[default]
    Group,
    /// `m3_kd_loss`, in place of the contrastive loss: each of the group stands against all other passages, weighted
    /// by the teacher. Source: Chen et al. 2024, arXiv:2402.03216.
    Weighted,
}

/// Cross-entropy of the student's distribution under the teacher's, `[]`, the mean over rows.
///
/// * `teacher` - `[n, columns]`, rows sum to 1
/// * `student` - scores, `[n, columns]`
pub(super) fn towards(teacher: &Tensor, student: &Tensor) -> Result<Tensor, TchError> {
    let products = student.f_log_softmax(-1, Kind::Float)?.f_mul(teacher)?; // [n, columns]
    products.f_sum_dim_intlist([-1].as_slice(), false, Kind::Float)?.f_mean(Kind::Float)?.f_neg()
}

/// The sum over a group's places of the cross-entropy of that place's passage, weighted by the teacher, `[]`. The
/// places before it are left out of the sum below the fraction.
///
/// * `teacher` - `[rows, group]`, rows sum to 1
/// * `student` - scores of a block, `[rows, n * group]`
pub(super) fn weighted(teacher: &Tensor, student: &Tensor, block: Block) -> Result<Tensor, TchError> {
    let (_, group) = teacher.size2()?;
    let mut mask = student.f_zeros_like()?;
    let mut total = None;
    for place in 0..group {
        let targets: Vec<i64> = block.positives(group).iter().map(|positive| positive + place).collect();
        let targets = Tensor::f_from_slice(&targets)?.f_to_device(student.device())?; // [n]
        let masked = student.f_add(&mask)?;
        let losses = masked.f_cross_entropy_loss::<Tensor>(&targets, None, Reduction::None, -100, 0.0)?;
        let loss = teacher.f_select(1, place)?.f_mul(&losses)?.f_mean(Kind::Float)?;
        total = super::sum(total, Some(loss))?;
        let _ = mask.f_scatter_value_(1, &targets.f_unsqueeze(-1)?, f64::from(f32::MIN))?;
    }
    total.map_or_else(|| student.f_zeros_like()?.f_sum(Kind::Float), Ok)
}
