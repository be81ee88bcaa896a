//! A candidate for the lead and what it does as a leader: election, memory and decisions in one. Pure; [`lead`] acts.
//!
//! [`lead`]: crate::lead()

use super::decide::decide;
use super::election::{Act, Campaign, Election};
use super::memory::{Memory, Moment};
use super::moves::Move;
use super::release::SwapSettings;
use super::step::Fence;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::name::{GatewayId, Name};
use crate::record::{Leader, Record};
use crate::transaction::{Fact, Outcome, Transaction, Write};
use crate::view::View;

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Task {
    /// Try to become the leader, under the lease.
    Campaign(LeaseId),
    /// Carry these out.
    Steer(Vec<Order>),
    /// Nothing, unless something changes or time passes.
    Rest,
}

/// A step of a swap, ready to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Order {
    pub(crate) model: Name,
    /// For the log.
    pub(crate) what: String,
    pub(crate) transaction: Transaction,
}

/// A candidate, and what it knows while it leads.
#[derive(Clone, Debug)]
pub(crate) struct Helm {
    me: GatewayId,
    settings: SwapSettings,
    election: Election,
    /// What was seen since the election, while there may be a lead.
    reign: Option<(Fence, Memory)>,
}

impl Helm {
    /// `me`, who does not lead yet.
    pub(crate) fn new(me: GatewayId, settings: SwapSettings) -> Self {
        Self { me, settings, election: Election::new(), reign: None }
    }

    /// Looks at the cluster at `now`, being registered under `lease`, if at all.
    pub(crate) fn look(&mut self, view: &View, lease: Option<LeaseId>, now: Moment) -> Task {
        // A campaign that was carried out after it was given up makes us the leader without our knowing.
        let another_leads = view.leader.as_ref().is_some_and(|leader| leader.gateway != self.me);
        match self.election.next(lease, another_leads, now.uptime) {
            Act::Campaign(lease) => Task::Campaign(lease),
            Act::Follow => Task::Rest,
            Act::Lead(fence) => self.steer(fence, view, now),
        }
    }

    fn steer(&mut self, fence: Fence, view: &View, now: Moment) -> Task {
        let reign = self.reign.take().filter(|(of, _)| *of == fence);
        let (_, memory) = self.reign.insert(reign.unwrap_or_else(|| (fence, Memory::elected(now))));
        memory.observe(view, now);
        let orders = decide(view, memory, now, self.settings).into_iter().map(|(standing, next)| {
            let Move { what, step } = next;
            let mut transaction = standing.take(step);
            transaction.when.push(fence.fact());
            Order { model: standing.model, what, transaction }
        });
        let orders: Vec<Order> = orders.collect();
        if orders.is_empty() { Task::Rest } else { Task::Steer(orders) }
    }

    /// Takes in what came of the campaign under `lease`; `roll` is drawn from `[0, 1)`.
    pub(crate) fn campaigned(&mut self, (lease, campaign): (LeaseId, Campaign), now: Moment, roll: f64) {
        self.election.campaigned((lease, campaign), now.uptime, roll);
    }

    /// Takes in what came of an order; none where there was no answer.
    pub(crate) fn ordered(&mut self, outcome: Option<Outcome>) {
        match outcome {
            // Most likely the view was old. But it may be another's reign by now.
            Some(Outcome::Conflict) => self.election.doubt(),
            Some(Outcome::Done(_)) | None => {}
        }
    }
}

/// The transaction by which `leader` becomes the leader, if there is none.
pub(crate) fn campaign(leader: &Leader, lease: LeaseId) -> Transaction {
    Transaction {
        when: vec![Fact::absent(Key::Leader)],
        then: vec![Write::PutUnder(lease, Key::Leader, Record::Leader(leader.clone()))],
    }
}
