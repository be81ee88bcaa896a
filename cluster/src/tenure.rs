//! What a member does next about its place in etcd: its [lease](Lease) and its [entries](Ledger) in one. Pure: what it asks
//! of etcd comes out, and what came of that goes in; the [registrar](crate::registrar) asks.
//!
//! One thing is asked at a time. Entries are written by several calls on top of each other; whatever fails in between, the
//! next try begins with a look at what is there.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::keys::Key;
use crate::lease::{Event, Lease, LeaseId, Step};
use crate::ledger::{Entries, Errand, Ledger};
use crate::transaction::{Outcome, Transaction};

/// A write is lost only to another process with our id, or to one of our own that came late.
const CONFLICTS: u32 = 4;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Act {
    /// Ask for a lease.
    Grant,
    /// Renew the lease.
    Renew(LeaseId),
    /// See when the anchor was last written.
    Look(Key),
    /// Carry this out.
    Write(Transaction),
    /// Carry this out: it writes nothing, and tells whether all is as it was written.
    Check(Transaction),
    /// Nothing before then, unless something else is wanted.
    WaitUntil(Instant),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// There is a lease.
    Granted(LeaseId),
    /// The lease is fresh again.
    Renewed,
    /// The anchor was last written then; 0: it is not there.
    Looked(i64),
    /// What became of the transaction.
    Outcome(Outcome),
    /// etcd knows no such lease.
    Lost,
    /// No answer, or a refusal. Whether it was carried out is not known.
    Failed,
}

/// What is to be said of an answer, in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remark {
    /// Nothing.
    Usual,
    /// Somebody had changed or removed entries.
    Disturbed,
    /// Somebody changes the anchor as fast as we do.
    Contended,
}

/// A member's place, as far as it knows.
#[derive(Clone, Debug)]
pub(crate) struct Tenure {
    lease: Lease,
    ledger: Ledger,
    wanted: Entries,
    /// How often other entries were wanted, the first ones included.
    version: u64,
    /// The last version that etcd was known to say, and nothing else.
    written: u64,
    /// How often entries were found to be others than had been written, and were written again.
    restored: u64,
    /// Somebody has changed entries that are not written again yet.
    was_changed: bool,
    writing: Option<Writing>,
    /// When the last act was asked for.
    asked: Instant,
}

/// Entries that are being written.
#[derive(Clone, Debug)]
struct Writing {
    lease: LeaseId,
    version: u64,
    /// Still to be carried out, the first first.
    checks: VecDeque<Transaction>,
    conflicts: u32,
}

impl Tenure {
    /// Nothing is there yet, and `entries`, of which `anchor` always is one, are wanted under a lease of `ttl`.
    pub(crate) fn new((anchor, entries): (Key, Entries), ttl: Duration, now: Instant) -> Self {
        Self {
            lease: Lease::new(ttl, now),
            ledger: Ledger::new(anchor, entries.clone()),
            wanted: entries,
            version: 1,
            written: 0,
            restored: 0,
            was_changed: false,
            writing: None,
            asked: now,
        }
    }

    /// Other entries from now on, the `version`th.
    pub(crate) fn want(&mut self, entries: Entries, version: u64, now: Instant) {
        (self.wanted, self.version) = (entries, version);
        if self.writing.is_none() {
            self.lease.on(Event::Updated, now, 0.0);
        }
    }

    /// The lease, if there is one.
    pub(crate) fn lease(&self) -> Option<LeaseId> {
        self.lease.id()
    }

    /// Whether others can be expected to see the entries.
    pub(crate) fn is_registered(&self, now: Instant) -> bool {
        self.lease.is_registered(now)
    }

