//! What gateways are told of this worker, several times a second: their idea of its health is this stream, not the
//! lease in etcd.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use proto::v1::Preparation;
use proto::worker::v1::{AliasSeen, HealthReport, ReadyCheckpoint};
use tokio::sync::watch;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::catalogue::Id;
use crate::load::Load;
use crate::memory;

/// Between reports when nothing changes.
const INTERVAL: Duration = Duration::from_millis(250);

/// A stream of reports.
pub type Reports = Pin<Box<dyn Stream<Item = Result<HealthReport, Status>> + Send>>;

/// Who the worker is; it does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id, unique in the cluster.
    pub worker_id: String,
    /// Chosen at random at its start.
    pub boot_id: String,
    /// The device, for people.
    pub device: String,
}

/// What changes now and then, and is reported at once. What the worker says in etcd is made of the same, so that
/// gateways hear nothing else from the one than from the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// It will end.
    pub draining: bool,
    /// What is loaded and warm, and what gateways may ask for.
    pub ready: BTreeMap<Id, Offer>,
    /// What is on its way to that, or failed on it.
    pub preparations: BTreeMap<Id, Preparation>,
    /// What names mean, as far as it is known here.
    pub aliases: BTreeMap<String, AliasSeen>,
}

/// A checkpoint that gateways may ask for.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// What it is.
    pub checkpoint: ReadyCheckpoint,
    /// How long it took to be ready.
    pub took: Duration,
    /// The lowest cosine of its golden vectors and those recorded, where there are any.
    pub golden_cosine: Option<f32>,
}

/// Makes reports.
#[derive(Clone, Debug)]
pub struct Health {
    /// Who reports.
    pub identity: Arc<Identity>,
    /// What is before the device.
    pub load: Arc<Load>,
    /// What changes now and then.
    pub state: watch::Receiver<State>,
    /// Ends all streams: a server that waits for its streams would wait for ever.
    pub stop: CancellationToken,
}

impl Health {
    /// Reports at once, at every change of the state, and at intervals.
    #[must_use]
    pub fn reports(&self) -> Reports {
        let mut ticks = time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Box::pin(stream::unfold((self.clone(), ticks), |(mut health, mut ticks)| async move {
            // All arms are cancel safe. A state that nobody changes any more still has its load reported.
            tokio::select! {
                biased;
                Ok(()) = health.state.changed() => {}
                _ = ticks.tick() => {}
                () = health.stop.cancelled() => return None,
            }
            Some((Ok(health.report()), (health, ticks)))
        }))
    }

    fn report(&mut self) -> HealthReport {
        let State { draining, ready, preparations, aliases } = self.state.borrow_and_update().clone();
        let Identity { worker_id, boot_id, device } = (*self.identity).clone();
        HealthReport {
            worker_id,
            boot_id,
            draining,
            device,
            queued_tokens: self.load.waiting() as u64,
            tokens_per_second: self.load.tokens_per_second(),
            total_tokens: self.load.total(),
            memory_bytes: memory::resident(),
            ready: ready.into_values().map(|offer| offer.checkpoint).collect(),
            preparations: preparations.into_values().collect(),
            aliases: aliases.into_values().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;
    use crate::call::Class;
    use crate::load::Limits;

    #[tokio::test]
    async fn a_change_is_reported_before_the_next_interval() {
        let load = Load::new(Limits { tokens: 100, wait: INTERVAL });
        let (tell, state) = watch::channel(State::default());
        let identity = Identity { worker_id: "w".into(), boot_id: "b".into(), device: "cpu".into() };
        let stop = CancellationToken::new();
        let health = Health { identity: Arc::new(identity), load: load.clone(), state, stop: stop.clone() };
        let mut reports = health.reports();

        let first = reports.next().await.unwrap().unwrap();
        assert_eq!((&*first.worker_id, first.draining, first.queued_tokens), ("w", false, 0));
        assert!(first.memory_bytes > 0);
        let _held = load.admit(Class::Bulk, 7, None).unwrap();
        tell.send_modify(|state| state.draining = true);
        let second = reports.next().await.unwrap().unwrap();
        assert_eq!((second.draining, second.queued_tokens), (true, 7));
        let third = reports.next().await.unwrap().unwrap();
        assert_eq!(third, HealthReport { memory_bytes: third.memory_bytes, ..second });

        stop.cancel();
        assert!(reports.next().await.is_none());
    }
}
