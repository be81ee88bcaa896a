//! How long to wait before another try.

use std::time::Duration;

/// Doubling waits with jitter, so that a fleet does not come back to etcd in one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The longest wait after a first failure.
    pub first: Duration,
    /// The longest wait after any number of failures.
    pub ceiling: Duration,
}

impl Backoff {
    /// The wait after `failures` failures before the latest, with `roll` drawn from `[0, 1)`: between half of the
    /// doubled wait and all of it.
    #[must_use]
    pub fn delay(&self, failures: u32, roll: f64) -> Duration {
        // Beyond 2^20 times `first` the ceiling has long been reached, and shifting further would overflow.
        let doubled = self.first.saturating_mul(1 << failures.min(20));
        doubled.min(self.ceiling).mul_f64(0.5 + roll.clamp(0.0, 1.0) / 2.0)
    }
}

/// The next draw for [`Backoff::delay`].
pub(crate) fn roll() -> f64 {
    rand::random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(failures: u32, roll: f64, expected_ms: u64) {
        let backoff = Backoff { first: Duration::from_millis(100), ceiling: Duration::from_secs(5) };
        assert_eq!(backoff.delay(failures, roll), Duration::from_millis(expected_ms));
    }

    #[test]
    fn waits_double_up_to_the_ceiling() {
        check(0, 1.0, 100);
        check(1, 1.0, 200);
        check(5, 1.0, 3_200);
        check(6, 1.0, 5_000);
        check(u32::MAX, 1.0, 5_000);
    }

    #[test]
    fn jitter_takes_away_at_most_half() {
        check(0, 0.0, 50);
        check(0, 0.5, 75);
        check(30, 0.0, 2_500);
    }
}
