//! What a member does next about its lease. Pure: events and the time in, steps out; a [tenure](crate::tenure::Tenure)
//! has them taken.
//!
//! ```text
//!             grant               write
//!  unleased ---------> leased ------------> registered --+ renew, at a third of the lease
//!     ^                   |                     |    ^----+ write again: at an update, and now and
//!     +---- lost ---------+-------- lost -------+           then, and after each outage, in case
//!                                                           somebody changed the keys
//! ```
//!
//! A failure changes no state: it only delays the next step. etcd being away is never a reason to give up.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// The keys are checked after so many lifetimes of the lease. An etcd that was restored from an old copy may know the
/// lease and not the keys, and what nobody is ready with any more is given up soon: well within [`RETURN`].
///
/// [`RETURN`]: crate::mend
const LEASES_PER_CHECK: u32 = 1;

/// etcd's number of a lease.
pub type LeaseId = i64;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Ask for a lease.
    Grant,
    /// Make the keys be there under the lease.
    Write(LeaseId),
    /// Renew the lease.
    Renew(LeaseId),
    /// Nothing before then, unless something happens.
    WaitUntil(Instant),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is a lease.
    Granted(LeaseId),
    /// The keys are there, under the lease.
    Written,
    /// The lease is fresh again.
    Renewed,
    /// etcd knows no such lease, and the keys are gone with it.
    Lost,
    /// No answer, or a refusal.
    Failed,
    /// There is something else to write.
    Updated,
}

/// How far the registration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Unleased,
    Leased(LeaseId),
    Registered(LeaseId),
}

/// A registration's lease, as far as we know.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    ttl: Duration,
    standing: Standing,
    /// In a row.
    failures: u32,
    /// No step before this.
    resume_at: Instant,
    renew_at: Instant,
    rewrite_at: Instant,
    /// When etcd will have dropped the lease, unless it is renewed.
    expires_at: Instant,
}

impl Lease {
    /// No lease yet, and the wish for one that lasts `ttl`.
    pub(crate) fn new(ttl: Duration, now: Instant) -> Self {
        let standing = Standing::Unleased;
        Self { ttl, standing, failures: 0, resume_at: now, renew_at: now, rewrite_at: now, expires_at: now }
    }

    /// The lease, if there is one.
    pub(crate) fn id(&self) -> Option<LeaseId> {
        match self.standing {
            Standing::Unleased => None,
            Standing::Leased(id) | Standing::Registered(id) => Some(id),
        }
    }

    /// Whether the latest step failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Whether others can be expected to see the registration.
    pub(crate) fn is_registered(&self, now: Instant) -> bool {
        matches!(self.standing, Standing::Registered(_)) && now < self.expires_at
    }

    /// What to do at `now`.
    pub(crate) fn step(&self, now: Instant) -> Step {
        if now < self.resume_at {
            return Step::WaitUntil(self.resume_at);
        }
        match self.standing {
            Standing::Unleased => Step::Grant,
            // First things first: an update must not cost the lease.
            Standing::Leased(id) | Standing::Registered(id) if now >= self.renew_at => Step::Renew(id),
            Standing::Leased(id) => Step::Write(id),
            Standing::Registered(id) if now >= self.rewrite_at => Step::Write(id),
            Standing::Registered(_) => Step::WaitUntil(self.renew_at.min(self.rewrite_at)),
        }
    }

    /// Takes in what happened by `now`; `roll` is drawn from `[0, 1)`. Of a lease that was granted or renewed, `now` is when
    /// that was asked for: etcd counts from some time after.
    pub(crate) fn on(&mut self, event: Event, now: Instant, roll: f64) {
        match event {
            Event::Granted(id) => {
                self.standing = Standing::Leased(id);
                self.refresh(now);
            }
            Event::Renewed => {
                if self.is_failing() {
                    // An etcd that was away may come back older than it was, with the lease and without all keys.
                    self.rewrite_at = now;
                }
                self.refresh(now);
            }
            Event::Written => {
                self.failures = 0;
                self.rewrite_at = now + self.ttl * LEASES_PER_CHECK;
                if let Standing::Leased(id) = self.standing {
                    self.standing = Standing::Registered(id);
                }
            }
            Event::Lost => {
                // Whoever lost a lease lost it together with many others: do not all come back in one instant.
                self.standing = Standing::Unleased;
                self.resume_at = now + (self.ttl / 10).mul_f64(roll);
            }
            Event::Failed => {
                self.resume_at = now + self.retry().delay(self.failures, roll);
                self.failures = self.failures.saturating_add(1);
            }
            Event::Updated => self.rewrite_at = now,
        }
    }

    fn refresh(&mut self, now: Instant) {
        self.failures = 0;
        self.renew_at = now + self.ttl / 3;
        self.expires_at = now + self.ttl;
    }

