//! How fast the device is, and how much one batch may hold.

use std::time::Duration;

use crate::schedule;

/// What batches are measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// How long a batch should take: long enough to be efficient, short enough that urgent work soon has its turn.
    pub batch: Duration,
    /// No budget is below this many tokens of work, nor below one window.
    pub least: usize,
    /// No budget is above this, for the memory that activations take.
    pub most: usize,
}

impl Target {
    /// A CPU is efficient from some hundreds of tokens on, and slow enough that more of them would be felt.
    pub const CPU: Self = Self { batch: Duration::from_millis(200), least: 512, most: 16_384 };
    /// A GPU is efficient from some tens of thousands on.
    pub const CUDA: Self = Self { batch: Duration::from_millis(50), least: 16_384, most: 131_072 };

    /// Work of one batch, in tokens, where the device does `rate` tokens of work per second and the longest input
    /// has `window` tokens.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Saturates, and is then bounded.
    pub fn budget(self, rate: f64, window: usize) -> usize {
        let fitting = (rate * self.batch.as_secs_f64()) as usize;
        fitting.clamp(self.least, self.most).max(schedule::batch_work(&[window]))
    }
}

/// A budget of work per batch: given, or what suits the device as it turns out to be. It gives way when memory runs
/// out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    full: usize,
    /// What memory has room for; above `full` until it runs out.
    ceiling: usize,
    aim: Option<Aim>,
}

/// What a budget that was not given follows.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Aim {
    target: Target,
    /// Tokens of the longest input.
    window: usize,
    /// Work per second.
    speed: Speed,
}

impl Budget {
    /// Batches of up to `full` tokens of work.
    #[must_use]
    pub fn fixed(full: usize) -> Self {
        Self { full: full.max(1), ceiling: usize::MAX, aim: None }
    }

    /// Batches that take about as long as `target` says, on a device that does `rate` tokens of work per second as
    /// far as is known yet, for inputs of up to `window` tokens.
    #[must_use]
    pub fn measured(target: Target, window: usize, rate: f64) -> Self {
        let aim = Aim { target, window, speed: Speed::new(rate) };
        Self { aim: Some(aim), ..Self::fixed(target.budget(rate, window)) }
    }

    /// Tokens of work in the next batch.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.full.min(self.ceiling)
    }

    /// Memory ran out: the next batch is half as large.
    pub fn shrink(&mut self) {
        self.ceiling = (self.tokens() / 2).max(1);
    }

    /// A batch of `work` tokens of work came back. Where memory had run out the next may be a little larger, twice as
    /// large in about forty batches: slowly, because what took the memory is mostly another process, and still there.
    pub fn grow(&mut self, work: usize, took: Duration) {
        // Small batches are slow for their size, and say little of large ones.
        let telling = 4 * work >= self.tokens();
        if let Some(aim) = &mut self.aim
            && telling
        {
            aim.speed.learn(work, took);
            self.full = aim.target.budget(aim.speed.tokens_per_second(), aim.window);
        }
        self.ceiling = self.ceiling.saturating_add(self.ceiling / 64 + 1);
    }
}

/// Time per token while the device is busy: a mean in which later batches weigh more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    seconds_per_token: f64,
    /// Batches so far.
    batches: u32,
}

/// After so much busy time, in seconds, an old measurement has half its weight.
const HALF_LIFE: f64 = 5.0;

impl Speed {
    /// A first guess, in tokens per second; it holds until the first batch. Zero for none.
    #[must_use]
    pub fn new(tokens_per_second: f64) -> Self {
        let seconds_per_token = if tokens_per_second > 0.0 { 1.0 / tokens_per_second } else { 0.0 };
        Self { seconds_per_token, batches: 0 }
    }

    /// Whether no batch was taken in yet.
    #[must_use]
    pub fn is_guess(&self) -> bool {
        self.batches == 0
    }

