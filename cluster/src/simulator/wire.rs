//! What is on its way to etcd: it may come late, twice, or never, and so may its answer. But it does not outlive a lease
//! under which something was first written after it was sent: a call is given up after three seconds, and a lease lasts ten
//! and is renewed before it is used.

use super::laws::Broken;
use super::member::{TTL, Who};
use super::tally::Met;
use super::worker::Id;
use super::world::{World, leader};
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::name::GatewayId;
use crate::record::{Record, SwapState};
use crate::swap::{Campaign, Fence, Task, campaign};
use crate::transaction::{Fact, Outcome, Transaction, Write};

/// After so many milliseconds a call is given up.
pub(super) const PATIENCE: u64 = 3_000;

/// Who sent it, and why.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// A gateway stands for the lead.
    Campaign { gateway: GatewayId, boots: u32, lease: LeaseId },
    /// A step of the leader that was elected at this revision.
    Order { gateway: GatewayId, boots: u32, fence: i64 },
    /// What somebody asked for.
    Operator,
    /// A member keeps its place.
    Tend { who: Who, boots: u32 },
    /// A worker says that it cannot run a checkpoint, or that it can after all.
    Word { worker: usize, boots: u32, about: Id },
}

/// What is asked of etcd.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Transact(Transaction),
    Grant,
    Renew(LeaseId),
    /// When was this last written?
    Look(Key),
}

/// What its sender hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Outcome(Outcome),
    Granted(LeaseId),
    Renewed,
    Looked(i64),
    /// The request names a lease that etcd does not know.
    LeaseIsGone,
    /// That there is no answer.
    Nothing,
}

/// A request on its way.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    id: u64,
    purpose: Purpose,
    request: Request,
}

impl World {
    pub(super) fn send(&mut self, purpose: Purpose, request: Request) -> u64 {
        let id = self.next_id();
        let request = match (self.broken, &purpose, request) {
            (Some(rule), Purpose::Order { .. }, Request::Transact(transaction)) => {
                Request::Transact(rule.spoil(transaction))
            }
            (_, _, request) => request,
        };
        self.wire.push(Flight { id, purpose, request });
        id
    }

    /// A gateway's helmsman looks at what the gateway sees, and acts unless it waits for an answer.
    pub(super) fn steer(&mut self, which: usize) -> Result<(), Broken> {
        let (now, instant, broken) = (self.moment(), self.instant(), self.broken);
        let gateway = &mut self.gateways[which];
        if !gateway.reaches_etcd() || gateway.awaits.is_some() {
            return Ok(());
        }
        let (id, boots) = (gateway.id.clone(), gateway.boots);
        match gateway.look((now, instant), broken) {
            Task::Campaign(lease) => {
                let purpose = Purpose::Campaign { gateway: id.clone(), boots, lease };
                let flight = self.send(purpose, Request::Transact(campaign(&leader(&id), lease)));
                self.gateways[which].awaits = Some((flight, self.now));
                self.tell(|| format!("{id} stands for the lead"));
            }
            Task::Steer(orders) => {
                gateway.orders = orders.into();
                self.order(which)?;
            }
            Task::Rest => {}
        }
        Ok(())
    }

    /// The next of what a leader has decided on, one after the other.
    fn order(&mut self, which: usize) -> Result<(), Broken> {
        let gateway = &mut self.gateways[which];
        let Some(order) = gateway.orders.pop_front() else { return Ok(()) };
        let (id, boots) = (gateway.id.clone(), gateway.boots);
        let is_fence = |fact: &Fact| match fact {
            Fact::Since { key: Key::Leader, created } => Some(*created),
            _ => None,
        };
        let fence = order.transaction.when.iter().find_map(is_fence).unwrap_or(0);
        let (lets_go, commits) = (lets_go(&order.transaction), commits(&order.transaction));
        let purpose = Purpose::Order { gateway: id.clone(), boots, fence };
        let flight = self.send(purpose, Request::Transact(order.transaction));
        self.gateways[which].awaits = Some((flight, self.now));
        self.tell(|| format!("{id}, elected at {fence}, orders of {}: {}", order.model, order.what));
        // Trouble comes where it matters most.
        if lets_go && self.random.percent(40) {
            self.intrude()?;
        }
        let gateway = self.random.below(self.gateways.len());
        if (lets_go || commits) && self.random.percent(50) {
            self.call_at(gateway);
        }
        if commits && self.random.percent(20) {
            self.cut_off_gateway(gateway);
        }
        Ok(())
    }

    /// One of those on the way arrives. `fails` is how many of a hundred are lost, answers too, and how many doubled.
    pub(super) fn arrive(&mut self, fails: u64) -> Result<(), Broken> {
        if self.wire.is_empty() {
            return Ok(());
        }
        let which = self.random.below(self.wire.len());
        self.carry(which, fails)
    }