    /// Quick at first: between a renewal that is due and the end of the lease there is time for several tries.
    fn retry(&self) -> Backoff {
        Backoff { first: self.ttl / 50, ceiling: self.ttl / 3 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(9);
    const SECOND: Duration = Duration::from_secs(1);

    /// Plays events, or waits, each a number of seconds after the one before, and checks the step that follows each.
    #[track_caller]
    fn check(script: &[(u32, Option<Event>, Expected)]) -> Lease {
        let mut now = Instant::now();
        let mut lease = Lease::new(TTL, now);
        assert_eq!(lease.step(now), Step::Grant, "at the start");
        for (i, &(seconds, event, expected)) in script.iter().enumerate() {
            now += SECOND * seconds;
            if let Some(event) = event {
                lease.on(event, now, 1.0);
            }
            let expected = match expected {
                Expected::Now(step) => step,
                Expected::In(wait) => Step::WaitUntil(now + wait),
            };
            assert_eq!(lease.step(now), expected, "after event {i}, {event:?}");
        }
        lease
    }

    #[derive(Clone, Copy)]
    enum Expected {
        Now(Step),
        In(Duration),
    }
    use Expected::{In, Now};

    #[test]
    fn a_member_asks_writes_and_renews_at_a_third() {
        check(&[
            (0, Some(Event::Granted(7)), Now(Step::Write(7))),
            (0, Some(Event::Written), In(TTL / 3)),
            (3, None, Now(Step::Renew(7))),
            (0, Some(Event::Renewed), In(TTL / 3)),
        ]);
    }

    #[test]
    fn a_lost_lease_is_granted_again_after_a_jittered_wait_and_the_keys_written_again() {
        check(&[
            (0, Some(Event::Granted(7)), Now(Step::Write(7))),
            (0, Some(Event::Written), In(TTL / 3)),
            (3, Some(Event::Lost), In(TTL / 10)),
            (1, None, Now(Step::Grant)),
            (0, Some(Event::Granted(8)), Now(Step::Write(8))),
            (0, Some(Event::Lost), In(TTL / 10)),
        ]);
    }

    #[test]
    fn failures_delay_the_step_and_do_not_change_it() {
        let first = TTL / 50;
        check(&[
            (0, Some(Event::Failed), In(first)),
            (1, None, Now(Step::Grant)),
            (0, Some(Event::Failed), In(first * 2)),
            (1, None, Now(Step::Grant)),
            (0, Some(Event::Granted(7)), Now(Step::Write(7))),
            (0, Some(Event::Failed), In(first)),
            (3, None, Now(Step::Renew(7))),
            (0, Some(Event::Failed), In(first * 2)),
            (1, None, Now(Step::Renew(7))),
            (0, Some(Event::Renewed), Now(Step::Write(7))),
        ]);
    }

    #[test]
    fn an_update_is_written_at_once_but_not_before_a_renewal_that_is_due() {
        let lease = check(&[
            (0, Some(Event::Granted(7)), Now(Step::Write(7))),
            (0, Some(Event::Written), In(TTL / 3)),
            (1, Some(Event::Updated), Now(Step::Write(7))),
            (0, Some(Event::Written), In(SECOND * 2)),
            (2, Some(Event::Updated), Now(Step::Renew(7))),
            (0, Some(Event::Renewed), Now(Step::Write(7))),
        ]);
        assert_eq!(lease.id(), Some(7));
    }

    #[test]
    fn the_keys_are_checked_after_an_outage() {
        check(&[
            (0, Some(Event::Granted(7)), Now(Step::Write(7))),
            (0, Some(Event::Written), In(TTL / 3)),
            (3, Some(Event::Failed), In(TTL / 50)),
            (1, None, Now(Step::Renew(7))),
            (0, Some(Event::Renewed), Now(Step::Write(7))),
            (0, Some(Event::Written), In(TTL / 3)),
        ]);
    }

    #[test]
    fn the_keys_are_checked_now_and_then() {
        let mut now = Instant::now();
        let mut lease = Lease::new(TTL, now);
        lease.on(Event::Granted(7), now, 1.0);
        lease.on(Event::Written, now, 1.0);
        let end = now + TTL * LEASES_PER_CHECK;
        while now < end {
            assert_ne!(lease.step(now), Step::Write(7));
            now += SECOND;
            lease.on(Event::Renewed, now, 1.0);
        }
        assert_eq!(lease.step(now), Step::Write(7));
    }

    #[test]
    fn registered_is_from_the_first_write_until_the_lease_is_lost_or_over() {
        let start = Instant::now();
        let mut lease = Lease::new(TTL, start);
        lease.on(Event::Granted(7), start, 1.0);
        assert!(!lease.is_registered(start));
        lease.on(Event::Written, start, 1.0);
        assert!(lease.is_registered(start));
        lease.on(Event::Updated, start, 1.0);
        lease.on(Event::Failed, start, 1.0);
        assert!(lease.is_registered(start), "the keys of before are still there");
        assert!(!lease.is_registered(start + TTL));
        lease.on(Event::Lost, start, 1.0);
        assert!(!lease.is_registered(start));
    }

    /// An etcd that answers or does not.
    fn answer(step: Step, works: bool) -> Option<Event> {
        match step {
            Step::WaitUntil(_) => None,
            _ if !works => Some(Event::Failed),
            Step::Grant => Some(Event::Granted(1)),
            Step::Write(_) => Some(Event::Written),
            Step::Renew(_) => Some(Event::Renewed),
        }
    }

    proptest! {
        /// Whatever happened before, and however often the registration is updated.
        #[test]
        fn a_member_is_registered_within_a_lease_of_etcd_answering(
            before in proptest::collection::vec((0..6_u8, 0..4_u32), 0..40),
            roll in 0.0..1.0_f64,
        ) {
            let mut now = Instant::now();
            let mut lease = Lease::new(TTL, now);
            for (what, seconds) in before {
                now += SECOND * seconds;
                let event = match what {
                    0 => Some(Event::Lost),
                    1 => Some(Event::Updated),
                    2 | 3 => answer(lease.step(now), false),
                    _ => answer(lease.step(now), true),
                };
                if let Some(event) = event {
                    lease.on(event, now, roll);
                }
            }
            let answers_from = now;
            while now < answers_from + TTL * 3 {
                let step = lease.step(now);
                if let Step::WaitUntil(then) = step {
                    now = then;
                }
                if let Some(event) = answer(step, true) {
                    lease.on(event, now, roll);
                }
                lease.on(Event::Updated, now, roll);
                now += SECOND / 100;
                prop_assert!(now < answers_from + TTL || lease.is_registered(now));
            }
        }
    }
}
