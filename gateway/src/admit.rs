//! Whether to take a call at all, by tokens: refused early it costs nothing, taken and late it costs its work.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::wire::Class;

/// Waits told to a caller are no shorter: the next health reports must have arrived.
const SOONEST: Duration = Duration::from_millis(250);
/// And no longer: nobody knows the load that far ahead.
const LATEST: Duration = Duration::from_secs(10);

/// A refusal of a call for which there is no room now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Overloaded {
    /// Why.
    pub why: Why,
    /// When to come back.
    pub retry_after: Duration,
}

/// What there is too little of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// Room for tokens.
    #[error("as many tokens as may wait in this gateway are waiting")]
    Full,
    /// Time until the deadline.
    #[error("the work that is waiting would take longer than the call's deadline")]
    Late,
    /// Tokens a second of an API key.
    #[error("API key {key} has used up its tokens per second")]
    PerSecond {
        /// Its name.
        key: Arc<str>,
    },
    /// Tokens at a time of an API key.
    #[error("API key {key} has as many tokens under way as it may")]
    AtATime {
        /// Its name.
        key: Arc<str>,
    },
}

/// What is asked, and how things stand.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Estimated tokens of the call.
    pub tokens: u64,
    /// Who goes first.
    pub class: Class,
    /// How long the work that goes before it will take.
    pub wait: Duration,
    /// Time until its deadline.
    pub remaining: Duration,
}

/// Tokens that were taken and not answered, over all calls.
#[derive(Debug)]
pub struct Ledger {
    outstanding: AtomicU64,
    limit: u64,
}

/// A call's entry in the ledger; taken out when dropped, however the call ended.
#[derive(Debug)]
pub struct Entry {
    ledger: Arc<Ledger>,
    tokens: u64,
}

impl Ledger {
    /// An empty ledger for at most `limit` tokens.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { outstanding: AtomicU64::new(0), limit }
    }

    /// Tokens taken and not answered.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Tokens that may be taken and not answered.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Enters a call.
    ///
    /// # Errors
    /// Where there is no room for it, or no time.
    pub fn admit(self: &Arc<Self>, demand: Demand) -> Result<Entry, Overloaded> {
        let add =
            |outstanding| judge(demand, outstanding, self.limit).ok().map(|()| outstanding + demand.tokens);
        match self.outstanding.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(Entry { ledger: Arc::clone(self), tokens: demand.tokens }),
            Err(outstanding) => {
                Err(judge(demand, outstanding, self.limit).expect_err("it was refused just now"))
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.outstanding.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

/// Jobs leave a quarter of the room to those who wait; a call larger than all room is taken when there is nothing
/// else, or it would never be.
fn judge(demand: Demand, outstanding: u64, limit: u64) -> Result<(), Overloaded> {
    let room = match demand.class {
        Class::Interactive => limit,
        Class::Bulk => limit - limit / 4,
    };
    let refuse = |why, wait: Duration| Err(Overloaded { why, retry_after: wait.clamp(SOONEST, LATEST) });
    if outstanding > 0 && outstanding.saturating_add(demand.tokens) > room {
        return refuse(Why::Full, demand.wait / 2);
    }
    // Half, because estimates err by as much: to refuse what could have been done is worse than to try.
    if demand.wait / 2 > demand.remaining {
        return refuse(Why::Late, demand.wait.saturating_sub(demand.remaining));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn demand(tokens: u64, class: Class) -> Demand {
        Demand { tokens, class, wait: Duration::ZERO, remaining: SECOND }
    }

    #[track_caller]
    fn check(demand: Demand, outstanding: u64, expected: &Result<(), Why>) {
        assert_eq!(judge(demand, outstanding, 100).map_err(|overloaded| overloaded.why), *expected);
    }

    #[test]
    fn room_is_bounded() {
        check(demand(10, Class::Interactive), 90, &Ok(()));
        check(demand(11, Class::Interactive), 90, &Err(Why::Full));
        check(demand(u64::MAX, Class::Interactive), 1, &Err(Why::Full));
    }

    #[test]
    fn jobs_leave_a_quarter_to_those_who_wait() {
        check(demand(10, Class::Bulk), 65, &Ok(()));
        check(demand(10, Class::Bulk), 66, &Err(Why::Full));
    }

    #[test]
    fn a_call_larger_than_all_room_is_late_and_never_stuck() {
        check(demand(500, Class::Interactive), 0, &Ok(()));
        check(demand(500, Class::Bulk), 0, &Ok(()));
        check(demand(500, Class::Interactive), 1, &Err(Why::Full));
    }

    #[test]
    fn what_cannot_be_in_time_is_refused_at_once() {
        check(Demand { wait: 2 * SECOND, ..demand(1, Class::Interactive) }, 10, &Ok(()));
        check(Demand { wait: 3 * SECOND, ..demand(1, Class::Interactive) }, 10, &Err(Why::Late));
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let late = |seconds| Demand { wait: seconds * SECOND, ..demand(1, Class::Interactive) };
        assert_eq!(judge(late(4), 10, 100).unwrap_err().retry_after, 3 * SECOND);
        assert_eq!(judge(late(400), 10, 100).unwrap_err().retry_after, LATEST);
        assert_eq!(judge(demand(100, Class::Bulk), 10, 100).unwrap_err().retry_after, SOONEST);
    }

    #[test]
    fn an_entry_leaves_the_ledger_when_dropped() {
        let ledger = Arc::new(Ledger::new(100));
        let entry = ledger.admit(demand(60, Class::Interactive)).unwrap();
        assert_eq!(ledger.outstanding(), 60);
        assert!(ledger.admit(demand(60, Class::Interactive)).is_err());
        drop(entry);
        assert_eq!(ledger.outstanding(), 0);
    }
}