    /// This one arrives.
    pub(super) fn arrive_now(&mut self, flight: u64, fails: u64) -> Result<(), Broken> {
        match self.wire.iter().position(|other| other.id == flight) {
            Some(which) => self.carry(which, fails),
            None => Ok(()),
        }
    }

    fn carry(&mut self, which: usize, fails: u64) -> Result<(), Broken> {
        let flight = self.wire.swap_remove(which);
        let is_renewal = matches!(flight.request, Request::Renew(_));
        if self.random.percent(fails / 2) {
            self.tally.count(Met::LostRequest);
            self.tally.count_if(is_renewal, Met::LostRenewal);
            return self.hear_nothing(&flight);
        }
        if self.random.percent(fails) {
            self.tally.count(Met::Doubled);
            self.wire.push(flight.clone());
        }
        let reply = self.take_effect(&flight)?;
        if self.random.percent(fails) {
            let is_done = matches!(reply, Reply::Outcome(Outcome::Done(_)));
            let of_member = matches!(flight.purpose, Purpose::Tend { .. });
            self.tally.count_if(is_done && of_member, Met::LostAnswer);
            self.tally.count_if(is_renewal, Met::LostRenewal);
            self.hear_nothing(&flight)
        } else {
            self.take_answer(&flight, reply)
        }
    }

    /// Its sender hears that something went wrong, or nothing at all until it gives the call up.
    fn hear_nothing(&mut self, flight: &Flight) -> Result<(), Broken> {
        if self.random.percent(60) { self.take_answer(flight, Reply::Nothing) } else { Ok(()) }
    }

    /// etcd does what is asked of it.
    fn take_effect(&mut self, flight: &Flight) -> Result<Reply, Broken> {
        let until = self.now + u64::try_from(TTL.as_millis()).expect("some seconds");
        let transaction = match &flight.request {
            Request::Transact(transaction) => transaction,
            Request::Grant => return Ok(Reply::Granted(self.etcd.grant(until))),
            Request::Renew(lease) => {
                let is_there = self.etcd.renew(*lease, until);
                return Ok(if is_there { Reply::Renewed } else { Reply::LeaseIsGone });
            }
            Request::Look(key) => {
                return Ok(Reply::Looked(self.etcd.entry(key).map_or(0, |entry| entry.revision.modified)));
            }
        };
        let before = self.before(transaction);
        let outcome = self.etcd.transact(transaction);
        self.tell(|| told(flight, outcome));
        if let Some(Outcome::Done(_)) = outcome {
            let fence = match flight.purpose {
                Purpose::Order { fence, .. } => Some(fence),
                _ => None,
            };
            self.check(&before, transaction, fence)?;
            self.count_election(&flight.purpose);
            self.note_members(&flight.purpose, transaction);
        }
        Ok(outcome.map_or(Reply::LeaseIsGone, Reply::Outcome))
    }

    fn note_members(&mut self, purpose: &Purpose, transaction: &Transaction) {
        let Purpose::Tend { who, boots } = purpose else { return };
        let is_dead = self.boots(*who) != *boots || self.member(*who).is_none();
        self.tally.count_if(is_dead && !transaction.then.is_empty(), Met::Posthumous);
        for write in &transaction.then {
            if let Write::PutUnder(lease, key, _) = write {
                self.used_since.entry(*lease).or_insert(self.ids);
                if let Key::Gateway(id) = key {
                    self.vanished.remove(id);
                }
            }
        }
    }

    /// What was sent before anything was written under `lease` is lost by now, or was carried out.
    pub(super) fn lose_older_than(&mut self, lease: LeaseId) {
        if let Some(since) = self.used_since.remove(&lease) {
            self.wire.retain(|flight| flight.id > since);
        }
    }

    pub(super) fn lose(&mut self, flight: u64) {
        self.wire.retain(|other| other.id != flight);
    }

    fn count_election(&mut self, purpose: &Purpose) {
        let Purpose::Campaign { gateway, .. } = purpose else { return };
        let before = self.elected.replace(gateway.clone());
        if before.is_some_and(|before| before != *gateway) {
            let is_open = |key: &Key| self.etcd.swap(key).is_some_and(|swap| swap.state.is_open());
            let in_mid_swap = self.models.iter().any(|model| is_open(&model.swap_key));
            self.tally.count(Met::LeaderChange);
            self.tally.count_if(in_mid_swap, Met::InMidSwap);
        }
    }

    /// A gateway's helmsman waits no longer for an answer. What it sent may still arrive.
    pub(super) fn give_up(&mut self, which: usize) -> Result<(), Broken> {
        let Some((id, _)) = self.gateways[which].awaits else { return Ok(()) };
        if let Some(flight) = self.on_its_way(id) {
            return self.take_answer(&flight, Reply::Nothing);
        }
        self.gateways[which].awaits = None;
        self.gateways[which].orders.clear();
        Ok(())
    }

