//! Which worker gets a shard: the better of two drawn at random.
//!
//! Always taking the best would send every gateway's next shard to one worker, on news a quarter of a second old.

/// What a worker has before it, and how fast it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burden {
    /// Tokens waiting or running there.
    pub tokens: u64,
    /// Tokens per second while busy; 0 where nothing was measured yet.
    pub speed: f64,
}

/// Work that a worker is given ahead, in seconds; at least [`LEAST_ROOM`] tokens.
const AHEAD_SECONDS: f64 = 2.0;
/// Some full batches of a slow device.
const LEAST_ROOM: u64 = 8_192;

/// Tokens that workers of `speed`, in tokens per second, should have before them and no more: enough that they never
/// run dry, and so few that news still matters.
#[must_use]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "speeds are finite and not negative"
)]
pub fn room(speed: f64) -> u64 {
    ((AHEAD_SECONDS * speed) as u64).max(LEAST_ROOM)
}

impl Burden {
    /// Whether `tokens` more are no more than the worker should have before it. One that has nothing takes anything.
    #[must_use]
    pub fn has_room(&self, tokens: u64) -> bool {
        self.tokens == 0 || self.tokens.saturating_add(tokens) <= room(self.speed)
    }
}

/// Picks one of `burdens` for a shard of `tokens`; `None` where there is none.
///
/// `draws` are two numbers from `[0, 1)`. Of the two workers they name, the one that would be done first is taken.
/// A worker that has not been measured counts as fast as the others are on average.
#[must_use]
pub fn pick(burdens: &[Burden], tokens: u64, draws: [f64; 2]) -> Option<usize> {
    let (first, second) = two(burdens.len(), draws)?;
    let usual = usual_speed(burdens);
    let done = |i: usize| seconds(burdens[i], tokens, usual);
    Some(if done(second) < done(first) { second } else { first })
}

/// Two positions below `count`, different where there are two.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
fn two(count: usize, draws: [f64; 2]) -> Option<(usize, usize)> {
    let below = |n: usize, draw: f64| ((n as f64 * draw) as usize).min(n.saturating_sub(1));
    if count < 2 {
        return (count == 1).then_some((0, 0));
    }
    let first = below(count, draws[0]);
    // The other one is drawn from those that remain.
    let second = below(count - 1, draws[1]);
    Some((first, if second < first { second } else { second + 1 }))
}

#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn seconds(burden: Burden, tokens: u64, usual: f64) -> f64 {
    let speed = if burden.speed > 0.0 { burden.speed } else { usual };
    (burden.tokens + tokens) as f64 / speed
}

/// The mean over those that were measured; any number does where none was.
fn usual_speed(burdens: &[Burden]) -> f64 {
    let measured = burdens.iter().map(|burden| burden.speed).filter(|speed| *speed > 0.0);
    let (count, sum) = measured.fold((0.0, 0.0), |(count, sum), speed| (count + 1.0, sum + speed));
    if count > 0.0 { sum / count } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn burden(tokens: u64, speed: f64) -> Burden {
        Burden { tokens, speed }
    }

    #[track_caller]
    fn check(burdens: &[(u64, f64)], tokens: u64, expected: Option<usize>) {
        let burdens: Vec<_> = burdens.iter().map(|&(tokens, speed)| burden(tokens, speed)).collect();
        // With two workers both are drawn, whatever the draws.
        for draws in [[0.0, 0.0], [0.99, 0.99], [0.5, 0.1]] {
            assert_eq!(pick(&burdens, tokens, draws), expected, "{draws:?}");
        }
    }

    #[test]
    fn the_sooner_one_of_two_is_taken() {
        check(&[], 1, None);
        check(&[(1_000_000, 1.0)], 1, Some(0));
        check(&[(100, 10.0), (50, 10.0)], 1, Some(1));
        check(&[(100, 100.0), (50, 10.0)], 1, Some(0));
    }

    #[test]
    fn a_large_shard_looks_at_speed_and_a_small_one_at_the_queue() {
        check(&[(100, 100.0), (0, 10.0)], 1, Some(1));
        check(&[(100, 100.0), (0, 10.0)], 1000, Some(0));
    }

    #[test]
    fn an_unmeasured_worker_counts_as_usual() {
        check(&[(100, 10.0), (50, 0.0)], 1, Some(1));
        check(&[(50, 10.0), (100, 0.0)], 1, Some(0));
        check(&[(50, 0.0), (100, 0.0)], 1, Some(0));
    }

    #[test]
    fn room_is_two_seconds_of_work_or_some_batches() {
        assert!(burden(8_000, 0.0).has_room(192));
        assert!(!burden(8_000, 0.0).has_room(193));
        assert!(burden(199_000, 100_000.0).has_room(1_000));
        assert!(!burden(199_000, 100_000.0).has_room(1_001));
        assert!(burden(0, 0.0).has_room(u64::MAX), "an idle worker takes anything");
    }

    proptest! {
        #[test]
        fn two_different_ones_are_drawn(count in 2_usize..50, a in 0.0_f64..1.0, b in 0.0_f64..1.0) {
            let (first, second) = two(count, [a, b]).unwrap();
            prop_assert!(first < count && second < count && first != second);
        }

        #[test]
        fn the_worst_of_many_is_never_taken(
            mut tokens in proptest::collection::vec(0_u64..1000, 1..20),
            at in 0_usize..20,
            draws in [0.0_f64..1.0, 0.0_f64..1.0],
        ) {
            let worst = at % (tokens.len() + 1);
            tokens.insert(worst, 5000);
            let burdens: Vec<_> = tokens.iter().map(|&tokens| burden(tokens, 1.0)).collect();
            prop_assert_ne!(pick(&burdens, 1, draws), Some(worst));
        }
    }
}