    /// Takes in a batch.
    #[allow(clippy::cast_precision_loss)] // A batch has far fewer tokens than 2^53.
    pub fn learn(&mut self, tokens: usize, took: Duration) {
        if tokens == 0 {
            return;
        }
        let seen = took.as_secs_f64() / tokens as f64;
        self.batches = self.batches.saturating_add(1);
        // A plain mean of the first few: none of them weighs for long.
        let weight = (1.0 - (-took.as_secs_f64() / HALF_LIFE).exp2()).max(1.0 / f64::from(self.batches));
        self.seconds_per_token += (seen - self.seconds_per_token) * weight;
    }

    /// Tokens per second; 0 before the first batch or guess.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        if self.seconds_per_token > 0.0 { 1.0 / self.seconds_per_token } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_fits_the_time_and_the_window() {
        #[track_caller]
        fn check(target: Target, rate: f64, window: usize, expected: usize) {
            assert_eq!(target.budget(rate, window), expected);
        }
        check(Target::CPU, 10_000.0, 512, 2_000);
        check(Target::CPU, 1_000.0, 512, 633);
        check(Target::CPU, 1_000.0, 100, 512);
        check(Target::CPU, 1e9, 512, 16_384);
        check(Target::CPU, 100.0, 8_192, schedule::batch_work(&[8_192]));
        check(Target::CUDA, 1_000_000.0, 512, 50_000);
        check(Target::CUDA, f64::NAN, 512, 16_384);
    }

    fn grow(budget: &mut Budget, batches: usize, work: usize, milliseconds: u64) {
        for _ in 0..batches {
            budget.grow(work, Duration::from_millis(milliseconds));
        }
    }

    #[test]
    fn memory_that_runs_out_halves_the_budget_and_it_comes_back_slowly() {
        let mut budget = Budget::fixed(1000);
        grow(&mut budget, 1, 1000, 10);
        assert_eq!(budget.tokens(), 1000);
        budget.shrink();
        assert_eq!(budget.tokens(), 500);
        grow(&mut budget, 1, 500, 10);
        assert_eq!(budget.tokens(), 508);
        grow(&mut budget, 60, 500, 10);
        assert_eq!(budget.tokens(), 1000);
        for _ in 0..20 {
            budget.shrink();
        }
        assert_eq!(budget.tokens(), 1);
    }

    #[test]
    fn a_measured_budget_follows_the_device() {
        let mut budget = Budget::measured(Target::CPU, 100, 100.0);
        assert_eq!(budget.tokens(), 512, "measured while the machine was busy elsewhere");
        // A twentieth of a millisecond per token: 4,000 in 200 ms.
        grow(&mut budget, 1, 2_000, 100);
        assert!((3_990..=4_010).contains(&budget.tokens()), "{budget:?}");
        grow(&mut budget, 200, 10, 100);
        assert!((3_990..=4_010).contains(&budget.tokens()), "small batches say nothing: {budget:?}");
        grow(&mut budget, 200, 2_000, 200);
        assert!((1_990..=2_100).contains(&budget.tokens()), "{budget:?}");
    }

    #[test]
    fn speed_follows_the_latest_batches() {
        let near = |speed: Speed, expected: f64| {
            let found = speed.tokens_per_second();
            assert!((found / expected - 1.0).abs() < 1e-6, "{found}, not {expected}");
        };
        let mut speed = Speed::default();
        assert_eq!(speed, Speed::new(0.0));
        speed.learn(1000, Duration::from_secs(1));
        near(speed, 1000.0);
        // At twice the time per token, after half a life, it is half way.
        speed.learn(2500, Duration::from_secs(5));
        near(speed, 1.0 / 0.0015);
        speed.learn(0, Duration::from_secs(9));
        near(speed, 1.0 / 0.0015);
    }

    #[test]
    fn a_guess_holds_until_the_first_batch() {
        let mut speed = Speed::new(10.0);
        assert!((speed.tokens_per_second() - 10.0).abs() < 1e-6);
        speed.learn(1000, Duration::from_millis(100));
        assert!((speed.tokens_per_second() - 10_000.0).abs() < 1e-6);
    }
}
