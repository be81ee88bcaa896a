//! `grads_step*.npz`: gradients of the first optimiser steps, whole or in slices.

use std::path::Path;

use tch::{Kind, Tensor};

use super::hyperparameters::our_name;
use super::report::Row;
use crate::error::TrainError;

/// Takes the differences between `found` and the record of step `step` into `row`, relative to a tensor's largest.
///
/// # Errors
/// [`TrainError::Format`] for a file that cannot be read; one that is not there is no error.
pub(super) fn compare(
    dir: &Path,
    step: u64,
    found: &[(&str, Tensor)],
    row: &mut Row,
) -> Result<(), TrainError> {
    let path = dir.join(format!("grads_step{step:03}.npz"));
    if !path.exists() {
        return Ok(());
    }
    for (name, expected) in Tensor::read_npz(&path).map_err(|error| TrainError::format(&path, error))? {
        let (name, slice) = slice(our_name(&name));
        let Some((_, gradient)) = found.iter().find(|(found, _)| our_name(found) == name) else { continue };
        if super::replay::moves_by_rounding(name) {
            continue;
        }
        let gradient = cut(&gradient.f_view([-1])?, slice)?;
        let expected = expected.f_view([-1])?;
        if gradient.size() != expected.size() {
            row.take(f64::INFINITY, || format!("step {step}, {name}: another shape"));
            continue;
        }
        let difference = gradient.f_sub(&expected)?.f_abs()?.f_max()?.f_double_value(&[])?;
        let largest = expected.f_abs()?.f_max()?.f_double_value(&[])?;
        row.take(difference / largest.max(f64::MIN_POSITIVE), || format!("step {step}, {name}"));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slice {
    Whole,
    /// The first so many numbers.
    Head(i64),
    /// Every so many-th number, 256 of them.
    Stride(i64),
}

/// The tensor's name, and which of its numbers an array holds.
fn slice(array: &str) -> (&str, Slice) {
    let parsed = array.rsplit_once('.').and_then(|(name, last)| {
        let number = |prefix: &str| last.strip_prefix(prefix)?.parse().ok();
        let slice = number("head").map(Slice::Head).or_else(|| number("stride").map(Slice::Stride));
        slice.map(|slice| (name, slice))
    });
    parsed.unwrap_or((array, Slice::Whole))
}

fn cut(flat: &Tensor, slice: Slice) -> Result<Tensor, TrainError> {
    let length = flat.size1()?;
    Ok(match slice {
        Slice::Whole => flat.shallow_clone(),
        Slice::Head(count) => flat.f_narrow(0, 0, count.min(length))?,
        Slice::Stride(stride) => {
            let every = flat.f_slice(0, 0, None, stride.max(1))?.f_to_kind(Kind::Float)?;
            every.f_narrow(0, 0, every.size1()?.min(256))?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_told_by_their_names() {
        assert_eq!(slice("a.weight"), ("a.weight", Slice::Whole));
        assert_eq!(slice("a.weight.head256"), ("a.weight", Slice::Head(256)));
        assert_eq!(slice("a.weight.stride576"), ("a.weight", Slice::Stride(576)));
        let flat = Tensor::arange(1000, (Kind::Float, tch::Device::Cpu));
        assert_eq!(cut(&flat, Slice::Stride(3)).unwrap().size(), [256]);
        let last = |slice| cut(&flat, slice).unwrap().int64_value(&[-1]);
        assert_eq!([last(Slice::Stride(10)), last(Slice::Head(256))], [990, 255]);
    }
}
