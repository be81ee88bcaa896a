//! Being one of the cluster's trainers, and who else there is: other trainers, and the gateways that publish what is trained.

use etcd_client::{Client, GetOptions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::ledger::Entries;
use crate::membership::MembershipOptions;
use crate::name::{GatewayId, TrainerId};
use crate::record::{Gateway, Record, Trainer};
use crate::registrar::Place;

/// A trainer's place in the cluster. Dropping it leaves too, without waiting.
///
/// The jobs that it [claims](Etcd::claim_job) are its own for as long as its lease: a trainer whose lease is gone must
/// have ended what it ran, for another one begins it anew.
#[derive(Debug)]
#[must_use = "dropping it leaves the cluster"]
pub struct TrainerPlace {
    id: TrainerId,
    place: Place,
}

impl TrainerPlace {
    /// Registers `trainer`, and keeps the registration until [`leave`](Self::leave), or until `stop`. Never waits for
    /// etcd and never fails because of it: the work is done by a task of `tasks`.
    pub fn join(
        etcd: Etcd,
        (id, trainer): (TrainerId, &Trainer),
        options: MembershipOptions,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let key = Key::Trainer(id.clone());
        let entries = Entries::from([(key.clone(), Record::Trainer(trainer.clone()))]);
        Self { id, place: Place::take(etcd, (key, entries), options.ttl, tasks, stop) }
    }

    /// Who this is.
    #[must_use]
    pub fn id(&self) -> &TrainerId {
        &self.id
    }

    /// The lease that claims are made under, while others can be expected to see it. Closed once the place is given
    /// up.
    #[must_use]
    pub fn lease(&self) -> watch::Receiver<Option<LeaseId>> {
        self.place.lease()
    }

    /// Gives the place up, and with it all jobs; waits until the keys are gone, but not long.
    pub async fn leave(self) {
        self.place.leave().await;
    }
}

impl Etcd {
    /// The trainers of the cluster, by name. What cannot be read is left out.
    ///
    /// # Errors
    /// As every call.
    pub async fn trainers(&self) -> Result<Vec<(TrainerId, Trainer)>, Error> {
        let found = self.folder("list trainers", self.keys().trainers()).await?;
        let trainers = found.into_iter().filter_map(|entry| match entry {
            (Key::Trainer(id), Record::Trainer(trainer)) => Some((id, trainer)),
            _ => None,
        });
        Ok(trainers.collect())
    }

    /// The gateways of the cluster, by name. What cannot be read is left out.
    ///
    /// # Errors
    /// As every call.
    pub async fn gateways(&self) -> Result<Vec<(GatewayId, Gateway)>, Error> {
        let found = self.folder("list gateways", self.keys().gateways()).await?;
        let gateways = found.into_iter().filter_map(|entry| match entry {
            (Key::Gateway(id), Record::Gateway(gateway)) => Some((id, gateway)),
            _ => None,
        });
        Ok(gateways.collect())
    }

    async fn folder(&self, call: &'static str, prefix: String) -> Result<Vec<(Key, Record)>, Error> {
        let get = |client: Client| async move {
            client.kv_client().get(prefix, Some(GetOptions::new().with_prefix())).await
        };
        let answer = self.call(call, get).await?;
        let read = |entry: &etcd_client::KeyValue| {
            let key = self.keys().parse(entry.key()).ok()?;
            let record = Record::decode(&key, entry.value()).ok()?;
            Some((key, record))
        };
        Ok(answer.kvs().iter().filter_map(read).collect())
    }
}
