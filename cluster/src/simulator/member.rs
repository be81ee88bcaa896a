//! What workers and gateways have in common: a place in etcd, kept by the real [`Tenure`], one call at a time.

use std::time::Duration;

use tokio::time::Instant;

use super::laws::Broken;
use super::sabotage::Rule;
use super::tally::Met;
use super::wire::{PATIENCE, Purpose, Reply, Request};
use super::world::World;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::ledger::Entries;
use crate::tenure::{Act, Answer, Tenure};
use crate::transaction::Outcome;

/// How long a lease lasts that is not renewed.
pub(super) const TTL: Duration = Duration::from_secs(10);

/// Members call so often that they have less trouble with each call, by this factor.
const TENDED: u64 = 3;

/// Calls that follow on each other before somebody else has a turn.
const CALLS: u32 = 8;

/// A worker or a gateway, by its place in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Worker(usize),
    Gateway(usize),
}

/// A place in etcd, and the call that it waits for.
#[derive(Debug)]
pub(super) struct Member {
    tenure: Tenure,
    wanted: Entries,
    version: u64,
    awaits: Option<Awaited>,
    /// It reaches callers and the others, and not etcd.
    pub(super) is_cut_off: bool,
}

/// A call that was not answered yet.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    flight: u64,
    is_write: bool,
    /// In milliseconds.
    since: u64,
}

impl Member {
    /// Nothing is registered yet; `entries` are to be, of which `anchor` always is one.
    pub(super) fn new((anchor, entries): (Key, Entries), now: Instant) -> Self {
        let tenure = Tenure::new((anchor, entries.clone()), TTL, now);
        Self { tenure, wanted: entries, version: 1, awaits: None, is_cut_off: false }
    }

    /// Has etcd say this from now on. Answers which version of what it says that is.
    pub(super) fn say(&mut self, entries: Entries, now: Instant) -> u64 {
        if entries != self.wanted {
            self.version += 1;
            self.wanted.clone_from(&entries);
            self.tenure.want(entries, self.version, now);
        }
        self.version
    }

    /// The last version that etcd was known to say.
    pub(super) fn written(&self) -> u64 {
        self.tenure.written()
    }

    pub(super) fn is_registered(&self, now: Instant) -> bool {
        self.tenure.is_registered(now)
    }

    /// The lease, while others can be expected to see what is under it.
    pub(super) fn lease(&self, now: Instant) -> Option<LeaseId> {
        self.tenure.lease().filter(|_| self.is_registered(now))
    }

    /// The flight that it waits for since before `then`, if there is one.
    pub(super) fn waits_since_before(&self, then: u64) -> Option<u64> {
        self.awaits.filter(|awaited| awaited.since <= then).map(|awaited| awaited.flight)
    }
}

impl World {
    pub(super) fn member(&mut self, who: Who) -> Option<&mut Member> {
        match who {
            Who::Worker(which) => {
                Some(&mut self.workers[which]).filter(|worker| worker.is_up).map(|worker| &mut worker.member)
            }
            Who::Gateway(which) => Some(&mut self.gateways[which])
                .filter(|gateway| gateway.is_up)
                .map(|gateway| &mut gateway.member),
        }
    }

    pub(super) fn boots(&self, who: Who) -> u32 {
        match who {
            Who::Worker(which) => self.workers[which].boots,
            Who::Gateway(which) => self.gateways[which].boots,
        }
    }

    /// A member does what there is to do about its place, unless it waits for an answer. Most often etcd answers at once.
    pub(super) fn tend(&mut self, who: Who) -> Result<(), Broken> {
        for _ in 0..CALLS {
            let now = self.instant();
            let Some(member) = self.member(who).filter(|member| member.awaits.is_none()) else { break };
            let act = member.tenure.next(now);
            let is_write = matches!(act, Act::Write(_));
            let request = match act {
                Act::WaitUntil(_) => break,
                Act::Grant => Request::Grant,
                Act::Renew(lease) => Request::Renew(lease),
                Act::Look(anchor) => Request::Look(anchor),
                Act::Write(mut transaction) => {
                    if self.broken == Some(Rule::AnchorHolds) {
                        transaction.when.clear();
                    }
                    Request::Transact(transaction)
                }
                Act::Check(transaction) => Request::Transact(transaction),
            };
            let flight = self.send(Purpose::Tend { who, boots: self.boots(who) }, request);
            let since = self.now;
            let Some(member) = self.member(who) else { break };
            member.awaits = Some(Awaited { flight, is_write, since });
            if member.is_cut_off {
                self.lose(flight);
                self.tended(who, flight, Reply::Nothing);
            } else if self.is_slow() {
                break;
            } else {
                self.arrive_now(flight, self.trouble / TENDED)?;
            }
        }
        self.note_registration(who);
        Ok(())
    }

    /// A member that reaches etcd is registered, whatever it waits for.
    pub(super) fn hurry(&mut self, who: Who) -> Result<(), Broken> {
        if let Some(flight) = self.member(who).and_then(|member| member.waits_since_before(u64::MAX)) {
            self.lose(flight);
            self.tended(who, flight, Reply::Nothing);
        }
        let now = self.instant();
        if let Some(Act::WaitUntil(then)) = self.member(who).map(|member| member.tenure.next(now)) {
            let wait = u64::try_from(then.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX);
            self.now += wait.saturating_add(1).min(PATIENCE);
        }
        let trouble = std::mem::take(&mut self.trouble);
        let tended = self.tend(who);
        self.trouble = trouble;
        tended
    }

    /// A member that waits for `flight` hears what came of it.
    pub(super) fn tended(&mut self, who: Who, flight: u64, reply: Reply) {
        let (now, roll, broken) = (self.instant(), self.random.roll(), self.broken);
        let revision = self.etcd.revision();
        let Some(member) = self.member(who) else { return };
        let Some(awaited) = member.awaits.filter(|awaited| awaited.flight == flight) else { return };
        member.awaits = None;
        let answer = match reply {
            Reply::Granted(lease) => Answer::Granted(lease),
            Reply::Renewed => Answer::Renewed,
            Reply::Looked(modified) => Answer::Looked(modified),
            Reply::Outcome(outcome) => Answer::Outcome(outcome),
            Reply::LeaseIsGone => Answer::Lost,
            Reply::Nothing if awaited.is_write && broken == Some(Rule::FateIsUnknown) => {
                Answer::Outcome(Outcome::Done(revision))
            }
            Reply::Nothing => Answer::Failed,
        };
        member.tenure.on(answer, now, roll);
        let conflict = matches!(answer, Answer::Outcome(Outcome::Conflict));
        self.tally.count_if(conflict, Met::MemberConflict);
        self.tally.count_if(answer == Answer::Lost, Met::LeaseLost);
        self.note_registration(who);
    }

    /// A gateway takes calls once it was registered.
    fn note_registration(&mut self, who: Who) {
        let now = self.instant();
        if let Who::Gateway(which) = who {
            let gateway = &mut self.gateways[which];
            gateway.takes_calls |= gateway.member.is_registered(now);
        }
    }
}