    /// Whether the latest call failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.lease.is_failing()
    }

    /// The last version of what was wanted that etcd was known to say, and nothing else; 0: none was.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// How often entries were found to be others than had been written, and were written again.
    pub(crate) fn restored(&self) -> u64 {
        self.restored
    }

    /// What to do at `now`.
    pub(crate) fn next(&mut self, now: Instant) -> Act {
        self.asked = now;
        loop {
            if let Some(act) = self.go_on(now) {
                return act;
            }
            match self.lease.step(now) {
                Step::WaitUntil(then) => return Act::WaitUntil(then),
                Step::Grant => return Act::Grant,
                Step::Renew(lease) => return Act::Renew(lease),
                Step::Write(lease) => self.begin(lease),
            }
        }
    }

    fn begin(&mut self, lease: LeaseId) {
        self.ledger.want(self.wanted.clone());
        let is_settled = self.ledger.is_settled(lease);
        let checks = if is_settled { self.ledger.checks(lease).into() } else { VecDeque::new() };
        self.writing = Some(Writing { lease, version: self.version, checks, conflicts: 0 });
    }

    /// The next call of what is being written; none where nothing is, or where that was all.
    fn go_on(&mut self, now: Instant) -> Option<Act> {
        let writing = self.writing.as_ref()?;
        if let Some(check) = writing.checks.front() {
            return Some(Act::Check(check.clone()));
        }
        match self.ledger.next(writing.lease) {
            Errand::Look(anchor) => Some(Act::Look(anchor)),
            Errand::Write(transaction) => Some(Act::Write(transaction)),
            Errand::Rest => {
                self.written = writing.version;
                self.restored += u64::from(std::mem::take(&mut self.was_changed));
                self.end(Event::Written, now, 0.0);
                None
            }
        }
    }

    /// Takes in what came of the last [act](Self::next) by `now`; `roll` is drawn from `[0, 1)`.
    pub(crate) fn on(&mut self, answer: Answer, now: Instant, roll: f64) -> Remark {
        match answer {
            // etcd counts from when it heard of it, which may have been long before its answer was heard.
            Answer::Granted(lease) => self.lease.on(Event::Granted(lease), self.asked, roll),
            Answer::Renewed => self.lease.on(Event::Renewed, self.asked, roll),
            Answer::Looked(modified) => self.ledger.looked(modified),
            Answer::Outcome(outcome) => return self.carried_out(outcome, now, roll),
            Answer::Lost => self.fail(Event::Lost, now, roll),
            Answer::Failed => self.fail(Event::Failed, now, roll),
        }
        Remark::Usual
    }

    fn carried_out(&mut self, outcome: Outcome, now: Instant, roll: f64) -> Remark {
        let Some(writing) = &mut self.writing else { return Remark::Usual };
        if writing.checks.pop_front().is_some() {
            if outcome == Outcome::Conflict {
                writing.checks.clear();
                self.was_changed = true;
                self.ledger.disturbed();
                return Remark::Disturbed;
            }
            return Remark::Usual;
        }
        self.ledger.wrote(Some(outcome));
        writing.conflicts += u32::from(outcome == Outcome::Conflict);
        if writing.conflicts > CONFLICTS {
            self.end(Event::Failed, now, roll);
            return Remark::Contended;
        }
        Remark::Usual
    }

    /// A call came to nothing, as far as is known.
    fn fail(&mut self, event: Event, now: Instant, roll: f64) {
        if self.writing.as_ref().is_some_and(|writing| writing.checks.is_empty()) {
            self.ledger.wrote(None);
        }
        self.end(event, now, roll);
    }

    /// Writes no more for now.
    fn end(&mut self, event: Event, now: Instant, roll: f64) {
        self.lease.on(event, now, roll);
        let written = self.writing.take().map(|writing| writing.version);
        if event == Event::Written && written != Some(self.version) {
            self.lease.on(Event::Updated, now, roll);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{GatewayId, Name};
    use crate::record::{Alias, Gateway, Record};
    use crate::transaction::{Fact, Write};

    const TTL: Duration = Duration::from_secs(9);

    fn anchor() -> (Key, Record) {
        (Key::Gateway(GatewayId::parse("g").unwrap()), Record::Gateway(Gateway::default()))
    }

    fn other() -> (Key, Record) {
        (Key::Alias(Name::parse("m").unwrap()), Record::Alias(Alias::of("d", 1)))
    }

    fn tenure(entries: impl Into<Entries>, now: Instant) -> Tenure {
        Tenure::new((anchor().0, entries.into()), TTL, now)
    }

    /// Plays acts and their answers; the last act is not answered.
    #[track_caller]
    fn check(tenure: &mut Tenure, now: Instant, script: &[(&str, Answer)]) -> Act {
        for (expected, answer) in script {
            assert_eq!(kind(&tenure.next(now)), *expected);
            tenure.on(*answer, now, 0.0);
        }
        tenure.next(now)
    }

    fn kind(act: &Act) -> &'static str {
        match act {
            Act::Grant => "grant",
            Act::Renew(_) => "renew",
            Act::Look(_) => "look",
            Act::Write(_) => "write",
            Act::Check(_) => "check",
            Act::WaitUntil(_) => "wait",
        }
    }

    fn done(revision: i64) -> Answer {
        Answer::Outcome(Outcome::Done(revision))
    }

    const CONFLICT: Answer = Answer::Outcome(Outcome::Conflict);

    fn registered(now: Instant) -> Tenure {
        let mut tenure = tenure([anchor()], now);
        let script = [("grant", Answer::Granted(7)), ("look", Answer::Looked(0)), ("write", done(3))];
        assert_eq!(check(&mut tenure, now, &script), Act::WaitUntil(now + TTL / 3));
        tenure
    }

    #[test]
    fn a_member_is_registered_once_its_entries_are_written() {
        let now = Instant::now();
        let tenure = registered(now);
        assert!(tenure.is_registered(now) && !tenure.is_failing());
        assert_eq!((tenure.lease(), tenure.written(), tenure.restored()), (Some(7), 1, 0));
    }

    #[test]
    fn what_was_not_answered_is_not_written_until_etcd_was_seen_to_say_it() {
        let now = Instant::now();
        let mut tenure = registered(now);
        tenure.want([anchor(), other()].into(), 2, now);
        assert_eq!(kind(&check(&mut tenure, now, &[("write", Answer::Failed)])), "wait");
        assert_eq!(tenure.written(), 1);
        let later = now + TTL / 50;
        // It was carried out after all, late: what is written next rests on that.
        let act = check(&mut tenure, later, &[("look", Answer::Looked(9))]);
        let Act::Write(Transaction { when, then }) = act else { panic!("{act:?}") };
        assert_eq!(when, [Fact::Unchanged { key: anchor().0, modified: 9 }]);
        assert_eq!(then.len(), 2);
        tenure.on(done(10), later, 0.0);
        assert_eq!((kind(&tenure.next(later)), tenure.written()), ("wait", 2));
    }

    #[test]
    fn what_is_wanted_meanwhile_is_written_next() {
        let now = Instant::now();
        let mut tenure = registered(now);
        tenure.want([anchor(), other()].into(), 2, now);
        assert_eq!(kind(&tenure.next(now)), "write");
        tenure.want([anchor()].into(), 3, now);
        tenure.on(done(4), now, 0.0);
        let act = tenure.next(now);
        let Act::Write(Transaction { then, .. }) = act else { panic!("{act:?}") };
        assert!(then.contains(&Write::Delete(other().0)), "{then:?}");
        assert_eq!(tenure.written(), 2);
        tenure.on(done(5), now, 0.0);
        assert_eq!((kind(&tenure.next(now)), tenure.written()), ("wait", 3));
    }

    #[test]
    fn a_lost_lease_has_everything_written_anew_under_another() {
        let now = Instant::now();
        let mut tenure = registered(now);
        let later = now + TTL / 3;
        assert_eq!(kind(&check(&mut tenure, later, &[("renew", Answer::Lost)])), "grant");
        assert!(!tenure.is_registered(later) && tenure.lease().is_none());
        let act = check(&mut tenure, later, &[("grant", Answer::Granted(8))]);
        let Act::Write(Transaction { then, .. }) = act else { panic!("{act:?}") };
        assert_eq!(then, [Write::PutUnder(8, anchor().0, anchor().1)]);
    }

    #[test]
    fn a_lease_is_counted_from_when_it_was_asked_for() {
        let (now, slow) = (Instant::now(), Duration::from_secs(2));
        let mut tenure = registered(now);
        let asked = now + TTL / 3;
        assert_eq!(tenure.next(asked), Act::Renew(7));
        tenure.on(Answer::Renewed, asked + slow, 0.0);
        assert_eq!(tenure.next(asked + slow), Act::WaitUntil(asked + TTL / 3));
        assert!(tenure.is_registered(asked + TTL - slow) && !tenure.is_registered(asked + TTL));
    }

    #[test]
    fn entries_that_somebody_changed_are_written_again_and_counted() {
        let now = Instant::now();
        let mut tenure = registered(now);
        let later = now + TTL;
        assert_eq!(kind(&check(&mut tenure, later, &[("renew", Answer::Renewed)])), "check");
        assert_eq!(tenure.on(CONFLICT, later, 0.0), Remark::Disturbed);
        assert_eq!(
            kind(&check(&mut tenure, later, &[("look", Answer::Looked(0)), ("write", done(9))])),
            "wait"
        );
        assert_eq!(tenure.restored(), 1);
    }

    #[test]
    fn who_always_loses_the_race_pauses() {
        let now = Instant::now();
        let mut tenure = registered(now);
        tenure.want([anchor(), other()].into(), 2, now);
        for _ in 0..CONFLICTS {
            assert_eq!(kind(&check(&mut tenure, now, &[("write", CONFLICT)])), "look");
            tenure.on(Answer::Looked(9), now, 0.0);
        }
        assert_eq!(kind(&tenure.next(now)), "write");
        assert_eq!(tenure.on(CONFLICT, now, 0.0), Remark::Contended);
        assert_eq!(kind(&tenure.next(now)), "wait");
        assert!(tenure.is_failing() && tenure.is_registered(now));
    }
}
