//! What the gateway says of itself in etcd: the epochs it has taken in, what its calls still need, and what it has
//! seen of trials.
//!
//! The leader lets workers forget a checkpoint by what these records say, so the epochs of a record are read before
//! what is busy: a call that was pinned under an older epoch is in the counts by then (see
//! [`pinning`](crate::pinning)).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::{Alias, Gateway, Presence};
use tokio::sync::watch;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::call::Dispatcher;
use crate::fleet::Fleet;

/// How often it is looked whether calls on a checkpoint have ended.
const LOOK: Duration = Duration::from_millis(250);
/// Looks between two samples of a trial: it changes with every call, and the leader has other things to read.
const LOOKS_PER_SAMPLE: u32 = 4;

/// Keeps `record` current until `stop`; its address is left as it is.
pub async fn tell(dispatcher: Arc<Dispatcher>, record: watch::Sender<Gateway>, stop: CancellationToken) {
    let mut fleet = dispatcher.fleet.clone();
    let mut ticks = time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0_u32;
    let telling = async {
        loop {
            // Both arms are cancel safe. A fleet that nobody changes any more is looked at all the same.
            let trials = tokio::select! {
                Ok(()) = fleet.changed() => Trials::AsBefore,
                _ = ticks.tick() => {
                    looks = looks.wrapping_add(1);
                    if looks.is_multiple_of(LOOKS_PER_SAMPLE) { Trials::Sampled } else { Trials::AsBefore }
                }
            };
            look(&dispatcher, &record, trials);
        }
    };
    stop.run_until_cancelled(telling).await;
}

/// Says in the cluster what `said` says, whenever that changes, until nobody says anything any more; then leaves.
pub async fn register(presence: Presence, mut said: watch::Receiver<Gateway>) {
    while said.changed().await.is_ok() {
        presence.update(&said.borrow_and_update());
    }
    presence.leave().await;
}

/// Whether a look takes in what was seen of trials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trials {
    Sampled,
    AsBefore,
}

fn look(dispatcher: &Dispatcher, record: &watch::Sender<Gateway>, trials: Trials) {
    let fleet = dispatcher.fleet();
    let Some(aliases) = fleet.aliases() else { return };
    // In this order: who is on what an older epoch meant was counted before this epoch could be read here.
    let epochs = aliases.iter().map(|(model, alias)| (model.clone(), alias.epoch)).collect();
    let busy = busy(dispatcher, &fleet, aliases);
    let sampled = (trials == Trials::Sampled).then(|| dispatcher.trials.under_way(aliases));
    record.send_if_modified(|old| {
        let trials = sampled.unwrap_or_else(|| old.trials.clone());
        let new = Gateway { address: old.address.clone(), epochs, busy, trials };
        let changed = *old != new;
        *old = new;
        changed
    });
}

/// Checkpoints that calls and streams are on, beside those that names mean.
fn busy(
    dispatcher: &Dispatcher,
    fleet: &Fleet,
    aliases: &BTreeMap<String, Alias>,
) -> BTreeSet<(String, String)> {
    let counts = dispatcher.busy.counts();
    let left = counts.keys().filter(|(model, digest)| {
        let is_meant = aliases.get(model.as_str()).is_some_and(|alias| alias.digest == digest.as_str());
        // What is pinned stays loaded, however many calls are on it.
        !is_meant && !fleet.departures().keep(model.as_str(), digest.as_str())
    });
    left.map(|(model, digest)| (model.to_string(), digest.to_string())).collect()
}
