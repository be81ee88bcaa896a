//! What gateways count of two checkpoints answering side by side: small, and summed over gateways by merging.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Buckets for each doubling: a quantile is off by 9 % at most.
const BUCKETS_PER_OCTAVE: f64 = 8.0;
/// Buckets beyond these are of no latency and of no ratio: a thousandth of a microsecond, and two weeks.
const BUCKETS: std::ops::RangeInclusive<f64> = -160.0..=240.0;

/// What was seen of a trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Calls answered by the checkpoint that the name means.
    pub old: Side,
    /// Calls answered by the checkpoint on trial in its place.
    pub new: Side,
    /// Calls answered by the one and then tried on the other.
    pub shadow: ShadowSample,
}

/// Calls answered by one checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// All of them.
    pub calls: u64,
    /// Those that failed for a reason that was not the caller's.
    pub errors: u64,
    /// Of those that did not fail, in milliseconds.
    pub latency: Histogram,
}

/// Copies of calls, tried on the checkpoint on trial.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ShadowSample {
    /// Copies that were answered.
    pub calls: u64,
    /// Copies that failed, or were dropped for want of room.
    pub failures: u64,
    /// Of each text's two vectors, where both are of one index space.
    pub cosine: Spread,
    /// Spearman's, of the two rankings of a call's documents.
    pub rank_correlation: Spread,
    /// Time of a copy over time of the call itself.
    pub latency_ratio: Histogram,
}

impl Sample {
    /// Adds what another gateway has seen.
    pub fn merge(&mut self, other: &Self) {
        let Self { old, new, shadow } = other;
        self.old.merge(old);
        self.new.merge(new);
        self.shadow.merge(shadow);
    }
}

impl Side {
    /// Counts a call that took `milliseconds`.
    pub fn record(&mut self, milliseconds: f64, failed: bool) {
        self.calls += 1;
        if failed {
            self.errors += 1;
        } else {
            self.latency.record(milliseconds);
        }
    }

    /// The share of calls that failed; 0 where there were none.
    #[must_use]
    pub fn error_rate(&self) -> f64 {
        if self.calls == 0 { 0.0 } else { to_f64(self.errors) / to_f64(self.calls) }
    }

    /// What was counted after `earlier` was.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let Self { calls, errors, latency } = earlier;
        Self {
            calls: self.calls.saturating_sub(*calls),
            errors: self.errors.saturating_sub(*errors),
            latency: self.latency.since(latency),
        }
    }

    fn merge(&mut self, other: &Self) {
        let Self { calls, errors, latency } = other;
        self.calls += calls;
        self.errors += errors;
        self.latency.merge(latency);
    }
}

impl ShadowSample {
    /// Counts a copy that was answered and took `latency_ratio` times as long as the call itself.
    pub fn record(&mut self, latency_ratio: f64) {
        self.calls += 1;
        self.latency_ratio.record(latency_ratio);
    }

    fn merge(&mut self, other: &Self) {
        let Self { calls, failures, cosine, rank_correlation, latency_ratio } = other;
        self.calls += calls;
        self.failures += failures;
        self.cosine.merge(*cosine);
        self.rank_correlation.merge(*rank_correlation);
        self.latency_ratio.merge(latency_ratio);
    }
}

/// Positive numbers of any unit, counted in buckets of equal ratio: eight for each doubling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram {
    /// How many numbers are from 2^(bucket/8) to 2^((bucket+1)/8).
    counts: BTreeMap<i16, u64>,
}

impl Histogram {
    /// Counts a number; one that is not above 0 counts as very small.
    pub fn record(&mut self, number: f64) {
        let bucket = (number.log2() * BUCKETS_PER_OCTAVE).floor();
        // No logarithm is no number: of 0 or below.
        let bucket = if bucket.is_nan() { *BUCKETS.start() } else { bucket };
        #[expect(clippy::cast_possible_truncation, reason = "clamped to what fits")]
        let bucket = bucket.clamp(*BUCKETS.start(), *BUCKETS.end()) as i16;
        *self.counts.entry(bucket).or_default() += 1;
    }

