//! Who is alive, what they have loaded, what a model's name means and how that changes: the control plane, in etcd.
//!
//! A worker [joins](Membership::join) with what it is ready to run, and stays registered under a lease for as long
//! as it wants. A gateway [follows](follow()) the cluster and always has a whole [`View`], however long etcd is away.
//! [`claim_alias`] gives a model's name its first checkpoint.
//!
//! What the other parts may rely on:
//!
//! * **Stale beats empty.** A view is replaced by a newer one, never cleared. An outage keeps the last one, and a
//!   list that has lost most of the workers that still answer is not believed ([`accept`]).
//! * **etcd is never waited for** without a bound, and being without it is never fatal: nothing here ends because
//!   of it, and what was registered is registered again.
//! * **No epoch goes back.** An etcd that was wiped or restored from an old snapshot is doubted, and those who have seen
//!   a later epoch of a name put it back.
//! * **What cannot be read is skipped**, with a warning, and hides nothing else.
//!
//! A worker that is ready with one checkpoint, and follows the cluster it is in:
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use cluster::{Etcd, Follow, Membership, MembershipOptions, Name, Pace, Ready, Registration, Settings, Sight};
//! use cluster::{Worker, WorkerId};
//! use tokio::sync::watch;
//! use tokio_util::{sync::CancellationToken, task::TaskTracker};
//!
//! let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
//! let etcd = Etcd::connect(Settings { endpoints: vec!["127.0.0.1:2379".into()], cluster: Name::parse("blue")?, tls: None })?;
//!
//! let boot_id = "chosen at random".to_owned();
//! let ready = Ready { boot_id: boot_id.clone(), load_ms: 310, golden_cosine: None };
//! let worker = Worker {
//!     id: WorkerId::parse("worker-0")?,
//!     address: "10.0.0.7:7001".into(),
//!     boot_id,
//!     device: "cpu".into(),
//!     memory: 8 << 30,
//!     draining: false,
//!     serves: None,
//! };
//! let registration = Registration { worker, ready: vec![(Name::parse("minilm")?, Name::parse("5a1e")?, ready)] };
//! let membership = Membership::join(etcd.clone(), registration, MembershipOptions::default(), &tasks, stop.clone());
//! membership.registered().wait_for(|registered| *registered).await?;
//! cluster::claim_alias(&etcd, "minilm", "5a1e").await?;
//!
//! let (views, mut view) = watch::channel(Arc::default());
//! let (sight, _) = watch::channel(Sight::default());
//! let follow = Follow { pace: Pace::default(), still_answers: |_: &WorkerId| true, sight };
//! tasks.spawn(cluster::follow(etcd.directory(), views, follow, stop.clone()));
//! view.wait_for(|view| view.aliases.contains_key("minilm")).await?;
//!
//! membership.leave().await;
//! # Ok(())
//! # }
//! ```
//!
//! A gateway registers what it has seen and what its calls need, and stands for the lead: one of the gateways carries
//! out the [swaps](Swap) that people ask for ([`Etcd::request_swap`], [`Etcd::roll_back`], [`Etcd::request_retire`]). A
//! worker holds what is [`desired`].
//!
//! ```no_run
//! # async fn example(etcd: cluster::Etcd, view: tokio::sync::watch::Receiver<std::sync::Arc<cluster::View>>)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! use cluster::{Gateway, GatewayId, MembershipOptions, Presence, SwapPlan, SwapSettings};
//! use tokio_util::{sync::CancellationToken, task::TaskTracker};
//!
//! let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
//! let mut said = Gateway { address: "10.0.0.1:8080".into(), ..Gateway::default() };
//! let own = (GatewayId::parse("chosen-at-random")?, &said);
//! let presence = Presence::join(etcd.clone(), own, MembershipOptions::default(), &tasks, stop.clone());
//! let settings = SwapSettings::default();
//! tasks.spawn(cluster::lead(etcd.clone(), presence.candidate(), view, settings, stop.clone()));
//!
//! // Whenever an epoch was taken in, or the last call on another checkpoint has ended.
//! said.epochs.insert("minilm".into(), 2);
//! presence.update(&said);
//!
//! let swap = etcd.request_swap("minilm", "5a1e", &SwapPlan::default()).await?;
//! println!("swap {} is {:?}", swap.swap_id, swap.state);
//!
//! presence.leave().await;
//! # Ok(())
//! # }
//! ```
//!
//! This is not the data plane: a worker's health is its stream to the gateway, within a second; a lease takes ten.
//! It is the only crate that speaks to etcd.

mod accept;
mod backoff;
mod claim;
mod clock;
mod desired;
mod dial;
mod directory;
mod error;
mod etcd;
mod jobs;
mod keys;
mod lead;
mod lease;
mod leasing;
mod ledger;
mod listing;
mod membership;
mod mend;
mod name;
mod operator;
mod presence;
mod record;
mod registrar;
mod sayings;
#[cfg(test)]
mod simulator;
mod swap;
mod tenure;
mod trainers;
mod transaction;
mod versions;
mod view;

pub use accept::{Verdict, accept};
pub use backoff::Backoff;
pub use claim::claim_alias;
pub use clock::unix_ms;
pub use desired::{Desired, Wish, desired};
pub use dial::{InvalidSettings, Settings, Tls};
pub use directory::{Directory, Follow, Freshness, Pace, Sight, follow};
pub use error::Error;
pub use etcd::Etcd;
pub use jobs::{ListedJob, Submitted};
pub use lead::lead;
pub use lease::LeaseId;
pub use listing::EtcdDirectory;
pub use membership::{Membership, MembershipOptions, Registration};
pub use name::{GatewayId, InvalidName, Name, TrainerId, WorkerId};
pub use operator::RequestError;
pub use presence::{Candidate, Presence};
pub use record::{
    Alias, Canary, CanaryPlan, Comparison, Gateway, Golden, GoldenSource, Histogram, Job, JobCurve,
    JobEvaluation, JobEvent, JobGate, JobOutcome, JobOwner, JobProgress, JobState, JobStep, Leader,
    MalformedGolden, ModelKind, Nack, NackReason, Pin, Ready, Refusal, Sample, Shadow, ShadowSample, Side,
    Spread, Swap, SwapEvent, SwapMode, SwapPlan, SwapState, Trainer, TrialSample, Unfaithful, Unreadable,
    Version, Worker,
};
pub use swap::{Refused, SwapSettings};
pub use trainers::TrainerPlace;
pub use versions::{JobFence, ListedVersion, PutVersion};
pub use view::{Change, Revisions, View};
