//! A cross-encoder's logits, group by group.

use tch::{TchError, Tensor};

use super::distill::towards;
use super::{Loss, cross_entropy};

/// Each group's positive, its first, against the group; with a teacher also its distribution.
///
/// * `logits` - `[n * group]`
/// * `teacher` - `[n, group]`, rows sum to 1
///
/// # Errors
/// [`TchError`] when shapes do not fit.
pub fn grouped(logits: &Tensor, group: i64, teacher: Option<&Tensor>) -> Result<Loss, TchError> {
    let groups = logits.f_to_kind(tch::Kind::Float)?.f_view([-1, group])?; // [n, group]
    let (rows, _) = groups.size2()?;
    let loss = cross_entropy(&groups, &super::Block::whole(rows).positives(0))?;
    let loss = match teacher {
        Some(teacher) => loss.f_add(&towards(teacher, &groups)?)?,
        None => loss,
    };
    Ok(Loss::own(loss))
}
