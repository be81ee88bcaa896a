//! The task that owns what is loaded: it looks at what is wanted and what there is, takes the steps that
//! [`plan`](super::plan) makes of it, and looks again at each change.
//!
//! Steps that take time are tasks of their own, and come back as `News`. One checkpoint is made ready at a time; any
//! number may be on their way out.

mod steps;
mod word;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cluster::{Etcd, Freshness, NackReason, Sight, Version, View, Worker, desired};
use futures::future;
use model::Checkpoint;
use telemetry::admin::Readiness;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::failure::Failure;
use super::plan::{Phase, Room, Standing, Task, plan, stand_ins};
use super::readiness::readiness;
use super::report::Reporter;
use super::setbacks::Setbacks;
use super::{Prepared, Shop};
use crate::catalogue::Id;
use crate::health::State;
use crate::register::{Claim, Claims, Member};

/// News that may wait.
const NEWS: usize = 16;

/// The cluster that a worker is in.
#[derive(Debug)]
pub struct Cluster {
    /// Where it is.
    pub etcd: Etcd,
    /// This worker, as it describes itself.
    pub worker: Worker,
    /// What the cluster is, as far as it is known.
    pub view: watch::Receiver<Arc<View>>,
    /// How well it is known.
    pub sight: watch::Receiver<Sight>,
}

/// What a steward is given.
#[derive(Debug)]
pub struct Charge {
    /// What it takes to make checkpoints ready.
    pub shop: Arc<Shop>,
    /// Checkpoints that were brought along, loaded or not, and what is to be known of them.
    pub brought: BTreeMap<Id, Brought>,
    /// Checkpoints that are ready, and offered.
    pub ready: Vec<Prepared>,
    /// Other checkpoints that the store is known to have.
    pub stored: BTreeSet<Id>,
    /// How long gateways take to notice what is not offered any more.
    pub settle: Duration,
    /// What gateways are told.
    pub state: watch::Sender<State>,
    /// What operators are told.
    pub readiness: watch::Sender<Readiness>,
}

/// A checkpoint that was brought along.
#[derive(Clone, Debug)]
pub struct Brought {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What is to be known of it.
    pub version: Arc<Version>,
}

/// What became of a step.
enum News {
    /// A checkpoint was made ready, or not.
    Prepared(Task, Result<Prepared, Failure>),
    /// A checkpoint that was leaving is wanted after all.
    Kept(Prepared),
    /// Nobody uses it any more.
    Unused(Prepared),
    /// It is off the device.
    Gone(Id),
}

/// A checkpoint that was made ready.
enum Holding {
    Ready(Prepared),
    /// The token calls it back.
    Leaving(CancellationToken, Arc<str>),
    Going(Arc<str>),
}

/// A preparation under way.
struct Running {
    task: Task,
    cancel: CancellationToken,
}

