//! The worker's place in the cluster: registered as long as it serves, and the first claimant of its models' names.
//!
//! Nothing here is waited for before serving: a worker that etcd does not know yet serves those who know it already.

use std::time::Duration;

use cluster::{Etcd, Membership, MembershipOptions, Registration, claim_alias};
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Between two claims of a name that means another checkpoint: longer than a lease, after which the dead count no
/// more.
const CLAIM_AGAIN: Duration = Duration::from_secs(12);
/// After a claim that etcd did not answer.
const RETRY: Duration = Duration::from_secs(2);

/// A worker's place in the cluster.
#[derive(Debug)]
pub struct Member {
    membership: Membership,
    registration: Registration,
    claiming: CancellationToken,
}

impl Member {
    /// Registers, and claims the names of what is ready once that is done. Returns at once; the work is done by tasks
    /// of `tasks`.
    #[must_use]
    pub fn join(etcd: Etcd, registration: Registration, tasks: &TaskTracker) -> Self {
        let claiming = CancellationToken::new();
        let membership = Membership::join(
            etcd.clone(),
            registration.clone(),
            MembershipOptions::default(),
            tasks,
            CancellationToken::new(),
        );
        let claims =
            registration.ready.iter().map(|(name, digest, _)| (name.to_string(), digest.to_string()));
        let claimer = Claimer { etcd, claims: claims.collect(), registered: membership.registered() };
        let stop = claiming.clone();
        tasks.spawn(async move { stop.run_until_cancelled_owned(claimer.run()).await });
        Self { membership, registration, claiming }
    }

    /// Says in etcd that the worker is about to leave.
    pub fn drain(&mut self) {
        self.claiming.cancel();
        self.registration.worker.draining = true;
        self.membership.update(self.registration.clone());
    }

    /// Gives the place up, and waits for that as long as etcd may be expected to answer.
    pub async fn leave(self) {
        self.membership.leave().await;
    }
}

/// The task that claims names.
struct Claimer {
    etcd: Etcd,
    /// Names and digests.
    claims: Vec<(String, String)>,
    registered: watch::Receiver<bool>,
}

impl Claimer {
    /// Claims all names after each registration: an etcd that was wiped has forgotten them too.
    async fn run(mut self) {
        // An error means that the place is given up.
        while self.registered.wait_for(|registered| *registered).await.is_ok() {
            let again = self.claim().await;
            // An error here ends the loop above.
            let lost = async { drop(self.registered.wait_for(|registered| !registered).await) };
            match again {
                // Cut short where the registration is lost: they are claimed again once it is back.
                Some(pause) => drop(time::timeout(pause, lost).await),
                None => lost.await,
            }
        }
    }

    /// Claims each name; answers when to do so again, where there is a reason to.
    async fn claim(&self) -> Option<Duration> {
        let mut again = None;
        for (model, digest) in &self.claims {
            let pause = match claim_alias(&self.etcd, model, digest).await {
                Ok(alias) if alias.digest == *digest => {
                    tracing::info!(model, digest, epoch = alias.epoch, "the name means this checkpoint");
                    continue;
                }
                Ok(alias) => {
                    tracing::info!(model, digest, means = alias.digest, "the name means another checkpoint");
                    CLAIM_AGAIN
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(model, error, "the name could not be claimed, trying again");
                    RETRY
                }
            };
            again = Some(again.map_or(pause, |again: Duration| again.min(pause)));
        }
        again
    }
}
