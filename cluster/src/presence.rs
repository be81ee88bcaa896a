//! Being one of the cluster's gateways: what it has seen and what its calls need, under a lease.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::etcd::Etcd;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::ledger::Entries;
use crate::membership::MembershipOptions;
use crate::name::{GatewayId, Name};
use crate::record::{Gateway, Leader, Record};
use crate::registrar::Place;

/// A gateway's place in the cluster. Dropping it leaves too, without waiting.
///
/// Checkpoints are let go by what gateways say, so say it before it matters: be [registered](Self::registered), with
/// the epochs that were seen, before taking calls; and [leave](Self::leave) only when none are left.
#[derive(Debug)]
#[must_use = "dropping it leaves the cluster"]
pub struct Presence {
    leader: Leader,
    place: Place,
}

/// Somebody who may be elected to carry swaps out: a gateway for as long as it is registered.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// What the leader's key says once it is elected.
    pub(crate) leader: Leader,
    /// Its registration; whatever it does as a leader ends with it.
    pub(crate) lease: watch::Receiver<Option<LeaseId>>,
}

impl Presence {
    /// Registers `gateway`, and keeps the registration until [`leave`](Self::leave), or until `stop`. Never waits for
    /// etcd and never fails because of it: the work is done by a task of `tasks`.
    pub fn join(
        etcd: Etcd,
        (id, gateway): (GatewayId, &Gateway),
        options: MembershipOptions,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (anchor, entries) = (Key::Gateway(id.clone()), entries(&id, gateway));
        let place = Place::take(etcd, (anchor, entries), options.ttl, tasks, stop);
        let leader = Leader { gateway: id, address: gateway.address.clone() };
        Self { leader, place }
    }

    /// Says something else from now on. Nothing is written where it is the same; what is replaced before it was written
    /// is never written.
    pub fn update(&self, gateway: &Gateway) {
        self.place.update(entries(&self.leader.gateway, gateway));
    }

    /// Whether others can be expected to see the registration. Closed once the place is given up.
    #[must_use]
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.place.registered()
    }

    /// This gateway as one that may [`lead`](crate::lead()).
    #[must_use]
    pub fn candidate(&self) -> Candidate {
        Candidate { leader: self.leader.clone(), lease: self.place.lease() }
    }

    /// Gives the place up, and with it the lead; waits until the keys are gone, but not long.
    pub async fn leave(self) {
        self.place.leave().await;
    }
}

/// What `gateway` says, entry by entry.
pub(crate) fn entries(id: &GatewayId, gateway: &Gateway) -> Entries {
    let itself = Gateway { address: gateway.address.clone(), ..Gateway::default() };
    let seen = gateway.seen().filter_map(|(model, seen)| {
        // A name that could be no key was read from none.
        let key = Key::Seen { model: Name::parse(model).ok()?, gateway: id.clone() };
        Some((key, Record::Seen(Box::new(seen))))
    });
    seen.chain([(Key::Gateway(id.clone()), Record::Gateway(itself))]).collect()
}
