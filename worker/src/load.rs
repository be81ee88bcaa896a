//! What is before the device, in tokens, and whether more may be taken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::call::Class;

/// Nobody is told to come back sooner: a batch must have ended.
const SOONEST: Duration = Duration::from_millis(100);
/// Nor later: nobody knows the load that far ahead.
const LATEST: Duration = Duration::from_secs(30);

/// What may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Tokens that wait, run or are being made, over all calls. A larger call is taken when nothing else is there.
    pub tokens: usize,
    /// A call is not taken if it would wait longer than this before its first batch.
    pub wait: Duration,
}

/// Tokens of one device, and its speed. Shared by all calls, the scheduler and the health reports.
#[derive(Debug)]
pub struct Load {
    limits: Limits,
    waiting: Mutex<Waiting>,
    total: AtomicU64,
    /// Bits of an `f64`.
    tokens_per_second: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    interactive: usize,
    bulk: usize,
}

/// Why a call is not taken now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Overloaded {
    /// What there is too little of.
    pub why: Shortage,
    /// When it is worth while to come back.
    pub retry_after: Duration,
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortage {
    /// Room in the queue.
    #[error("{waiting} tokens are waiting, and with {asked} more they would be above {limit}")]
    Room {
        /// Tokens there.
        waiting: usize,
        /// Tokens of the call, estimated.
        asked: usize,
        /// The bound.
        limit: usize,
    },
    /// Time.
    #[error("the call would wait about {wait:.1?} for its turn, and may wait {limit:.1?}")]
    Time {
        /// Until the first batch, estimated.
        wait: Duration,
        /// Until the deadline, or the bound on waiting.
        limit: Duration,
    },
    /// Memory of the device, for a single input.
    #[error("the device has no memory for an input of {tokens} tokens")]
    Memory {
        /// Its length.
        tokens: usize,
    },
}

impl Load {
    /// An idle device.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            waiting: Mutex::default(),
            total: AtomicU64::new(0),
            tokens_per_second: AtomicU64::new(0),
        })
    }

    /// Takes a call of about `tokens` that must begin within `time`, where there is such a limit.
    ///
    /// # Errors
    /// [`Overloaded`], with nothing taken.
    pub fn admit(
        self: &Arc<Self>,
        class: Class,
        tokens: usize,
        time: Option<Duration>,
    ) -> Result<Held, Overloaded> {
        let mut waiting = self.lock();
        let all = waiting.all();
        if all > 0 && all + tokens > self.limits.tokens {
            let why = Shortage::Room { waiting: all, asked: tokens, limit: self.limits.tokens };
            let surplus = (all + tokens - self.limits.tokens).min(all);
            return Err(Overloaded { why, retry_after: self.time_of(surplus).clamp(SOONEST, LATEST) });
        }
        let wait = self.time_of(waiting.before(class));
        let limit = time.map_or(self.limits.wait, |time| time.min(self.limits.wait));
        // What has no time left is not turned away for want of it: it expires, and is answered so.
        if wait > limit && limit > Duration::ZERO {
            let retry_after = wait.saturating_sub(limit).clamp(SOONEST, LATEST);
            return Err(Overloaded { why: Shortage::Time { wait, limit }, retry_after });
        }
        *waiting.of(class) += tokens;
        Ok(Held { load: self.clone(), class, tokens })
    }

    /// Counts a batch that was run, after which the device does `tokens_per_second`.
    pub fn ran(&self, tokens: usize, tokens_per_second: f64) {
        self.total.fetch_add(tokens as u64, Ordering::Relaxed);
        self.tokens_per_second.store(tokens_per_second.to_bits(), Ordering::Relaxed);
    }

    /// Takes a guess of the speed for the reports, until there are batches. Nobody is turned away for a guess.
    pub fn guess(&self, tokens_per_second: f64) {
        self.tokens_per_second.store(tokens_per_second.to_bits(), Ordering::Relaxed);
    }

    /// Tokens that wait, run or are being made.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().all()
    }

    /// Tokens run so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Tokens per second while busy, lately; 0 while nothing is known.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        f64::from_bits(self.tokens_per_second.load(Ordering::Relaxed))
    }

    /// How long the device takes for so many tokens; no time while its speed is unknown.
    #[allow(clippy::cast_precision_loss)] // An estimate.
    fn time_of(&self, tokens: usize) -> Duration {
        let speed = if self.total() > 0 { self.tokens_per_second() } else { 0.0 };
        let seconds = if speed > 0.0 { tokens as f64 / speed } else { 0.0 };
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn all(self) -> usize {
        self.interactive + self.bulk
    }

    /// Tokens that go before a new call.
    fn before(self, class: Class) -> usize {
        match class {
            Class::Interactive => self.interactive,
            Class::Bulk => self.all(),
        }
    }

    fn of(&mut self, class: Class) -> &mut usize {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Bulk => &mut self.bulk,
        }
    }
}

