//! The learning rate, step by step.

use serde::{Deserialize, Serialize};

/// How the rate falls behind the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// In a straight line to 0.
    #[default]
    Linear,
    /// Along half a cosine to 0.
    Cosine,
    /// The same: there is one cycle.
    CosineWithRestarts,
    /// In a straight line to 1e-7.
    Polynomial,
    /// Not at all, and it does not rise before.
    Constant,
    /// Not at all.
    ConstantWithWarmup,
    /// With the root of the steps, counted in warm-ups, of which each is 10,000 steps where there is none.
    InverseSqrt,
}

/// Where a polynomial ends.
const LEAST: f64 = 1e-7;

/// A whole run's rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// Steps over which the rate rises from 0, the first of which is taken at 0.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
    /// How it falls.
    pub shape: Shape,
}

impl Schedule {
    /// The rate of optimiser step `step`, from 0, as `transformers` computes it.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // Steps are far below 2^53.
    pub fn rate(&self, step: u64) -> f64 {
        let Self { peak, warmup, steps, shape } = *self;
        if step < warmup && shape != Shape::Constant {
            return peak * (step as f64 / warmup.max(1) as f64);
        }
        let falling = steps.saturating_sub(warmup).max(1) as f64;
        match shape {
            Shape::Linear => peak * (steps.saturating_sub(step) as f64 / falling).max(0.0),
            Shape::CosineWithRestarts if step >= steps => 0.0,
            Shape::Cosine | Shape::CosineWithRestarts => {
                let done = (step - warmup) as f64 / falling;
                peak * (0.5 * (1.0 + (std::f64::consts::PI * done).cos())).max(0.0)
            }
            Shape::Polynomial if step > steps => LEAST,
            Shape::Polynomial => {
                let left = 1.0 - (step - warmup) as f64 / falling;
                peak * (((peak - LEAST) * left + LEAST) / peak)
            }
            Shape::Constant | Shape::ConstantWithWarmup => peak,
            Shape::InverseSqrt => {
                let scale = if warmup == 0 { 10_000 } else { warmup };
                peak * (1.0 / ((step + scale - warmup) as f64 / scale as f64).sqrt())
            }
        }
    }

    /// Warm-up steps of `wanted` out of `steps`: below 1 a share, rounded up.
    #[must_use]
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub fn warmup_steps(wanted: f64, steps: u64) -> u64 {
        if wanted < 1.0 { (steps as f64 * wanted.max(0.0)).ceil() as u64 } else { wanted as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(shape: Shape, step: u64, expected: f64) {
        let schedule = Schedule { peak: 0.001, warmup: 2, steps: 20, shape };
        let found = schedule.rate(step);
        assert!((found - expected).abs() < 1e-15, "{found} {expected}");
    }

    #[test]
    fn rates_are_those_of_transformers() {
        for shape in [Shape::Linear, Shape::Cosine, Shape::ConstantWithWarmup] {
            check(shape, 0, 0.0);
            check(shape, 1, 0.0005);
            check(shape, 2, 0.001);
        }
        check(Shape::Linear, 3, 0.000_944_444_444_444_444_5);
        check(Shape::Linear, 20, 0.0);
        check(Shape::Linear, 30, 0.0);
        check(Shape::Cosine, 11, 0.0005);
        check(Shape::Cosine, 20, 0.0);
        check(Shape::ConstantWithWarmup, 20, 0.001);
        check(Shape::CosineWithRestarts, 11, 0.0005);
        check(Shape::CosineWithRestarts, 20, 0.0);
        check(Shape::Polynomial, 1, 0.0005);
        check(Shape::Polynomial, 11, 0.000_500_05);
        check(Shape::Polynomial, 21, 1e-7);
        check(Shape::Constant, 0, 0.001);
        check(Shape::Constant, 20, 0.001);
        check(Shape::InverseSqrt, 1, 0.0005);
        check(Shape::InverseSqrt, 8, 0.0005);
        let unwarmed = Schedule { peak: 0.001, warmup: 0, steps: 20, shape: Shape::InverseSqrt };
        assert!((unwarmed.rate(10_000) - 0.001 / 2.0_f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn a_share_of_steps_is_rounded_up() {
        assert_eq!(Schedule::warmup_steps(0.1, 20), 2);
        assert_eq!(Schedule::warmup_steps(0.1, 21), 3);
        assert_eq!(Schedule::warmup_steps(5.0, 21), 5);
        assert_eq!(Schedule::warmup_steps(0.0, 21), 0);
    }
}
