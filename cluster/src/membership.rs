//! Being in the cluster: a worker's keys under a lease, for as long as the process wants them there.
//!
//! [`Membership::join`] never waits for etcd and never fails because of it: losing a key is not dying.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::etcd::Etcd;
use crate::keys::{Key, Keys};
use crate::name::Name;
use crate::record::{Ready, Worker, encode};
use crate::registrar::{Entries, Place};

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
    fn entries(self, keys: &Keys) -> Entries {
        let Self { worker, ready } = self;
        let own = (keys.format(&Key::Worker(worker.id.clone())), worker.encode());
        let ready = ready.into_iter().map(|(model, digest, ready)| {
            let key = Key::Ready { model, digest, worker: worker.id.clone() };
            (keys.format(&key), encode(&ready))
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
    etcd: Etcd,
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
        let entries = registration.entries(etcd.keys());
        let place = Place::take(etcd.clone(), entries, options.ttl, tasks, stop);
        Self { etcd, place }
    }

    /// Says something else from now on: another checkpoint is ready, or the worker drains.
    pub fn update(&self, registration: Registration) {
        self.place.update(registration.entries(self.etcd.keys()));
    }

    /// Whether others can be expected to see the registration: false until it was first written, and while the
    /// lease is lost or was not renewed in time. Closed once the place is given up.
    #[must_use]
    pub fn registered(&self) -> watch::Receiver<bool> {
        self.place.registered()
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
