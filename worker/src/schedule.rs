//! How work is counted, and which of the waiting texts make a good batch. Numbers in, numbers out.
//!
//! A batch runs its linear layers over `[tokens, hidden]`, without padding, and its attention once for each group
//! of sequences of equal length. So two things are paid for beside the tokens themselves: the square of each
//! length, and each group. Both are counted here in *work*, the time of one token in the linear layers, and a
//! batch is as many sequences as fit a budget of work.
//!
//! What [`crate::queue`] decides, and this module does not, is who goes first.

/// Length at which a sequence costs as much in attention as in linear layers. Their ratio is `length / (6 × hidden)`;
/// this is `6 × hidden` of the narrowest models served, 384 wide, and too careful for wider ones.
const SQUARE: usize = 2304;

/// Work of one more attention group. Measured on two CPU cores with one group for each sequence instead of one for
/// each length: 9 tokens' time with a 384-wide model of 6 layers, 4 with a 768-wide one of 12.
const GROUP: usize = 8;

/// The part of a budget that groups may take while better company is waiting: one in eight.
const WASTE: usize = 8;

/// How many budgets of work [`fill`] is shown. More would find closer lengths, and let a text that is unlike its
/// neighbours be overtaken for longer.
pub const LOOK_AHEAD: usize = 2;

/// Work of one sequence of `tokens`, in tokens.
#[must_use]
pub fn work(tokens: usize) -> usize {
    tokens + tokens * tokens / SQUARE
}

/// Work of a batch with these lengths: of each sequence, and of each distinct length.
#[must_use]
pub fn batch_work(lengths: &[usize]) -> usize {
    lengths.iter().map(|&tokens| work(tokens)).sum::<usize>() + GROUP * distinct(lengths)
}

/// Picks the batch to run now out of `window`: lengths of what waits, in tokens, the most urgent first. Answers
/// ascending positions.
///
/// * The first is always taken: an oversized text is late, never stuck.
/// * Everything is taken where it fits `budget`: a group costs the same in this batch as in the next.
/// * Otherwise the lengths nearest to the first's go with it, in their order where lengths are equal, as long as
///   the whole stays within `budget` and its groups within an eighth of it.
#[must_use]
pub fn fill(window: &[usize], budget: usize) -> Vec<usize> {
    if batch_work(window) <= budget {
        return (0..window.len()).collect();
    }
    let Some(&head) = window.first() else { return Vec::new() };
    let mut nearest: Vec<usize> = (0..window.len()).collect();
    nearest.sort_unstable_by_key(|&at| (window[at].abs_diff(head), window[at], at));
    let mut spent = 0;
    let mut groups = 0;
    let mut last = None;
    let fits = |at: &usize| {
        let opens = last != Some(window[*at]);
        groups += usize::from(opens);
        spent += work(window[*at]) + if opens { GROUP } else { 0 };
        last = Some(window[*at]);
        *at == 0 || (spent <= budget && groups * GROUP * WASTE <= budget)
    };
    let mut picks: Vec<usize> = nearest.into_iter().take_while(fits).collect();
    picks.sort_unstable();
    picks
}

fn distinct(lengths: &[usize]) -> usize {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    sorted.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(window: &[usize], budget: usize, expected: &[usize]) {
        assert_eq!(fill(window, budget), expected);
    }

    #[test]
    fn all_go_together_when_they_fit() {
        check(&[], 100, &[]);
        check(&[5, 9, 5], 35, &[0, 1, 2]);
        // Twenty lengths: more groups than an eighth of the budget, and no reason to wait.
        let all: Vec<usize> = (1..=20).collect();
        check(&all, 400, &(0..20).collect::<Vec<_>>());
    }

    #[test]
    fn lengths_near_the_first_go_with_it() {
        check(&[100, 900, 100, 900, 100], 600, &[0, 2, 4]);
        check(&[90, 10, 90, 10, 10], 210, &[0, 2]);
        check(&[20, 60, 21, 40, 19], 130, &[0, 4]);
    }

    #[test]
    fn equal_lengths_keep_their_order() {
        check(&[20, 20, 20, 20], 70, &[0, 1, 2]);
    }

    #[test]
    fn an_oversized_text_goes_alone() {
        check(&[500, 1, 1], 100, &[0]);
        check(&[1, 500, 1], 100, &[0, 2]);
    }

    #[test]
    fn long_texts_cost_their_square() {
        assert_eq!((work(0), work(16), work(2304), work(4608)), (0, 16, 4608, 13_824));
        check(&[512; 4], 2048, &[0, 1, 2]);
    }

    #[test]
    fn groups_stay_within_an_eighth_of_the_budget() {
        // 256 of work may hold 4 groups; here each text opens one.
        let window: Vec<usize> = (10..40).collect();
        check(&window, 256, &[0, 1, 2, 3]);
    }

    proptest! {
        #[test]
        fn the_laws_of_a_batch(window in prop::collection::vec(1_usize..600, 0..200), budget in 1_usize..5000) {
            let picks = fill(&window, budget);
            prop_assert!(picks.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(picks.first(), (!window.is_empty()).then_some(&0));
            let lengths: Vec<usize> = picks.iter().map(|&at| window[at]).collect();
            prop_assert!(picks.len() <= 1 || batch_work(&lengths) <= budget);
            prop_assert!(
                picks.len() == window.len() || picks.len() <= 1 || distinct(&lengths) * GROUP * WASTE <= budget
            );
            for (at, tokens) in window.iter().enumerate() {
                // Whoever stays is not overtaken by one of the same length behind.
                let overtaken = |&pick: &usize| pick > at && window[pick] == *tokens;
                prop_assert!(picks.contains(&at) || !picks.iter().any(overtaken));
            }
        }
    }
}