/// The owner of what is loaded.
pub struct Steward {
    shop: Arc<Shop>,
    cluster: Cluster,
    member: Member,
    reporter: Reporter,
    readiness: watch::Sender<Readiness>,
    claims: watch::Sender<Vec<Claim>>,
    known: mpsc::Receiver<(Id, Version)>,
    settle: Duration,
    brought: BTreeMap<Id, Brought>,
    held: BTreeMap<Id, Holding>,
    running: Option<Running>,
    setbacks: Setbacks,
    /// Checkpoints whose files can be had here, as far as is known.
    obtainable: BTreeSet<Id>,
    /// What the cluster is being told of checkpoints; the tokens end it.
    words: BTreeMap<Id, CancellationToken>,
    /// Whether operators were told that it serves what it should.
    was_ready: bool,
    news: mpsc::Sender<News>,
    inbox: mpsc::Receiver<News>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A steward at work.
#[derive(Debug)]
pub struct Stewardship {
    task: JoinHandle<Member>,
    stop: CancellationToken,
}

impl Stewardship {
    /// Ends it: what is loaded stays so, and nothing else comes. Answers the worker's place in the cluster.
    pub async fn end(self) -> Option<Member> {
        self.stop.cancel();
        self.task.await.ok()
    }
}

impl Steward {
    /// Takes charge, and joins the cluster. The work is done by tasks of `tasks`.
    #[must_use]
    pub fn spawn(charge: Charge, cluster: Cluster, tasks: &TaskTracker) -> Stewardship {
        let Charge { shop, brought, ready, stored, settle, state, readiness } = charge;
        let (claims, wanted) = watch::channel(Vec::new());
        let (tell, known) = mpsc::channel(NEWS);
        let (news, inbox) = mpsc::channel(NEWS);
        let worker = cluster.worker.clone();
        let reporter = Reporter::new(state.clone(), worker.id.to_string(), shop.metrics.clone());
        let claims_of = Claims { wanted, known: tell };
        let member = Member::join(cluster.etcd.clone(), worker, state.subscribe(), claims_of, tasks);
        let stop = CancellationToken::new();
        let obtainable = ready.iter().map(|prepared| prepared.served.id()).chain(stored).collect();
        let held = ready.into_iter().map(|prepared| (prepared.served.id(), Holding::Ready(prepared)));
        let steward = Self {
            held: held.collect(),
            shop,
            cluster,
            member,
            reporter,
            readiness,
            claims,
            known,
            settle,
            brought,
            running: None,
            setbacks: Setbacks::default(),
            obtainable,
            words: BTreeMap::new(),
            was_ready: false,
            news,
            inbox,
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        Stewardship { task: tasks.spawn(steward.run()), stop }
    }

    async fn run(mut self) -> Member {
        loop {
            let again = self.look();
            let later = async {
                match again {
                    Some(again) => time::sleep_until(again).await,
                    None => future::pending().await,
                }
            };
            // All arms are cancel safe.
            tokio::select! {
                () = self.stop.cancelled() => break,
                Some(news) = self.inbox.recv() => self.take(news),
                Some((id, version)) = self.known.recv() => self.learn(&id, &version),
                () = changed(&mut self.cluster.view) => {}
                () = changed(&mut self.cluster.sight) => {}
                () = later => {}
            }
        }
        if let Some(Running { cancel, .. }) = &self.running {
            cancel.cancel();
        }
        self.member.stop_claiming();
        self.member
    }

    /// Takes all steps that there are to take; answers when to look again, whatever happens until then.
    fn look(&mut self) -> Option<Instant> {
        let view = self.cluster.view.borrow_and_update().clone();
        let seen = self.cluster.sight.borrow_and_update().freshness != Freshness::Unseen;
        self.reporter.aliases(&view);
        let wanted = if seen { desired(&view, &self.cluster.worker) } else { BTreeMap::new() };
        let stand_ins = stand_ins(&view, self.brought.keys(), &self.obtainable);
        let (held, running) = (self.phases(), self.running.as_ref().map(|running| &running.task.id));
        let plan = plan(&wanted, Standing { held: &held, running, stand_ins: &stand_ins });
        if let (Some(running), true) = (&self.running, plan.cancel) {
            running.cancel.cancel();
        }
        plan.release.iter().for_each(|id| self.release(id));
        plan.resume.iter().for_each(|id| self.resume(id));
        let may_begin =
            |task: &&Task| task.room != Room::Awaited && self.setbacks.allow(task, Instant::now());
        if self.running.is_none()
            && let Some(task) = plan.tasks.iter().find(may_begin)
        {
            self.begin(task.clone());
        }
        let running = self.running.as_ref().map(|running| &running.task.id);
        self.reporter.outstanding(&wanted, &plan.tasks, (running, &self.setbacks));
        self.claim(&view, &stand_ins);
        self.tell_operators(seen, &plan.tasks);
        self.setbacks.next(&plan.tasks)
    }

    /// Tells operators once that the worker serves what it should, and until then what it waits for.
    fn tell_operators(&mut self, seen: bool, tasks: &[Task]) {
        if self.was_ready {
            return;
        }
        let offers = !self.reporter.offered().is_empty();
        let running = self.running.as_ref().map(|running| &running.task);
        let told = readiness((seen, offers), running.into_iter().chain(tasks), &self.setbacks);
        self.was_ready = told == Readiness::Ready;
        if self.was_ready {
            tracing::info!(models = self.held.len(), "ready");
        }
        self.readiness.send_replace(told);
    }

    fn phases(&self) -> BTreeMap<Id, Phase> {
        let phase = |holding: &Holding| match holding {
            Holding::Ready(_) => Phase::Ready,
            Holding::Leaving(..) => Phase::Leaving,
            Holding::Going(_) => Phase::Going,
        };
        self.held.iter().map(|(id, holding)| (id.clone(), phase(holding))).collect()
    }

    fn take(&mut self, news: News) {
        match news {
            News::Prepared(task, Ok(prepared)) => self.succeed(&task, prepared),
            News::Prepared(task, Err(failure)) => self.fail(&task, failure),
            News::Kept(prepared) => self.hold(prepared),
            News::Unused(prepared) => self.unload(prepared),
            News::Gone(id) => {
                self.held.remove(&id);
                self.shop.metrics.unloaded(&id);
                tracing::info!(model = id.model, digest = id.digest, "a checkpoint is gone");
                // There is more room than when these were refused.
                for id in self.setbacks.forget_shortages() {
                    self.take_back(&id);
                }
            }
        }
    }

    fn succeed(&mut self, task: &Task, prepared: Prepared) {
        self.running = None;
        self.setbacks.forget(&task.id);
        self.obtainable.insert(task.id.clone());
        self.shop.metrics.prepared("ready", Some(prepared.took));
        self.hold(prepared);
        let refused = (task.id.model.clone(), task.id.digest.clone());
        let nacks = self.cluster.view.borrow().nacks.get(&refused).cloned();
        if nacks.is_some_and(|nacks| nacks.contains_key(&self.cluster.worker.id)) {
            self.take_back(&task.id);
        }
    }

    fn fail(&mut self, task: &Task, failure: Failure) {
        self.running = None;
        let Id { model, digest } = &task.id;
        tracing::warn!(model, digest, swap = task.swap_id, %failure, "a checkpoint is not ready");
        self.shop.metrics.prepared(outcome(&failure), None);
        match &failure {
            Failure::Absent(_) | Failure::Refused { reason: NackReason::Store, .. } => {
                self.obtainable.remove(&task.id);
            }
            Failure::Refused { .. } => drop(self.obtainable.insert(task.id.clone())),
            Failure::Later(_) | Failure::Cancelled => {}
        }
        let when = (Instant::now(), self.deadline(task));
        if let Some(refused) = self.setbacks.note(task, failure, when, rand::random()).cloned() {
            self.refuse(task, &refused);
        }
    }
}

/// Waits for a change; for ever, where there will be none.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        future::pending::<()>().await;
    }
}

/// A failure as it is counted.
fn outcome(failure: &Failure) -> &'static str {
    match failure {
        Failure::Refused { reason, .. } => reason.as_str(),
        Failure::Later(_) => "later",
        Failure::Absent(_) => "absent",
        Failure::Cancelled => "cancelled",
    }
}
