//! What a loss is multiplied by where products are of half precision, so that small gradients do not become 0.
//!
//! It is as large as gradients stay finite with: doubled after many steps that went well, halved by one that did not.
//! Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.2; numbers are those of `torch.amp.GradScaler`.

use serde::{Deserialize, Serialize};

/// Steps that go well before the factor grows.
const PATIENCE: u32 = 2_000;

/// The smallest factor that anything is tried with: by it gradients are far below what they are without one.
const LEAST: f64 = 1.0 / 65_536.0;

/// The factor, and how long it has gone well.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    factor: f64,
    steps: u32,
}

impl Default for Scaler {
    fn default() -> Self {
        Self { factor: 65_536.0, steps: 0 }
    }
}

impl Scaler {
    /// What the loss is multiplied by, a power of two.
    #[must_use]
    pub fn factor(&self) -> f64 {
        self.factor
    }

    /// Whether gradients are not finite for another reason than the factor.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.factor < LEAST
    }

    /// Takes note of a step by whether all its gradients were finite.
    pub fn note(&mut self, finite: bool) {
        if !finite {
            *self = Self { factor: self.factor / 2.0, steps: 0 };
            return;
        }
        self.steps += 1;
        // Gradients of weights are of single precision, and so is what they are multiplied by.
        if self.steps == PATIENCE {
            let doubled = Some(self.factor * 2.0).filter(|factor| *factor < f64::from(f32::MAX));
            *self = Self { factor: doubled.unwrap_or(self.factor), steps: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_at_once_and_doubles_with_patience() {
        let mut scaler = Scaler::default();
        scaler.note(false);
        scaler.note(false);
        assert!((scaler.factor() - 16_384.0).abs() < f64::EPSILON);
        (0..1_999).for_each(|_| scaler.note(true));
        assert!((scaler.factor() - 16_384.0).abs() < f64::EPSILON);
        scaler.note(true);
        assert!((scaler.factor() - 32_768.0).abs() < f64::EPSILON);
        (0..1_999).for_each(|_| scaler.note(true));
        scaler.note(false);
        scaler.note(true);
        assert_eq!(scaler, Scaler { factor: 16_384.0, steps: 1 });
        (0..30).for_each(|_| scaler.note(false));
        assert!(!scaler.is_exhausted(), "{scaler:?}");
        scaler.note(false);
        assert!(scaler.is_exhausted(), "{scaler:?}");
    }
}
