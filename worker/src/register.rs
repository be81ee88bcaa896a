//! The worker's place in the cluster: registered as long as it serves, and the first claimant of its models' names.
//!
//! Nothing here is waited for before serving: a worker that etcd does not know yet serves those who know it already.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Error, Etcd, Membership, MembershipOptions, Name, PutVersion, Ready, Registration};
use cluster::{Version, Worker, WorkerId, claim_alias};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalogue::Id;
use crate::health::State;

/// Between two claims of a name that means another checkpoint: longer than a lease, after which the dead count no
/// more.
const CLAIM_AGAIN: Duration = Duration::from_secs(12);
/// After a claim that etcd did not answer.
const RETRY: Duration = Duration::from_secs(2);

/// A worker's place in the cluster.
#[derive(Debug)]
pub struct Member {
    membership: Arc<Membership>,
    worker: Worker,
    state: watch::Receiver<State>,
    claiming: CancellationToken,
    claimer: JoinHandle<()>,
}

/// What the cluster is to know of a checkpoint that is ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// A name and the checkpoint.
    pub id: Id,
    /// What is to be known of the checkpoint.
    pub version: Arc<Version>,
    /// What more.
    pub aim: Aim,
}

/// Why something is to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The name is to mean the checkpoint, unless it means something better.
    Name,
    /// It was known: an etcd that was restored from an old copy may have forgotten it, and then nobody else could load
    /// the checkpoint, and its files would be collected.
    Memory,
}

/// What names are claimed, and who is told what was known already of what was to be made known.
#[derive(Debug)]
pub struct Claims {
    /// The claims; they change.
    pub wanted: watch::Receiver<Vec<Claim>>,
    /// Takes versions that were known.
    pub known: mpsc::Sender<(Id, Version)>,
}

impl Member {
    /// Registers `worker` with what `state` says, and makes claims once that is done. Returns at once; the work is done
    /// by tasks of `tasks`.
    #[must_use]
    pub fn join(
        etcd: Etcd,
        worker: Worker,
        state: watch::Receiver<State>,
        claims: Claims,
        tasks: &TaskTracker,
    ) -> Self {
        let (claiming, forever) = (CancellationToken::new(), CancellationToken::new());
        let said = registration(&worker, &state.borrow());
        let membership =
            Arc::new(Membership::join(etcd.clone(), said, MembershipOptions::default(), tasks, forever));
        let (id, registered) = (worker.id.clone(), membership.registered());
        let restored = membership.restored();
        let claimer =
            Claimer { etcd, worker: id, claims, registered, restored, membership: membership.clone() };
        let stop = claiming.clone();
        let claimer = tasks.spawn(async move {
            stop.run_until_cancelled_owned(claimer.run()).await;
        });
        Self { membership, worker, state, claiming, claimer }
    }

    /// Says in etcd what the state says now.
    pub fn say(&self) {
        self.membership.update(registration(&self.worker, &self.state.borrow()));
    }

    /// Waits until etcd says what was last [said](Self::say), however long that takes.
    pub fn written(&self) -> impl Future<Output = bool> + Send + use<> {
        self.membership.written()
    }

    /// Claims no more names.
    pub fn stop_claiming(&self) {
        self.claiming.cancel();
    }

    /// Gives the place up, and waits for that as long as etcd may be expected to answer.
    pub async fn leave(self) {
        let Self { membership, claiming, claimer, .. } = self;
        claiming.cancel();
        // It ends at once, and with it the only other reference.
        let _ = claimer.await;
        if let Some(membership) = Arc::into_inner(membership) {
            membership.leave().await;
        }
    }
}

/// What `worker` says of itself in `state`.
fn registration(worker: &Worker, state: &State) -> Registration {
    let ready = state.ready.iter().map(|(id, offer)| {
        let name = |text: &str| Name::parse(text).expect("names and digests were names before");
        let load_ms = u64::try_from(offer.took.as_millis()).unwrap_or(u64::MAX);
        let ready = Ready { boot_id: worker.boot_id.clone(), load_ms, golden_cosine: offer.golden_cosine };
        (name(&id.model), name(&id.digest), ready)
    });
    Registration { ready: ready.collect(), worker: Worker { draining: state.draining, ..worker.clone() } }
}

/// The task that claims names.
struct Claimer {
    etcd: Etcd,
    worker: WorkerId,
    claims: Claims,
    registered: watch::Receiver<bool>,
    restored: watch::Receiver<u64>,
    membership: Arc<Membership>,
}

impl Claimer {
    /// Makes all claims after each registration, and whenever it was found to be gone: an etcd that was wiped or restored
    /// has forgotten other things too.
    async fn run(mut self) {
        // An error means that the place is given up, or the claims are.
        while self.registered.wait_for(|registered| *registered).await.is_ok() {
            // What a name is to mean must be known to be ready first.
            if !self.membership.written().await {
                return;
            }
            self.restored.mark_unchanged();
            let again = self.claim().await;
            // Cancel safe, all of them. Claims are made again once a lost registration is back.
            tokio::select! {
                lost = self.registered.wait_for(|registered| !registered) => if lost.is_err() { return },
                restored = self.restored.changed() => if restored.is_err() { return },
                changed = self.claims.wanted.changed() => if changed.is_err() { return },
                () = time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
        }
    }

    /// Makes each claim; answers when to do so again, where there is a reason to.
    async fn claim(&mut self) -> Option<Duration> {
        let claims = self.claims.wanted.borrow_and_update().clone();
        let mut again = None;
        for claim in claims {
            let claimed = match claim.aim {
                Aim::Name => self.claim_one(&claim).await,
                Aim::Memory => self.remind(&claim).await,
            };
            let pause = match claimed {
                Ok(pause) => pause,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(
                        model = claim.id.model,
                        error,
                        "the cluster could not be told of a checkpoint, trying again"
                    );
                    Some(RETRY)
                }
            };
            again = again.into_iter().chain(pause).min();
        }
        again
    }

    /// Makes known what was known.
    async fn remind(&self, Claim { id, version, .. }: &Claim) -> Result<Option<Duration>, Error> {
        let Id { model, digest } = id;
        if self.etcd.put_version_back(model, version, &self.worker).await? {
            tracing::warn!(model, digest, "put back what etcd has forgotten of a checkpoint");
        }
        Ok(None)
    }

    async fn claim_one(&self, Claim { id, version, .. }: &Claim) -> Result<Option<Duration>, Error> {
        let Id { model, digest } = id;
        if let PutVersion::Known(known) = self.etcd.put_version(model, version, None).await? {
            // Nobody may want to know.
            let _ = self.claims.known.send((id.clone(), *known)).await;
        }
        let alias = claim_alias(&self.etcd, model, digest).await?;
        if alias.digest == *digest {
            tracing::info!(model, digest, epoch = alias.epoch, "the name means this checkpoint");
            return Ok(None);
        }
        tracing::info!(model, digest, means = alias.digest, "the name means another checkpoint");
        Ok(Some(CLAIM_AGAIN))
    }
}