    /// The flight that somebody gives up, if it has not arrived. It may still, or not.
    fn on_its_way(&mut self, id: u64) -> Option<Flight> {
        let at = self.wire.iter().position(|flight| flight.id == id)?;
        self.tally.count(Met::GivenUp);
        Some(if self.random.percent(30) { self.wire.swap_remove(at) } else { self.wire[at].clone() })
    }

    /// Whoever waits for too long gives up.
    pub(super) fn time_out(&mut self) -> Result<(), Broken> {
        let Some(then) = self.now.checked_sub(PATIENCE) else { return Ok(()) };
        for which in 0..self.gateways.len() {
            if self.gateways[which].awaits.is_some_and(|(_, since)| since <= then) {
                self.give_up(which)?;
            }
        }
        let workers = (0..self.workers.len()).map(Who::Worker);
        for who in workers.chain((0..self.gateways.len()).map(Who::Gateway)).collect::<Vec<_>>() {
            if let Some(id) = self.member(who).and_then(|member| member.waits_since_before(then)) {
                self.on_its_way(id);
                self.tended(who, id, Reply::Nothing);
            }
        }
        for which in 0..self.workers.len() {
            for (about, id) in self.workers[which].words_since_before(then) {
                self.on_its_way(id);
                self.workers[which].heard(&about, (id, false));
            }
        }
        Ok(())
    }

    fn take_answer(&mut self, flight: &Flight, reply: Reply) -> Result<(), Broken> {
        match &flight.purpose {
            Purpose::Tend { who, boots } if self.boots(*who) == *boots => self.tended(*who, flight.id, reply),
            Purpose::Operator | Purpose::Tend { .. } => {}
            Purpose::Word { worker, boots, about } => {
                let worker = &mut self.workers[*worker];
                if worker.boots == *boots {
                    worker.heard(about, (flight.id, reply != Reply::Nothing));
                }
            }
            Purpose::Campaign { gateway, boots, .. } | Purpose::Order { gateway, boots, .. } => {
                let waits = |other: &super::gateway::SimGateway| {
                    let awaits = other.awaits.is_some_and(|(id, _)| id == flight.id);
                    other.id == *gateway && other.boots == *boots && awaits
                };
                if let Some(which) = self.gateways.iter().position(waits) {
                    self.gateways[which].awaits = None;
                    return self.take_helms_answer(which, flight, reply);
                }
            }
        }
        Ok(())
    }

    fn take_helms_answer(&mut self, which: usize, flight: &Flight, reply: Reply) -> Result<(), Broken> {
        let (now, roll) = (self.moment(), self.random.roll());
        let read_fails = self.random.percent(self.trouble);
        let outcome = if let Reply::Outcome(outcome) = reply { Some(outcome) } else { None };
        let Purpose::Campaign { lease, .. } = flight.purpose else {
            self.gateways[which].helm.ordered(outcome);
            return if self.gateways[which].reaches_etcd() { self.order(which) } else { Ok(()) };
        };
        let leads = self.etcd.entry(&Key::Leader).filter(|entry| entry.lease == lease);
        let campaign = match (outcome, leads) {
            (Some(Outcome::Done(created)), _) => Campaign::Won(Fence { created }),
            (Some(Outcome::Conflict), _) if read_fails => Campaign::Failed,
            (Some(Outcome::Conflict), Some(entry)) => {
                Campaign::Won(Fence { created: entry.revision.created })
            }
            (Some(Outcome::Conflict), None) => Campaign::Lost,
            (None, _) => Campaign::Failed,
        };
        self.gateways[which].helm.campaigned((lease, campaign), now, roll);
        Ok(())
    }
}

fn lets_go(transaction: &Transaction) -> bool {
    transaction.when.iter().any(|fact| matches!(fact, Fact::NoGatewaySince(_)))
}

fn commits(transaction: &Transaction) -> bool {
    transaction.then.iter().any(|write| match write {
        Write::Put(Key::Swap(_), Record::Swap(swap)) => swap.state == SwapState::Committed,
        _ => false,
    })
}

fn told(flight: &Flight, outcome: Option<Outcome>) -> String {
    let Flight { purpose, request, .. } = flight;
    match (purpose, request) {
        (Purpose::Tend { .. } | Purpose::Word { .. }, Request::Transact(Transaction { then, .. })) => {
            let keys: Vec<String> = then
                .iter()
                .map(|write| match write {
                    Write::Put(key, _) => format!("+{key:?}"),
                    Write::PutUnder(lease, key, _) => format!("+{key:?} under {lease}"),
                    Write::Delete(key) => format!("-{key:?}"),
                })
                .collect();
            format!("etcd: {outcome:?} to {purpose:?}: {}", keys.join(", "))
        }
        (_, _) => format!("etcd: {outcome:?} to {purpose:?}"),
    }
}
