//! What is on its way to etcd: it may come late, twice, or never, and so may its answer. But it does not outlive a lease
//! that was granted after it was sent: a call is given up after three seconds, and a lease lasts ten.

use super::laws::Broken;
use super::world::{World, leader};
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::name::GatewayId;
use crate::swap::{Campaign, Fence, Task, campaign};
use crate::transaction::{Fact, Outcome, Transaction};

/// Who sent it, and why.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// A gateway stands for the lead.
    Campaign { gateway: GatewayId, boots: u32, lease: LeaseId },
    /// A step of the leader that was elected at this revision.
    Order { gateway: GatewayId, boots: u32, fence: i64 },
    /// What somebody asked for.
    Operator,
}

/// A transaction on its way.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    id: u64,
    /// The last lease that there was when it was sent.
    sent: LeaseId,
    purpose: Purpose,
    transaction: Transaction,
}

impl World {
    pub(super) fn fly(&mut self, purpose: Purpose, transaction: Transaction, is_leaders: bool) -> u64 {
        let id = self.next_id();
        let transaction = match self.broken {
            Some(rule) if is_leaders => rule.spoil(transaction),
            _ => transaction,
        };
        self.wire.push(Flight { id, sent: self.etcd.last_lease(), purpose, transaction });
        id
    }

    /// A gateway's helmsman looks at what the gateway sees, and acts unless it waits for an answer.
    pub(super) fn steer(&mut self, which: usize) {
        let (now, broken) = (self.moment(), self.broken);
        let gateway = &mut self.gateways[which];
        if !gateway.reaches_etcd() || gateway.awaits.is_some() {
            return;
        }
        let (id, boots) = (gateway.id.clone(), gateway.boots);
        match gateway.look(now, broken) {
            Task::Campaign(lease) => {
                let purpose = Purpose::Campaign { gateway: id.clone(), boots, lease };
                let flight = self.fly(purpose, campaign(&leader(&id), lease), false);
                self.gateways[which].awaits = Some(flight);
                self.tell(|| format!("{id} stands for the lead"));
            }
            Task::Steer(orders) => {
                // One model, so one order.
                let Some(order) = orders.into_iter().next() else { return };
                let is_fence = |fact: &Fact| match fact {
                    Fact::Since { key: Key::Leader, created } => Some(*created),
                    _ => None,
                };
                let fence = order.transaction.when.iter().find_map(is_fence).unwrap_or(0);
                let purpose = Purpose::Order { gateway: id.clone(), boots, fence };
                let lets_go =
                    order.transaction.when.iter().any(|fact| matches!(fact, Fact::NoGatewaySince(_)));
                let flight = self.fly(purpose, order.transaction, true);
                self.gateways[which].awaits = Some(flight);
                self.tell(|| format!("{id}, elected at {fence}, orders: {}", order.what));
                if lets_go && self.random.percent(30) {
                    self.intrude();
                }
            }
            Task::Rest => {}
        }
    }

    /// One of those on the way arrives. `fails` is how many of a hundred answers are lost, and transactions doubled.
    pub(super) fn arrive(&mut self, fails: u64) -> Result<(), Broken> {
        if self.wire.is_empty() {
            return Ok(());
        }
        let which = self.random.below(self.wire.len());
        let flight = self.wire.swap_remove(which);
        if self.random.percent(fails) {
            self.wire.push(flight.clone());
        }
        let before = self.before();
        let outcome = self.etcd.transact(&flight.transaction);
        self.tell(|| format!("etcd: {outcome:?} to {:?}", flight.purpose));
        if let Some(Outcome::Done(_)) = outcome {
            let fence = match flight.purpose {
                Purpose::Order { fence, .. } => Some(fence),
                Purpose::Campaign { .. } | Purpose::Operator => None,
            };
            self.check(&before, &flight.transaction, fence)?;
            self.count_election(&flight.purpose);
        }
        let answer = if self.random.percent(fails) { None } else { outcome };
        self.take_answer(&flight, answer);
        Ok(())
    }

    /// What was sent before `lease` was granted is lost by now, or was carried out.
    pub(super) fn lose_older_than(&mut self, lease: LeaseId) {
        self.wire.retain(|flight| flight.sent >= lease);
    }

    fn count_election(&mut self, purpose: &Purpose) {
        let Purpose::Campaign { gateway, .. } = purpose else { return };
        let before = self.elected.replace(gateway.clone());
        if before.is_some_and(|before| before != *gateway) {
            let is_open = self.etcd.swap(&self.swap_key).is_some_and(|swap| swap.state.is_open());
            self.tally.leader_changes += 1;
            self.tally.in_mid_swap += u64::from(is_open);
        }
    }

    /// A gateway waits no longer for an answer. What it sent may still arrive.
    pub(super) fn give_up(&mut self, which: usize) {
        let Some(id) = self.gateways[which].awaits else { return };
        match self.wire.iter().position(|flight| flight.id == id) {
            Some(at) => {
                let flight = self.wire[at].clone();
                if self.random.percent(30) {
                    self.wire.swap_remove(at);
                }
                self.take_answer(&flight, None);
            }
            None => self.gateways[which].awaits = None,
        }
    }

    fn take_answer(&mut self, flight: &Flight, outcome: Option<Outcome>) {
        let (now, roll) = (self.moment(), self.random.roll());
        let read_fails = self.random.percent(self.trouble);
        let (Purpose::Campaign { gateway: id, boots, .. } | Purpose::Order { gateway: id, boots, .. }) =
            &flight.purpose
        else {
            return;
        };
        let is_theirs = |gateway: &&mut super::gateway::SimGateway| {
            gateway.id == *id && gateway.boots == *boots && gateway.awaits == Some(flight.id)
        };
        let Some(gateway) = self.gateways.iter_mut().find(is_theirs) else { return };
        gateway.awaits = None;
        let Purpose::Campaign { lease, .. } = flight.purpose else {
            gateway.helm.ordered(outcome);
            return;
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
        gateway.helm.campaigned((lease, campaign), now, roll);
    }
}
