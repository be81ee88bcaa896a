//! The sum of all ranks' gradients.
//!
//! Of the rows of a table, such as the words' vectors, a batch reads few, and the gradients of the others are 0: 47 of
//! MiniLM's 91 MB are one. Ranks tell each other which rows they have, and exchange those that any of them has.

use tch::{Kind, Tensor};

use crate::collective::Collective;
use crate::error::TrainError;

/// Numbers of a gradient that is exchanged by itself; smaller ones go together.
const LARGE: usize = 1 << 16;
/// A table has more rows than this for each of its columns; a layer has fewer.
const TALL: i64 = 8;
/// One of how many rows may be there for the rows to be picked out; more of them are not worth the copies.
const SPARSE: i64 = 2;

/// Overwrites gradients with their sums over ranks: large ones where they are, tables by the rows that are not 0, the
/// others in one exchange.
///
/// # Errors
/// [`TrainError::Torch`] when a rank is gone or late.
pub fn sum_gradients(world: &impl Collective, gradients: &[(&str, Tensor)]) -> Result<(), TrainError> {
    if world.place().ranks == 1 {
        return Ok(());
    }
    let _guard = tch::no_grad_guard();
    let all = gradients.iter().map(|(_, gradient)| gradient);
    let (large, small): (Vec<&Tensor>, Vec<&Tensor>) =
        all.partition(|gradient| gradient.numel() >= LARGE && gradient.is_contiguous());
    for gradient in large {
        if is_table(gradient) { sum_table(world, gradient)? } else { world.sum(gradient)? }
    }
    sum_together(world, &small)
}

fn is_table(gradient: &Tensor) -> bool {
    matches!(gradient.size()[..], [rows, columns] if rows > TALL * columns)
}

/// Sums `gradient` `[rows, columns]` over ranks. All ranks come to the same rows, so all exchange the same shape.
fn sum_table(world: &impl Collective, gradient: &Tensor) -> Result<(), TrainError> {
    let rows = rows_of_any(world, gradient)?;
    if rows.numel() == 0 {
        return Ok(());
    }
    if rows.size1()? * SPARSE > gradient.size()[0] {
        return Ok(world.sum(gradient)?);
    }
    let picked = gradient.f_index_select(0, &rows)?; // [rows of any, columns]
    world.sum(&picked)?;
    let _ = gradient.shallow_clone().f_index_copy_(0, &rows, &picked)?;
    Ok(())
}

/// The rows in which some rank has a number other than 0, in order. A number that is none counts, so that it spreads.
fn rows_of_any(world: &impl Collective, gradient: &Tensor) -> Result<Tensor, TrainError> {
    let largest = gradient.f_norm_scalaropt_dim(f64::INFINITY, [1].as_slice(), false)?;
    let ranks_with = largest.f_ne(0)?.f_to_kind(Kind::Float)?; // [rows]
    world.sum(&ranks_with)?;
    Ok(ranks_with.f_nonzero()?.f_squeeze_dim(1)?)
}

fn sum_together(world: &impl Collective, gradients: &[&Tensor]) -> Result<(), TrainError> {
    if gradients.is_empty() {
        return Ok(());
    }
    let flat = gradients.iter().map(|gradient| gradient.f_reshape([-1])).collect::<Result<Vec<_>, _>>()?;
    let sizes: Vec<i64> = flat.iter().map(Tensor::size1).collect::<Result<_, _>>()?;
    let flat = Tensor::f_cat(&flat, 0)?;
    world.sum(&flat)?;
    for (gradient, sum) in gradients.iter().zip(flat.f_split_with_sizes(&sizes, 0)?) {
        gradient.shallow_clone().f_copy_(&sum.f_view_as(gradient)?)?;
    }
    Ok(())
}