    /// The number that a `share` of the numbers does not exceed, as the middle of its bucket; none of no numbers.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.counts.values().sum();
        let rank = (share * to_f64(total)).ceil().max(1.0);
        let mut below = 0;
        let bucket = self.counts.iter().find(|&(_, count)| {
            below += count;
            to_f64(below) >= rank
        });
        bucket.map(|(&bucket, _)| ((f64::from(bucket) + 0.5) / BUCKETS_PER_OCTAVE).exp2())
    }

    fn since(&self, earlier: &Self) -> Self {
        let left = |(bucket, count): (&i16, &u64)| {
            let before = earlier.counts.get(bucket).copied().unwrap_or_default();
            Some((*bucket, count.checked_sub(before).filter(|count| *count > 0)?))
        };
        Self { counts: self.counts.iter().filter_map(left).collect() }
    }

    fn merge(&mut self, other: &Self) {
        for (&bucket, count) in &other.counts {
            *self.counts.entry(bucket).or_default() += count;
        }
    }
}

/// Numbers, as their mean and their least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    count: u64,
    sum: f64,
    /// 0 where there is none.
    min: f64,
}

impl Spread {
    /// Counts a number; what is no number does not count.
    pub fn record(&mut self, number: f64) {
        if number.is_finite() {
            self.merge(Self { count: 1, sum: number, min: number });
        }
    }

    /// The mean, if there is any number.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / to_f64(self.count))
    }

    /// The least number, if there is any.
    #[must_use]
    pub fn min(&self) -> Option<f64> {
        (self.count > 0).then_some(self.min)
    }

    fn merge(&mut self, other: Self) {
        let Self { count, sum, min } = other;
        if count > 0 {
            self.min = if self.count == 0 { min } else { self.min.min(min) };
            self.count += count;
            self.sum += sum;
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of calls are far below 2^52")]
fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram(numbers: &[f64]) -> Histogram {
        let mut histogram = Histogram::default();
        for &number in numbers {
            histogram.record(number);
        }
        histogram
    }

    #[test]
    fn nothing_has_no_quantile_mean_or_rate() {
        assert_eq!(Histogram::default().quantile(0.99), None);
        assert_eq!((Spread::default().mean(), Spread::default().min()), (None, None));
        assert!(Side::default().error_rate().abs() < f64::EPSILON);
    }

    #[test]
    fn what_is_no_positive_number_does_no_harm() {
        let odd = histogram(&[0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
        assert!(odd.quantile(0.5).is_some_and(f64::is_finite));
        let mut spread = Spread::default();
        for number in [f64::NAN, f64::INFINITY, 0.5] {
            spread.record(number);
        }
        assert_eq!((spread.mean(), spread.min()), (Some(0.5), Some(0.5)));
    }

    #[test]
    fn failed_calls_have_no_latency() {
        let mut side = Side::default();
        side.record(1.0, false);
        side.record(1e6, true);
        assert_eq!((side.calls, side.errors), (2, 1));
        assert!(side.latency.quantile(1.0).is_some_and(|slowest| slowest < 1.2));
        assert!((side.error_rate() - 0.5).abs() < f64::EPSILON);
    }

    proptest! {
        #[test]
        fn a_quantile_is_off_by_nine_per_cent_at_most(
            mut numbers in proptest::collection::vec(1e-3..1e6_f64, 1..100),
            share in 0.01..=1.0_f64,
        ) {
            let found = histogram(&numbers).quantile(share).unwrap();
            numbers.sort_by(f64::total_cmp);
            let wanted = share * to_f64(numbers.len() as u64);
            let rank = (0..numbers.len()).find(|&index| to_f64(index as u64 + 1) >= wanted).unwrap();
            let exact = numbers[rank];
            prop_assert!((found / exact).ln().abs() < 0.09, "{found} for {exact}");
        }

        #[test]
        fn merging_is_counting_together(
            numbers in proptest::collection::vec(-1.0..1e3_f64, 0..20),
            others in proptest::collection::vec(-1.0..1e3_f64, 0..20),
        ) {
            let sample = |numbers: &[f64]| {
                let mut sample = Sample::default();
                for &number in numbers {
                    sample.old.record(number, number < 0.0);
                    sample.new.record(number + 1.0, false);
                    sample.shadow.record(number);
                    // Of halves the sum does not depend on the order.
                    sample.shadow.cosine.record((number * 2.0).round() / 2.0);
                }
                sample
            };
            let mut merged = sample(&numbers);
            merged.merge(&sample(&others));
            prop_assert_eq!(&merged, &sample(&[numbers.clone(), others.clone()].concat()));
            prop_assert_eq!(merged.old.since(&sample(&numbers).old), sample(&others).old, "and it can be undone");
        }
    }
}
