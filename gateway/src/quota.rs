//! What an API key may use: so many tokens a second, and so many at a time.
//!
//! Tokens are charged by their estimate when a call is taken, and put right when the answer says what it cost. Where
//! several gateways serve a cluster each grants its part, without asking the others.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::admit::{Overloaded, Why};

/// A key that was idle may use what it gets in this time at once.
const BURST_SECONDS: f64 = 10.0;
/// When to come back where it is not known when calls will end.
const COME_BACK: Duration = Duration::from_millis(250);
/// No caller is told to wait longer: the file of keys may say otherwise by then.
const LATEST: Duration = Duration::from_secs(3600);

/// What a key may use, over all gateways. `None` for as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allowance {
    /// Tokens per second, in the long run.
    pub tokens_per_second: Option<f64>,
    /// Estimated tokens of calls that are not answered.
    pub concurrent_tokens: Option<u64>,
}

impl Allowance {
    /// The part of one of so many gateways.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "there are few gateways")]
    pub fn shared(self, gateways: usize) -> Self {
        let gateways = gateways.max(1);
        Self {
            tokens_per_second: self.tokens_per_second.map(|tokens| tokens / gateways as f64),
            concurrent_tokens: self.concurrent_tokens.map(|tokens| tokens.div_ceil(gateways as u64)),
        }
    }
}

/// What a key has used here.
#[derive(Debug, Default)]
pub struct Usage(Mutex<State>);

/// What a key has used, as of a moment.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Tokens used and not yet allowed for.
    debt: f64,
    /// As of when; `None` before the first call.
    at: Option<Instant>,
    /// Estimated tokens of calls that are not answered.
    outstanding: u64,
}

