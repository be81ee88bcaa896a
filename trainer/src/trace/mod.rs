//! Recorded runs of the reference, replayed number by number.
//!
//! A trace folder holds the token batches of a run of `FlagEmbedding`, its losses and gradient norms, and how far each
//! weight went. [`replay`] starts from the same weights, takes the same batches through our model, losses and
//! optimiser, and reports the worst differences.

mod batches;
mod gradients;
mod hyperparameters;
mod recorded;
mod replay;
mod report;
mod samples;
mod source;

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::TrainError;

pub use replay::{Replay, replay};
pub use report::{Report, Row};
pub use source::Places;

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = std::fs::read_to_string(path).map_err(|source| TrainError::io(path, source))?;
    serde_json::from_str(&without_nan(&text)).map_err(|error| TrainError::format(path, error))
}

/// Python's JSON as JSON: `NaN` and infinities, which are no numbers there, become `null`.
fn without_nan(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    // Every other piece is inside of quotes; one that ends in a backslash goes on behind the quote.
    let mut quoted = false;
    for piece in text.split_inclusive('"') {
        if quoted {
            cleaned += piece;
        } else {
            cleaned += &piece.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
        }
        let escaped =
            quoted && piece.trim_end_matches('"').bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 1;
        quoted ^= piece.ends_with('"') && !escaped;
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_nothing() {
        for (text, expected) in [
            (r#"{"a": NaN, "b": [-Infinity, Infinity, 1.5]}"#, r#"{"a": null, "b": [null, null, 1.5]}"#),
            (r#"{"NaN": "NaN \" NaN", "b\\": NaN}"#, r#"{"NaN": "NaN \" NaN", "b\\": null}"#),
            (r#"["", NaN, "\"", NaN]"#, r#"["", null, "\"", null]"#),
        ] {
            assert_eq!(without_nan(text), expected);
        }
    }
}
