//! Cuts a call into shards.
//!
//! A shard is small enough that a worker can put other work between two of one call, and large enough that the
//! worker has texts of like lengths to batch. A small call stays whole: halves of it would cost two round trips
//! and two poorly filled batches.

use std::ops::Range;

/// A worker that gets fewer tokens than this from a call would have gained nothing from the split.
const WORTH_A_SHARD: u64 = 1024;
/// Inputs of one shard, so that its answer stays a message of some megabytes however short the texts.
const MOST_INPUTS: usize = 1024;

/// A run of a call's inputs that goes to one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Positions in the call; not empty.
    pub range: Range<usize>,
    /// Estimated tokens.
    pub tokens: u64,
}

/// Cuts inputs of `costs` tokens into pieces of about `shard_tokens` at most, in order; into at least one for each
/// of `workers` where there is enough to do.
///
/// A piece exceeds `shard_tokens` by less than one input.
#[must_use]
pub fn plan(costs: &[u64], shard_tokens: u64, workers: usize) -> Vec<Piece> {
    let total: u64 = costs.iter().sum();
    let bounded = total.div_ceil(shard_tokens.max(1));
    let shared = (total / WORTH_A_SHARD).min(workers as u64);
    let share = total.div_ceil(bounded.max(shared).max(1)).max(1);

    let mut pieces: Vec<Piece> = Vec::new();
    let (mut before, mut slot) = (0, 0);
    for (i, cost) in costs.iter().enumerate() {
        // An input belongs where its middle falls: pieces differ by less than one input.
        let middle = (before + cost / 2) / share;
        before += cost;
        match pieces.last_mut() {
            Some(piece) if middle == slot && piece.range.len() < MOST_INPUTS => {
                piece.range.end = i + 1;
                piece.tokens += cost;
            }
            Some(_) | None => pieces.push(Piece { range: i..i + 1, tokens: *cost }),
        }
        slot = middle;
    }
    pieces
}

/// How many tokens a shard may have for workers of `tokens_per_second` each: a tenth of a second of work, within
/// bounds that leave room for batching on slow devices and for others on fast ones.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
pub fn shard_tokens(tokens_per_second: f64) -> u64 {
    (tokens_per_second / 10.0).clamp(2_048.0, 65_536.0) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `expected` are the inputs of each piece, in order.
    #[track_caller]
    fn check(costs: &[u64], shard_tokens: u64, workers: usize, expected: &[usize]) {
        let pieces = plan(costs, shard_tokens, workers);
        assert_eq!(pieces.iter().map(|piece| piece.range.len()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_small_call_stays_whole() {
        check(&[7], 8192, 8, &[1]);
        check(&[10; 20], 8192, 8, &[20]);
        check(&[1000, 1000], 8192, 1, &[2]);
        check(&[1000, 1000], 8192, 2, &[2]);
    }

    #[test]
    fn a_larger_call_is_shared_evenly() {
        check(&[1024, 1024], 8192, 2, &[1, 1]);
        check(&[512; 8], 8192, 2, &[4, 4]);
        check(&[512; 8], 8192, 3, &[3, 2, 3]);
    }

    #[test]
    fn shards_are_bounded() {
        check(&[512; 8], 1024, 1, &[2, 2, 2, 2]);
        check(&[9000], 8192, 1, &[1]);
        check(&vec![1; 2050], 8192, 1, &[1024, 1024, 2]);
    }

    #[test]
    fn a_shard_is_a_tenth_of_a_second_within_bounds() {
        assert_eq!(shard_tokens(0.0), 2048);
        assert_eq!(shard_tokens(200_000.0), 20_000);
        assert_eq!(shard_tokens(1e9), 65_536);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_order_is_kept(
            costs in proptest::collection::vec(0_u64..5000, 1..3000),
            shard_tokens in 1_u64..20_000,
            workers in 0_usize..20,
        ) {
            let pieces = plan(&costs, shard_tokens, workers);
            let mut next = 0;
            for Piece { range, tokens } in pieces {
                prop_assert_eq!(range.start, next);
                prop_assert!(!range.is_empty() && range.len() <= MOST_INPUTS);
                prop_assert_eq!(costs[range.clone()].iter().sum::<u64>(), tokens);
                let largest = costs[range.clone()].iter().max().unwrap();
                prop_assert!(tokens <= shard_tokens.max(1) + largest, "{} {}", tokens, largest);
                next = range.end;
            }
            prop_assert_eq!(next, costs.len());
        }
    }
}
