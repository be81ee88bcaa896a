//! The stage that swaps are set on: a cluster with a store, checkpoints that are published there, callers who write down
//! what they are answered, and an operator.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::v1::{PublishBegin, Swap, SwapPlan, SwapState};
use tokio::time::{self, Instant};

use crate::history::{Book, Callers, Digest, Load, Note, Notebook, Record};
use crate::{Cluster, Lingering, Operator, PATIENCE, Plan, is_decided};

/// What is to be seen.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The cluster; its models are filled in.
    pub plan: Plan,
    /// Directories of checkpoints: workers are started with the first.
    pub checkpoints: Vec<PathBuf>,
    /// How many of them, from the first on, share its index space and are published.
    pub kin: usize,
    /// What each of them answers.
    pub book: Arc<Book>,
    /// Who calls, and by which name.
    pub load: Load,
}

/// A cluster with published checkpoints, and those who use it.
#[derive(Debug)]
pub struct Stage {
    /// The processes.
    pub cluster: Cluster,
    /// Who calls.
    pub callers: Callers,
    /// Speaks to the first gateway.
    pub operator: Operator,
    /// The name that is moved about.
    pub model: String,
    /// All checkpoints, in the order of the scene.
    pub digests: Vec<Digest>,
    /// Where they lie.
    pub checkpoints: Vec<PathBuf>,
    /// The swap that was asked for last, by its id.
    swap: String,
}

impl Stage {
    /// Starts all of it.
    pub async fn set(scene: Scene) -> Self {
        let Scene { plan, checkpoints, kin, book, load } = scene;
        let models = vec![format!("{}={}", load.model, checkpoints[0].display())];
        let cluster = Cluster::of(Plan { models, store: true, ..plan }).await;
        let operator = Operator::new(&cluster.gateways[0], &load.model);
        let callers = Callers::start(&book, &load, &cluster.gateways);
        let (model, digests) = (load.model, book.digests.clone());
        let mut stage = Self { cluster, callers, operator, model, digests, checkpoints, swap: String::new() };
        stage.publish(0, "").await;
        let space = stage.space().await;
        for i in 1..kin {
            stage.publish(i, &space).await;
        }
        stage
    }

    /// The index space of what the name means.
    pub async fn space(&mut self) -> String {
        self.operator.model().await.checkpoint.unwrap().index_space
    }

    /// Publishes checkpoint `i`; an empty space is its own.
    pub async fn publish(&mut self, i: usize, space: &str) {
        let begin = PublishBegin { index_space: space.to_owned(), ..PublishBegin::default() };
        let version = self.operator.publish(&self.checkpoints[i], begin).await.unwrap();
        assert_eq!(version.checkpoint.unwrap().digest, self.digests[i].as_str());
    }

    /// The clock and the notes of the record.
    pub fn notebook(&self) -> Notebook {
        self.callers.notebook.clone()
    }

