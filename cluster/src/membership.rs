//! Being in the cluster: a worker's keys under a lease, for as long as the process wants them there.
//!
//! [`Membership::join`] never waits for etcd and never fails because of it: losing a key is not dying.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::etcd::Etcd;
use crate::keys::Key;
use crate::ledger::Entries;
use crate::name::Name;
use crate::record::{Ready, Record, Worker};
use crate::registrar::Place;

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    /// The worker.
    pub worker: Worker,
    /// What it is ready to run: model, digest, and the particulars.
    pub ready: Vec<(Name, Name, Ready)>,
}

impl Registration {
    /// The entries of etcd that say so.
    pub(crate) fn entries(self) -> Entries {
        let Self { worker, ready } = self;
        let id = worker.id.clone();
        let own = (Key::Worker(id.clone()), Record::Worker(worker));
        let ready = ready.into_iter().map(|(model, digest, ready)| {
            (Key::Ready { model, digest, worker: id.clone() }, Record::Ready(ready))
        });
        std::iter::once(own).chain(ready).collect()
    }
}

/// How to be a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipOptions {
    /// How long the registration outlives a process that was killed or cut off, in whole seconds. It is renewed at
    /// a third of this.
    pub ttl: Duration,
}

impl Default for MembershipOptions {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(10) }
    }
}

/// A place in the cluster. Dropping it leaves too, without waiting.
#[derive(Debug)]
#[must_use = "dropping it leaves the cluster"]
pub struct Membership {
    place: Place,
}

impl Membership {
    /// Registers, and keeps the registration until [`leave`](Self::leave), or until `stop`. Returns at once; the
    /// work is done by a task of `tasks`.
    pub fn join(
        etcd: Etcd,
        registration: Registration,
        options: MembershipOptions,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let anchor = Key::Worker(registration.worker.id.clone());
        Self { place: Place::take(etcd, (anchor, registration.entries()), options.ttl, tasks, stop) }
    }

    /// Says something else from now on: another checkpoint is ready, or the worker drains.
    pub fn update(&self, registration: Registration) {
        self.place.update(registration.entries());
    }

    /// Waits until etcd says what was last given to [`update`](Self::update), and nothing else, however long that takes.
    /// True where it does; false where the place is given up.
    ///
    /// A worker that no longer has a checkpoint says so, waits for this, and only then lets go of it: swaps are
    /// committed on what workers say.
    pub fn written(&self) -> impl Future<Output = bool> + Send + use<> {
        self.place.written()
    }

    /// Whether others can be expected to see the registration: false until it was first written, and while the
    /// lease is lost or was not renewed in time. Closed once the place is given up.
    #[must_use]
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.place.registered()
    }

    /// How often keys were found to be others than had been written, and were written again: as after an etcd went back in
    /// time, but kept the lease. Closed once the place is given up.
    #[must_use]
    pub fn restored(&self) -> watch::Receiver<u64> {
        self.place.restored()
    }

    /// Gives the place up and waits until the keys are gone, but not long: where etcd does not answer they go with
    /// the lease. Nothing to do where `stop` has come first.
    ///
    /// Say that the worker is draining *before*, here and on its health stream: a gateway that loses a worker that
    /// still answers, and said no goodbye, suspects etcd.
    pub async fn leave(self) {
        self.place.leave().await;
    }
}
