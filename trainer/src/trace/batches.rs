//! `batches_rank*.npz`: the exact token batches of a run.

use std::collections::HashMap;
use std::path::Path;

use model::Sequence;
use tch::{Kind, Tensor};

use crate::error::TrainError;
use crate::objective::Side;

/// One rank's share of a micro step, as recorded.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Recorded {
    /// Queries and passages.
    Texts(Texts),
    /// Pairs in groups.
    Pairs {
        /// Query-major, each group's positive first.
        pairs: Side,
        /// The teacher's scores.
        teacher: Option<Vec<f64>>,
    },
}

/// Queries and passages, in the parts that the reference ran one by one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Texts {
    /// One part, or a part per sub-batch.
    pub(super) queries: Vec<Side>,
    /// One part, or a part per sub-batch.
    pub(super) passages: Vec<Side>,
    /// The teacher's scores.
    pub(super) teacher: Option<Vec<f64>>,
    /// Whether negatives are the own group's alone.
    pub(super) own_group: bool,
}

/// All micro steps of a rank.
///
/// # Errors
/// [`TrainError::Format`] names the array at fault.
pub(super) fn read(path: &Path) -> Result<Vec<Recorded>, TrainError> {
    if !path.exists() {
        return Err(TrainError::io(path, std::io::ErrorKind::NotFound.into()));
    }
    let arrays = Tensor::read_npz(path).map_err(|error| TrainError::format(path, error))?;
    let arrays: HashMap<String, Tensor> = arrays.into_iter().collect();
    let file = File { path, arrays };
    let mut steps = Vec::new();
    while let Some(step) = file.step(steps.len())? {
        steps.push(step);
    }
    if steps.is_empty() {
        return Err(TrainError::format(path, "there is no step000"));
    }
    Ok(steps)
}

struct File<'a> {
    path: &'a Path,
    arrays: HashMap<String, Tensor>,
}

impl File<'_> {
    fn step(&self, index: usize) -> Result<Option<Recorded>, TrainError> {
        let name = format!("step{index:03}");
        let teacher = self.teacher(&format!("{name}.teacher_scores"))?;
        if self.arrays.contains_key(&format!("{name}.pair.input_ids")) {
            let pairs = self.rows(&format!("{name}.pair"))?;
            return Ok(Some(Recorded::Pairs { pairs, teacher }));
        }
        let queries = self.side(&format!("{name}.queries"))?;
        let passages = self.side(&format!("{name}.passages"))?;
        let own_group = match self.arrays.get(&format!("{name}.no_in_batch_neg_flag")) {
            Some(flag) => flag.f_to_kind(Kind::Int64)?.f_view([-1])?.f_int64_value(&[0])? != 0,
            None => false,
        };
        match (queries.is_empty(), passages.is_empty()) {
            (false, false) => Ok(Some(Recorded::Texts(Texts { queries, passages, teacher, own_group }))),
            (true, true) => Ok(None),
            _ => Err(self.fault(&name, "queries without passages, or passages without queries")),
        }
    }

    /// Rows under `name`, or those of its sub-batches.
    fn side(&self, name: &str) -> Result<Vec<Side>, TrainError> {
        if self.arrays.contains_key(&format!("{name}.input_ids")) {
            return Ok(vec![self.rows(name)?]);
        }
        let subs = (0..).map(|sub| format!("{name}.sub{sub}"));
        subs.take_while(|name| self.arrays.contains_key(&format!("{name}.input_ids")))
            .map(|name| self.rows(&name))
            .collect()
    }

    fn rows(&self, name: &str) -> Result<Side, TrainError> {
        let ids = self.matrix(&format!("{name}.input_ids"))?;
        let mask = self.matrix(&format!("{name}.attention_mask"))?;
        let types = format!("{name}.token_type_ids");
        let types = if self.arrays.contains_key(&types) { Some(self.matrix(&types)?) } else { None };
        let width = ids.first().map_or(0, Vec::len);
        let mut sequences = Vec::with_capacity(ids.len());
        for (row, ids) in ids.iter().enumerate() {
            let mask = mask.get(row).ok_or_else(|| self.fault(name, "fewer masks than rows"))?;
            let types = types.as_ref().and_then(|types| types.get(row));
            let sequence = sequence(ids, mask, types).map_err(|reason| self.fault(name, reason))?;
            sequences.push(sequence);
        }
        Ok(Side { sequences, width })
    }

    fn matrix(&self, name: &str) -> Result<Vec<Vec<i64>>, TrainError> {
        let array = self.arrays.get(name).ok_or_else(|| self.fault(name, "it is missing"))?;
        let array = array.f_to_kind(Kind::Int64)?;
        Vec::<Vec<i64>>::try_from(&array).map_err(|error| self.fault(name, error))
    }

    fn teacher(&self, name: &str) -> Result<Option<Vec<f64>>, TrainError> {
        let Some(array) = self.arrays.get(name) else { return Ok(None) };
        let array = array.f_to_kind(Kind::Double)?.f_view([-1])?;
        Vec::<f64>::try_from(&array).map(Some).map_err(|error| self.fault(name, error))
    }

    fn fault(&self, array: &str, reason: impl std::fmt::Display) -> TrainError {
        TrainError::format(self.path, format!("array {array}: {reason}"))
    }
}

/// A row without its padding, which is on the right.
fn sequence(ids: &[i64], mask: &[i64], types: Option<&Vec<i64>>) -> Result<Sequence, &'static str> {
    let tokens = mask.iter().take_while(|&&there| there != 0).count();
    if tokens == 0 || tokens > ids.len() || mask[tokens..].iter().any(|&there| there != 0) {
        return Err("a row is empty, or its padding is not on the right");
    }
    let ids = ids[..tokens].iter().map(|&id| u32::try_from(id).map_err(|_| "a token id is negative"));
    let second = types.and_then(|types| types.iter().take(tokens).position(|&kind| kind == 1));
    Ok(Sequence { ids: ids.collect::<Result<_, _>>()?, second: second.unwrap_or(tokens) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_dropped_and_segments_are_kept() {
        let row = sequence(&[5, 6, 7, 0], &[1, 1, 1, 0], Some(&vec![0, 1, 1, 0]));
        assert_eq!(row, Ok(Sequence { ids: vec![5, 6, 7], second: 1 }));
        assert_eq!(sequence(&[5, 6], &[1, 1], None), Ok(Sequence::single(vec![5, 6])));
        sequence(&[0, 5], &[0, 1], None).unwrap_err();
        sequence(&[5, 0, 6], &[1, 0, 1], None).unwrap_err();
        sequence(&[-5], &[1], None).unwrap_err();
    }
}
