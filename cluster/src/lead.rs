//! Carrying swaps out: what a [`Helm`] decides, done in etcd.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::backoff::roll;
use crate::clock::Clock;
use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::presence::Candidate;
use crate::swap::{Campaign, Fence, Helm, Order, SwapSettings, Task, campaign};
use crate::transaction::Outcome;
use crate::view::View;

/// Deadlines and trials pass without any news.
const TICK: Duration = Duration::from_millis(500);

/// Stands for the lead, and carries swaps out while it leads, until `stop`. Any number of gateways may do so at once:
/// one leads, and when it is gone another does, with nothing to take over but what is in etcd.
///
/// It acts on `views`, each time anew. An old view does no harm: what is decided by one changes nothing in etcd unless
/// etcd is still as it was seen. Without etcd nothing is decided, and nothing that was decided is undone.
pub async fn lead(
    etcd: Etcd,
    candidate: Candidate,
    views: watch::Receiver<Arc<View>>,
    settings: SwapSettings,
    stop: CancellationToken,
) {
    let helm = Helm::new(candidate.leader.gateway.clone(), settings);
    let helmsman = Helmsman { etcd, candidate, views, helm, clock: Clock::start() };
    stop.run_until_cancelled(helmsman.steer()).await;
}

struct Helmsman {
    etcd: Etcd,
    candidate: Candidate,
    views: watch::Receiver<Arc<View>>,
    helm: Helm,
    clock: Clock,
}

impl Helmsman {
    /// Until whoever follows the cluster for us is gone.
    async fn steer(mut self) {
        loop {
            let view = Arc::clone(&self.views.borrow_and_update());
            let lease = *self.candidate.lease.borrow_and_update();
            match self.helm.look(&view, lease, self.clock.now()) {
                Task::Campaign(lease) => self.campaign(lease).await,
                Task::Steer(orders) => self.carry_out(orders).await,
                Task::Rest => {}
            }
            // Cancel safe, all three. What was just written is news in a moment.
            let followed = tokio::select! {
                changed = self.views.changed() => changed.is_ok(),
                Ok(()) = self.candidate.lease.changed() => true,
                () = time::sleep(TICK) => true,
            };
            if !followed {
                return;
            }
        }
    }

    async fn campaign(&mut self, lease: LeaseId) {
        let outcome = match self.stand(lease).await {
            Ok(Some(fence)) => {
                tracing::info!(revision = fence.created, "this gateway carries swaps out");
                Campaign::Won(fence)
            }
            Ok(None) => Campaign::Lost,
            Err(error) => {
                tracing::debug!(error = &error as &dyn StdError, "etcd elects nobody");
                Campaign::Failed
            }
        };
        self.helm.campaigned((lease, outcome), self.clock.now(), roll());
    }

    /// Puts the leader's key, unless there is one; answers since when it is ours, if it is.
    async fn stand(&self, lease: LeaseId) -> Result<Option<Fence>, Error> {
        let stand = campaign(&self.candidate.leader, lease);
        if let Outcome::Done(created) = self.etcd.transact("stand for the lead", &stand).await? {
            return Ok(Some(Fence { created }));
        }
        // It may be ours from a try that was not answered.
        let [found] = self.etcd.read("see who leads", [&Key::Leader]).await?;
        let ours = found.filter(|found| found.lease == lease);
        Ok(ours.map(|found| Fence { created: found.revision.created }))
    }

    async fn carry_out(&mut self, orders: Vec<Order>) {
        for Order { model, what, transaction } in orders {
            let outcome = self.etcd.transact("carry a swap out", &transaction).await;
            match &outcome {
                Ok(Outcome::Done(revision)) => tracing::info!(%model, revision, "{what}"),
                Ok(Outcome::Conflict) => {
                    tracing::debug!(%model, "{what}: the cluster has moved on, looking again");
                }
                Err(error) => {
                    tracing::warn!(%model, error = error as &dyn StdError, "{what}: no answer from etcd");
                }
            }
            self.helm.ordered(outcome.ok());
        }
    }
}
