//! When to ask a second worker for a small call, because the first one is late.
//!
//! Late is later than nineteen of twenty such calls of the same checkpoint were answered lately. What a second ask
//! costs is bounded: a twentieth of the calls that might have one. Large calls, streams and jobs have none: theirs is a
//! cost that matters, and nobody waits for them, or for their slowest part in any case.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cluster::Histogram;

use crate::checkpoint::Digest;
use crate::retry::Budget;

/// Estimated tokens of the largest call that has a second ask: one text of a usual window.
pub const LARGEST: u64 = 512;
/// Answers after which it is settled anew what is late.
const WINDOW: u32 = 200;
/// The share of calls that is not late.
const IN_TIME: f64 = 0.95;
/// The share of calls that may be asked for twice.
const SHARE: f64 = 0.05;
/// Nothing is late before: a second worker would not be sooner.
const SOONEST: Duration = Duration::from_millis(5);
/// Checkpoints that are known. Those that are no more are forgotten with the others, and these soon known again.
const CHECKPOINTS: usize = 256;

/// What is late, and how much may still be spent on it.
#[derive(Debug)]
pub struct Hedges {
    recent: Mutex<HashMap<Digest, Recent>>,
    budget: Budget,
}

impl Default for Hedges {
    fn default() -> Self {
        Self { recent: Mutex::default(), budget: Budget::of(SHARE) }
    }
}

/// The last answers of one checkpoint.
#[derive(Debug, Default)]
struct Recent {
    /// How long they took, in milliseconds.
    took: Histogram,
    count: u32,
    /// What is late by those before them.
    late: Option<Duration>,
}

impl Hedges {
    /// Counts a call, and answers after how long it is late; `None` while that is not known.
    #[must_use]
    pub fn begin(&self, digest: &Digest) -> Option<Duration> {
        self.budget.earn();
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.get(digest).and_then(|recent| recent.late)
    }

    /// Takes in how long a call took.
    pub fn answered(&self, digest: &Digest, took: Duration) {
        let mut all = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= CHECKPOINTS && !all.contains_key(digest) {
            all.clear();
        }
        let recent = all.entry(digest.clone()).or_default();
        recent.took.record(took.as_secs_f64() * 1000.0);
        recent.count += 1;
        if recent.count == WINDOW {
            let late = recent.took.quantile(IN_TIME).map(|late| Duration::from_secs_f64(late / 1000.0));
            *recent = Recent { late: late.map(|late| late.max(SOONEST)), ..Recent::default() };
        }
    }

    /// Takes one second ask; `false` where none is left.
    #[must_use]
    pub fn spend(&self) -> bool {
        self.budget.spend()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_is_later_than_nineteen_of_twenty() {
        let (hedges, digest) = (Hedges::default(), Digest::from("d"));
        for i in 0..WINDOW {
            assert_eq!(hedges.begin(&digest), None, "not known yet");
            hedges.answered(&digest, Duration::from_millis(if i % 25 == 0 { 900 } else { 20 }));
        }
        let late = hedges.begin(&digest).unwrap().as_secs_f64();
        assert!((0.018..0.022).contains(&late), "{late}");
        assert_eq!(hedges.begin(&Digest::from("e")), None);
        for _ in 0..WINDOW {
            hedges.answered(&digest, Duration::from_micros(10));
        }
        assert_eq!(hedges.begin(&digest), Some(SOONEST));
    }

    #[test]
    fn a_twentieth_may_be_asked_for_twice() {
        let hedges = Hedges::default();
        while hedges.spend() {}
        for _ in 0..400 {
            let _ = hedges.begin(&Digest::from("d"));
        }
        let spent = (0..100).take_while(|_| hedges.spend()).count();
        assert!((19..=20).contains(&spent), "{spent}");
    }

    #[test]
    fn checkpoints_that_are_no_more_are_forgotten() {
        let hedges = Hedges::default();
        for i in 0..10 * CHECKPOINTS {
            hedges.answered(&Digest::from(i.to_string().as_str()), Duration::from_millis(1));
        }
        assert!(hedges.recent.lock().unwrap().len() <= CHECKPOINTS);
    }
}
