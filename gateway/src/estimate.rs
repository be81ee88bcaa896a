//! How many tokens a text will be, before a tokenizer has seen it.
//!
//! The gateway has no tokenizer: it weighs a text by its characters, and corrects the weight per checkpoint by what
//! answers say they cost. Used for splitting, routing and admission; never for what a caller is told or billed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::checkpoint::Digest;

/// Special tokens around a text.
const SPECIAL: usize = 2;
/// Bytes of a token in text that is ASCII: about right for English under WordPiece.
const ASCII_PER_TOKEN: usize = 4;
/// How much of a new observation is believed.
const TRUST: f64 = 0.1;
/// However odd the texts, no tokenizer is further from the weight than this.
const WILDEST: f64 = 8.0;

/// The weight of a text: its tokens under a tokenizer that takes four ASCII characters to a token, and one of any
/// other script.
#[must_use]
pub fn weigh(text: &str) -> u64 {
    let ascii = text.bytes().filter(u8::is_ascii).count();
    // Each character above ASCII starts with exactly one byte of this form.
    let others = text.bytes().filter(|byte| byte & 0b1100_0000 == 0b1100_0000).count();
    (SPECIAL + ascii.div_ceil(ASCII_PER_TOKEN) + others) as u64
}

/// Tokens per weight of each checkpoint, as measured.
#[derive(Debug, Default)]
pub struct Estimates(Mutex<HashMap<Digest, f64>>);

impl Estimates {
    /// Tokens per weight.
    #[must_use]
    pub fn factor(&self, digest: &Digest) -> f64 {
        let factors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        factors.get(digest).copied().unwrap_or(1.0)
    }

    /// Takes in that texts of `weight` turned out to be `tokens`.
    pub fn learn(&self, digest: &Digest, weight: f64, tokens: u64) {
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let seen = tokens as f64 / weight;
        if !seen.is_finite() || seen <= 0.0 {
            return;
        }
        let mut factors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = factors.get(digest).copied();
        factors.insert(digest.clone(), blend(old, seen));
    }
}

/// The first observation is taken as it is; later ones move the average.
fn blend(old: Option<f64>, seen: f64) -> f64 {
    let seen = seen.clamp(1.0 / WILDEST, WILDEST);
    old.map_or(seen, |old| old + TRUST * (seen - old))
}

/// Estimated tokens of one text, at least 1 and at most the checkpoint's window (0 for unknown).
#[must_use]
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn tokens(weight: u64, factor: f64, window: u32) -> u64 {
    let tokens = ((weight as f64 * factor).ceil() as u64).max(1);
    if window == 0 { tokens } else { tokens.min(window.into()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scripts_weigh_what_they_cost() {
        #[track_caller]
        fn check(text: &str, expected: u64) {
            assert_eq!(weigh(text), expected, "{text:?}");
        }
        check("", 2);
        check("four", 3);
        check("fives", 4);
        check("模型", 4);
        check("né", 4);
        check("🦀🦀", 4);
    }

    #[test]
    fn the_first_answer_is_believed_and_the_next_ones_move_the_average() {
        let (estimates, digest) = (Estimates::default(), Digest::from("d"));
        assert!((estimates.factor(&digest) - 1.0).abs() < 1e-9);
        estimates.learn(&digest, 100.0, 200);
        assert!((estimates.factor(&digest) - 2.0).abs() < 1e-9);
        estimates.learn(&digest, 100.0, 100);
        assert!((estimates.factor(&digest) - 1.9).abs() < 1e-9);
        assert!((estimates.factor(&Digest::from("other")) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn nonsense_teaches_nothing() {
        let (estimates, digest) = (Estimates::default(), Digest::from("d"));
        estimates.learn(&digest, 0.0, 7);
        estimates.learn(&digest, 0.0, 0);
        estimates.learn(&digest, 7.0, 0);
        assert!((estimates.factor(&digest) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_window_bounds_an_estimate() {
        assert_eq!(tokens(100, 1.5, 0), 150);
        assert_eq!(tokens(100, 1.5, 128), 128);
        assert_eq!(tokens(1, 0.1, 128), 1);
    }

    proptest! {
        #[test]
        fn the_factor_stays_within_bounds(seen in proptest::collection::vec((1.0_f64..1e6, 0_u64..1 << 40), 0..50)) {
            let (estimates, digest) = (Estimates::default(), Digest::from("d"));
            for (weight, tokens) in seen {
                estimates.learn(&digest, weight, tokens);
                let factor = estimates.factor(&digest);
                prop_assert!((1.0 / WILDEST..=WILDEST).contains(&factor));
            }
        }
    }
}