    /// Begins to swap to checkpoint `i`, as soon as no other swap is in the way.
    pub async fn promote(&mut self, i: usize, plan: SwapPlan) -> Swap {
        let begun = Instant::now();
        loop {
            match self.operator.promote(&self.digests[i], plan).await {
                Ok(swap) => {
                    self.swap.clone_from(&swap.id);
                    return swap;
                }
                Err(status) => {
                    assert!(is_busy(&status) && begun.elapsed() < PATIENCE, "{status:?}");
                    time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Swaps to checkpoint `i`, and waits until it is committed.
    pub async fn swap_to(&mut self, i: usize) -> Swap {
        self.promote(i, SwapPlan::default()).await;
        let swap = self.committed().await;
        assert_eq!(swap.to, self.digests[i].as_str());
        swap
    }

    /// Waits until `wanted` holds of the swap that was asked for last.
    #[track_caller]
    pub fn until<W: Fn(&Swap) -> bool>(&self, wanted: W) -> impl Future<Output = Swap> + use<W> {
        // A gateway answers by what it has seen, and that may be the swap before.
        let id = self.swap.clone();
        self.operator.until(move |swap| swap.id == id && wanted(swap))
    }

    /// Waits until that swap is committed, and tells the record.
    #[track_caller]
    pub fn committed(&mut self) -> impl Future<Output = Swap> {
        let decided = self.until(|swap| is_decided(swap.state()));
        async move {
            let swap = decided.await;
            assert!(matches!(swap.state(), SwapState::Committed | SwapState::Retired), "{swap:#?}");
            self.tell(&swap).await;
            swap
        }
    }

    /// Holds that the swap asked for last is in `state` still, by what etcd itself says now: whatever comes next comes
    /// after whatever has happened so far.
    pub async fn is_still(&self, state: ::cluster::SwapState) {
        let view = self.cluster.view().await;
        let swap = &view.swaps[&self.model];
        assert_eq!((&swap.swap_id, swap.state), (&self.swap, state), "{swap:#?}");
    }

    /// Ends the trial of checkpoint `i` in its favour.
    pub async fn promote_on_trial(&mut self, i: usize) {
        let swap = self.operator.promote(&self.digests[i], SwapPlan::default()).await.unwrap();
        assert_eq!(swap.id, self.swap, "it is the same swap: {swap:#?}");
    }

    /// A stream to the name, at the gateway at `place`.
    pub async fn linger(&self, place: usize) -> Lingering {
        Lingering::at(&self.cluster.gateways[place], &self.model).await
    }

    /// Waits until nothing is kept for the name but what it means, and what it meant before if that can be gone back to.
    pub async fn nothing_leaves(&self) {
        self.cluster.until(|view| view.aliases[&self.model].leaving.is_empty()).await;
    }

    /// Waits until the old checkpoint is let go: by then every gateway knows the new one.
    pub async fn retired(&mut self) {
        let swap = self.until(|swap| swap.state() == SwapState::Retired).await;
        self.note(None, swap.epoch);
    }

    /// Waits until the operator's gateway has taken in what `swap` last did to the name, and tells the record.
    pub async fn tell(&mut self, swap: &Swap) {
        let begun = Instant::now();
        let mut model = self.operator.model().await;
        while model.epoch < swap.epoch {
            assert!(begun.elapsed() < PATIENCE, "{model:?} is older than {swap:#?}");
            time::sleep(Duration::from_millis(1)).await;
            model = self.operator.model().await;
        }
        let (digest, epoch) = (model.checkpoint.unwrap().digest.into(), model.epoch);
        self.notebook().note(Note::Meaning { model: self.model.clone(), epoch, digest, canary: None });
        self.note(Some(self.operator.gateway.clone()), epoch);
    }

    /// Tells the record that an epoch is known from now on, at a gateway or everywhere.
    pub fn note(&self, gateway: Option<String>, epoch: u64) {
        let (model, at) = (self.model.clone(), self.notebook().now());
        self.notebook().note(Note::Known { at, gateway, model, epoch });
    }

    /// Waits until so many more calls have ended.
    pub async fn calls(&self, count: usize) {
        let (notebook, mut last) = (self.notebook(), Instant::now());
        let mut ended = notebook.calls();
        let goal = ended + count;
        while ended < goal {
            assert!(last.elapsed() < PATIENCE, "nobody is answered");
            time::sleep(Duration::from_millis(10)).await;
            let now = notebook.calls();
            if now > ended {
                (ended, last) = (now, Instant::now());
            }
        }
    }

    /// Another gateway, which is called from now on.
    pub async fn add_gateway(&mut self) {
        let gateway = self.cluster.another_gateway(&[]).await;
        gateway.ready().await;
        self.callers.add(&gateway);
        self.cluster.gateways.push(gateway);
    }

    /// Kills the gateway at `place`; the operator speaks to the first that is left.
    pub async fn kill_gateway(&mut self, place: usize) {
        let mut gateway = self.cluster.gateways.remove(place);
        self.callers.kill(&mut gateway).await;
        self.operator = Operator::new(&self.cluster.gateways[0], &self.model);
    }

    /// Ends the calls: nobody noticed anything.
    pub async fn flawless(self) -> Record {
        let record = self.callers.finish().await;
        record.assert_flawless();
        let summary = record.summary(0..u64::MAX);
        assert!(summary.calls > 100, "{summary:?}");
        record
    }
}

/// Whether another swap is in the way, or nobody can say.
fn is_busy(status: &tonic::Status) -> bool {
    matches!(status.code(), tonic::Code::FailedPrecondition | tonic::Code::Unavailable)
}