impl Usage {
    /// Charges `tokens` to `key`, which may use `allowance` here.
    ///
    /// # Errors
    /// Where that is more than it may use now.
    pub fn charge(
        self: &Arc<Self>,
        key: &Arc<str>,
        allowance: Allowance,
        tokens: u64,
    ) -> Result<Charge, Overloaded> {
        let mut state = self.state();
        state.forgive(allowance, Instant::now());
        state.judge(allowance, tokens, key)?;
        state.debt += as_debt(tokens);
        state.outstanding = state.outstanding.saturating_add(tokens);
        drop(state);
        Ok(Charge { usage: Arc::clone(self), tokens })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets pass what the key was allowed since the last time.
    fn forgive(&mut self, allowance: Allowance, now: Instant) {
        let since = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(now);
        self.debt = match allowance.tokens_per_second {
            Some(rate) => (self.debt - rate * since.as_secs_f64()).max(0.0),
            None => 0.0,
        };
    }

    /// A call larger than all that the key may use at once is taken when it has used nothing, or it would never be.
    fn judge(&self, allowance: Allowance, tokens: u64, key: &Arc<str>) -> Result<(), Overloaded> {
        let refuse = |why, retry_after: Duration| Err(Overloaded { why, retry_after });
        if let Some(most) = allowance.concurrent_tokens
            && self.outstanding > 0
            && self.outstanding.saturating_add(tokens) > most
        {
            return refuse(Why::AtATime { key: Arc::clone(key) }, COME_BACK);
        }
        if let Some(rate) = allowance.tokens_per_second {
            let burst = rate * BURST_SECONDS;
            let over = self.debt + as_debt(tokens).min(burst) - burst;
            if over > 0.0 {
                let wait = Duration::try_from_secs_f64(over / rate).unwrap_or(LATEST).min(LATEST);
                return refuse(Why::PerSecond { key: Arc::clone(key) }, wait.max(Duration::from_millis(1)));
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss, reason = "an estimate")]
fn as_debt(tokens: u64) -> f64 {
    tokens as f64
}

/// Tokens that were charged for a call. Dropped they stay charged, for the caller gave up work that was begun.
#[derive(Debug)]
#[must_use]
pub struct Charge {
    usage: Arc<Usage>,
    tokens: u64,
}

impl Charge {
    /// Charges what the call cost instead of what was estimated: nothing, where it is our fault that it failed.
    pub fn settle(self, tokens: u64) {
        let mut state = self.usage.state();
        state.debt = (state.debt + as_debt(tokens) - as_debt(self.tokens)).max(0.0);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut state = self.usage.state();
        state.outstanding = state.outstanding.saturating_sub(self.tokens);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A key with these allowances, and what it has used.
    struct Key(Allowance, Arc<Usage>);

    impl Key {
        fn new(tokens_per_second: Option<f64>, concurrent_tokens: Option<u64>) -> Self {
            Self(Allowance { tokens_per_second, concurrent_tokens }, Arc::default())
        }

        fn charge(&self, tokens: u64) -> Result<Charge, Overloaded> {
            self.1.charge(&"k".into(), self.0, tokens)
        }

        /// A call that costs what was estimated, and is answered at once.
        fn call(&self, tokens: u64) -> Result<(), Duration> {
            self.charge(tokens).map(drop).map_err(|refusal| refusal.retry_after)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_saved_is_used_at_once_and_then_it_is_so_much_a_second() {
        let key = Key::new(Some(100.0), None);
        assert_eq!(key.call(700), Ok(()));
        assert_eq!(key.call(300), Ok(()));
        assert_eq!(key.call(200), Err(2 * SECOND), "it has used what it gets in ten seconds");
        time::advance(SECOND).await;
        assert_eq!(key.call(200), Err(SECOND));
        time::advance(SECOND).await;
        assert_eq!(key.call(200), Ok(()));
        time::advance(1000 * SECOND).await;
        assert_eq!(key.call(1000), Ok(()), "no more is saved");
        assert_eq!(key.call(100), Err(SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_larger_than_all_that_is_saved_is_taken_and_paid_for() {
        let key = Key::new(Some(100.0), None);
        assert_eq!(key.call(2000), Ok(()));
        assert_eq!(key.call(100), Err(11 * SECOND));
        time::advance(10 * SECOND).await;
        assert_eq!(key.call(100), Err(SECOND));
        assert_eq!(key.call(2000), Err(10 * SECOND), "and only when nothing is used");
    }

    #[tokio::test(start_paused = true)]
    async fn a_charge_is_put_right_by_what_the_call_cost() {
        let key = Key::new(Some(100.0), None);
        key.charge(1000).unwrap().settle(400);
        assert_eq!(key.call(600), Ok(()));
        assert_eq!(key.call(100), Err(SECOND));
        time::advance(10 * SECOND).await;
        key.charge(500).unwrap().settle(1200);
        assert_eq!(key.call(100), Err(3 * SECOND), "an estimate that was too low is paid later");
        time::advance(30 * SECOND).await;
        key.charge(1000).unwrap().settle(0);
        assert_eq!(key.call(1000), Ok(()), "what failed by our fault costs nothing");
        time::advance(30 * SECOND).await;
        drop(key.charge(1000).unwrap());
        assert_eq!(key.call(100), Err(SECOND), "what was given up was begun");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_tokens_are_under_way_at_a_time() {
        let key = Key::new(None, Some(100));
        let (first, second) = (key.charge(60).unwrap(), key.charge(40).unwrap());
        let refusal = key.charge(1).unwrap_err();
        assert_eq!(refusal.why, Why::AtATime { key: "k".into() });
        first.settle(9);
        assert_eq!(key.call(60), Ok(()), "what is answered is not under way");
        assert_eq!(key.call(61), Err(COME_BACK));
        drop(second);
        assert_eq!(key.call(5000), Ok(()), "a call larger than all of it is taken when there is no other");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_without_limits_is_never_refused() {
        let key = Key::new(None, None);
        for _ in 0..100 {
            assert_eq!(key.call(u64::MAX / 2), Ok(()));
        }
    }

    #[test]
    fn gateways_share_what_there_is() {
        let allowance = Allowance { tokens_per_second: Some(100.0), concurrent_tokens: Some(100) };
        let part = |gateways| {
            let part = allowance.shared(gateways);
            (part.tokens_per_second.unwrap().round(), part.concurrent_tokens.unwrap())
        };
        assert_eq!(part(0), (100.0, 100));
        assert_eq!(part(1), (100.0, 100));
        assert_eq!(part(3), (33.0, 34));
        assert_eq!(Allowance::default().shared(7), Allowance::default());
    }
}
