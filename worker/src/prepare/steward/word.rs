//! What the cluster is told beside what is ready: what this worker cannot run, and what names it claims.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cluster::{Backoff, Etcd, Nack, Version, View, WorkerId};
use tokio::time::{self, Instant};

use super::{Holding, Steward};
use crate::catalogue::{Id, Served};
use crate::prepare::Prepared;
use crate::prepare::plan::Task;
use crate::prepare::setbacks::Setback;
use crate::register::{Aim, Claim};

/// Waits between tries.
const RETRY: Backoff = Backoff { first: Duration::from_millis(500), ceiling: Duration::from_secs(30) };
/// After so long the cluster has made up its mind without.
const GIVE_UP: Duration = Duration::from_secs(600);
/// Characters of a detail: enough for a sentence, and no way to fill etcd.
const DETAIL: usize = 1000;

/// What the cluster is told of a checkpoint.
enum Word {
    /// This worker cannot run it.
    Refused(Nack),
    /// That does not hold any more.
    TakenBack,
}

impl Steward {
    /// When the swap that a task is for is given up.
    pub(super) fn deadline(&self, task: &Task) -> Option<Instant> {
        let view = self.cluster.view.borrow();
        let swap = view.swaps.get(&task.id.model)?;
        let is_open = task.swap_id.as_ref() == Some(&swap.swap_id) && swap.state.is_open();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_millis(swap.deadline_unix_ms).saturating_sub(now);
        is_open.then(|| Instant::now() + left)
    }

    /// Tells the cluster that this worker cannot.
    pub(super) fn refuse(&mut self, task: &Task, setback: &Setback) {
        let nack = Nack {
            reason: setback.reason,
            detail: setback.detail.chars().take(DETAIL).collect(),
            swap_id: task.swap_id.clone(),
            boot_id: self.cluster.worker.boot_id.clone(),
            made_room: setback.made_room(),
        };
        self.say(&task.id, Word::Refused(nack));
    }

    /// Tells the cluster that a refusal does not hold any more.
    pub(super) fn take_back(&mut self, id: &Id) {
        self.say(id, Word::TakenBack);
    }

    /// Says it until it was heard, or until there is another word on the same.
    fn say(&mut self, id: &Id, word: Word) {
        let spoken = self.stop.child_token();
        if let Some(earlier) = self.words.insert(id.clone(), spoken.clone()) {
            earlier.cancel();
        }
        let (etcd, worker, id) = (self.cluster.etcd.clone(), self.cluster.worker.id.clone(), id.clone());
        let saying = async move {
            // The cluster may have decided without it.
            let _ = time::timeout(GIVE_UP, insist(&etcd, &worker, &id, &word)).await;
        };
        self.tasks.spawn(async move { spoken.run_until_cancelled(saying).await });
    }

    /// Claims the names of what is offered and was brought along, where they mean nothing better that is known to be had;
    /// and before that, that what the cluster knew of what is offered be known.
    pub(super) fn claim(&self, view: &View, stand_ins: &BTreeSet<Id>) {
        let offered = self.reporter.offered();
        let known = |holding: &Holding| match holding {
            Holding::Ready(Prepared { served, version, .. }) => {
                let version = version.clone().filter(|_| offered.contains(&served.id()))?;
                Some(Claim { id: served.id(), version, aim: Aim::Memory })
            }
            Holding::Leaving(..) | Holding::Going(_) => None,
        };
        let mut claims: Vec<Claim> = self.held.values().filter_map(known).collect();
        for (id, brought) in self.brought.iter().filter(|(id, _)| offered.contains(id)) {
            let means_it = view.aliases.get(&id.model).is_none_or(|alias| alias.digest == id.digest);
            if means_it || stand_ins.contains(id) {
                claims.push(Claim { id: id.clone(), version: brought.version.clone(), aim: Aim::Name });
            }
        }
        self.claims.send_if_modified(|wanted| {
            let differs = *wanted != claims;
            *wanted = claims;
            differs
        });
    }

    /// Takes in what was known of a checkpoint that was brought along: vectors may have been made in its index space.
    pub(super) fn learn(&mut self, id: &Id, version: &Version) {
        let Some(Holding::Ready(prepared)) = self.held.get_mut(id) else { return };
        if prepared.served.index_space == version.index_space {
            return;
        }
        let served = Served { index_space: version.index_space.clone(), ..(*prepared.served).clone() };
        prepared.served = Arc::new(served);
        self.shop.catalogue.add(prepared.served.clone());
        self.reporter.offer(prepared);
    }
}

async fn insist(etcd: &Etcd, worker: &WorkerId, id: &Id, word: &Word) {
    let checkpoint = (id.model.as_str(), id.digest.as_str());
    let mut failures = 0;
    loop {
        let said = match word {
            Word::Refused(nack) => etcd.put_nack(checkpoint, worker, nack).await,
            Word::TakenBack => etcd.clear_nack(checkpoint, worker).await,
        };
        let Err(error) = said else { return };
        tracing::debug!(model = id.model, digest = id.digest, %error, "the cluster is not told yet");
        time::sleep(RETRY.delay(failures, rand::random())).await;
        failures += 1;
    }
}