/// Tokens that a call has before the device; given back when dropped.
#[derive(Debug)]
#[must_use = "dropped, it gives the tokens back"]
pub struct Held {
    load: Arc<Load>,
    class: Class,
    tokens: usize,
}

impl Held {
    /// The estimate was wrong, or part of it is done: so many remain.
    pub fn set(&mut self, tokens: usize) {
        let mut waiting = self.load.lock();
        let all = waiting.of(self.class);
        *all = (*all + tokens).saturating_sub(self.tokens);
        self.tokens = tokens;
    }

    /// So many fewer remain.
    pub fn release(&mut self, tokens: usize) {
        self.set(self.tokens.saturating_sub(tokens));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::{Bulk, Interactive};

    fn load(tokens: usize, tokens_per_second: f64) -> Arc<Load> {
        let load = Load::new(Limits { tokens, wait: Duration::from_secs(10) });
        load.ran(1, tokens_per_second);
        load
    }

    /// Takes a token of work that must begin within so many seconds.
    fn hurry(load: &Arc<Load>, class: Class, seconds: u64) -> Result<Held, Overloaded> {
        load.admit(class, 1, Some(Duration::from_secs(seconds)))
    }

    #[test]
    fn tokens_are_held_until_they_are_done() {
        let load = load(1000, 0.0);
        let mut held = load.admit(Interactive, 600, None).unwrap();
        held.set(700);
        assert_eq!(load.waiting(), 700);
        held.release(300);
        assert_eq!(load.waiting(), 400);
        held.release(999);
        assert_eq!(load.waiting(), 0);
        held.set(5);
        drop(held);
        assert_eq!(load.waiting(), 0);
    }

    #[test]
    fn a_full_queue_says_when_there_will_be_room() {
        let load = load(1000, 100.0);
        let held = load.admit(Interactive, 900, None).unwrap();
        let Err(refused) = load.admit(Interactive, 300, None) else { panic!("taken") };
        assert_eq!(refused.why, Shortage::Room { waiting: 900, asked: 300, limit: 1000 });
        assert_eq!(refused.retry_after, Duration::from_secs(2));
        drop(held);
        assert!(load.admit(Interactive, 300, None).is_ok());
    }

    #[test]
    fn a_call_above_the_bound_is_taken_alone() {
        let load = load(1000, 100.0);
        let held = load.admit(Bulk, 5000, None).unwrap();
        assert!(load.admit(Interactive, 1, None).is_err());
        drop(held);
        assert!(load.admit(Interactive, 1, None).is_ok());
    }

    #[test]
    fn nobody_is_turned_away_for_a_guess() {
        let load = Load::new(Limits { tokens: 100_000, wait: Duration::from_secs(10) });
        load.guess(0.1);
        let _held = load.admit(Interactive, 1000, None).unwrap();
        assert!(hurry(&load, Interactive, 1).is_ok());
        load.ran(1, 0.1);
        assert!(hurry(&load, Interactive, 1).is_err());
    }

    #[test]
    fn a_call_that_would_begin_too_late_is_refused_at_once() {
        let load = load(100_000, 100.0);
        let _bulk = load.admit(Bulk, 500, None).unwrap();
        let _interactive = load.admit(Interactive, 300, None).unwrap();
        // Interactive work goes before bulk work, so less of it is ahead.
        assert!(hurry(&load, Interactive, 4).is_ok());
        let Err(refused) = hurry(&load, Interactive, 2) else { panic!("taken") };
        assert_eq!(
            refused.why,
            Shortage::Time { wait: Duration::from_secs(3), limit: Duration::from_secs(2) }
        );
        assert_eq!(refused.retry_after, Duration::from_secs(1));
        assert!(hurry(&load, Bulk, 4).is_err());
        assert!(load.admit(Bulk, 1, None).is_ok());
        let _more = load.admit(Bulk, 300, None).unwrap();
        assert!(load.admit(Bulk, 1, None).is_err(), "beyond the bound on waiting");
        assert!(hurry(&load, Bulk, 0).is_ok(), "expires by itself");
    }
}
