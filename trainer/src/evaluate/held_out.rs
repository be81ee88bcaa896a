//! A part of the training data that is not trained on.

use std::collections::{BTreeMap, HashMap};

use super::Judged;
use crate::data::Corpus;
use crate::error::TrainError;

/// Whether example `index` of a file is held out, where a share of all is: always the same ones for a `seed`, whatever else
/// is trained on.
#[must_use]
pub fn hold_out(share: f64, seed: u64, index: usize) -> bool {
    // SplitMix64 (Steele, Lea and Flood 2014), over the example's number.
    let z = seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit")]
    let draw = ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
    draw < share
}

/// Rows of training data as questions with judged answers: every positive and negative of `rows` may answer, and those of
/// one row that are equal to those of another are one passage. Judged for a query are its own.
///
/// # Errors
/// [`TrainError::Format`] names the line; [`TrainError::Unsupported`] where no row has an answer, or there is no row.
pub fn rows_to_judged(rows: &Corpus) -> Result<Judged, TrainError> {
    let (mut judged, mut places) = (Judged::default(), HashMap::new());
    for row in 0..rows.len() {
        let example = rows.read(row)?;
        let mut place = |text: String| {
            *places.entry(text.clone()).or_insert_with(|| {
                judged.passages.push(text);
                judged.passages.len() - 1
            })
        };
        let mut grades: BTreeMap<usize, f64> =
            example.pos.into_iter().map(|text| (place(text), 1.0)).collect();
        let has_answer = !grades.is_empty();
        for text in example.neg {
            grades.entry(place(text)).or_insert(0.0);
        }
        if has_answer {
            judged.queries.push(example.query);
            judged.grades.push(grades);
        }
    }
    if judged.queries.is_empty() {
        let what = "evaluation.split holds out no question of the training data: take a larger share";
        return Err(TrainError::Unsupported(what.to_owned()));
    }
    Ok(judged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_the_share_is_held_out_and_always_the_same() {
        let held = |seed| (0..10_000).filter(|&index| hold_out(0.1, seed, index)).collect::<Vec<_>>();
        assert!((900..1_100).contains(&held(1).len()), "{}", held(1).len());
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
        assert!(!(0..100).any(|index| hold_out(0.0, 1, index)));
    }
}
