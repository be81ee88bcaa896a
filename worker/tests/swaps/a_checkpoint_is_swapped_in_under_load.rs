use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cluster::SwapState;
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::checkpoint;
use crate::support::{PATIENCE, Scene, Worker, floats};
use crate::variants::{Distance, variant};

/// Callers, and how many calls of each were answered.
struct Load {
    callers: JoinSet<()>,
    answered: [Arc<AtomicU64>; 3],
}

/// Calls what the name means, over and over, as a gateway would: by the digest that it means when the call begins.
fn load(scene: &Scene, worker: &Arc<Worker>, stop: &CancellationToken) -> Load {
    let mut load = Load { callers: JoinSet::new(), answered: Default::default() };
    for (caller, answered) in load.answered.iter().enumerate() {
        let (view, worker) = (scene.view.clone(), worker.clone());
        let (answered, stop) = (answered.clone(), stop.clone());
        load.callers.spawn(async move {
            let mut call = 0;
            while !stop.is_cancelled() {
                let digest = view.borrow().aliases["m"].digest.clone();
                let text = format!("the {call} th call of caller {caller}");
                let answer = worker.embed(&digest, &text).await.unwrap();
                assert_eq!(answer.provenance.unwrap().digest, digest);
                answered.fetch_add(1, Ordering::Relaxed);
                call += 1;
            }
        });
    }
    load
}

impl Load {
    /// Waits until each caller has begun calls and had answers to them; none of them fails.
    async fn goes_on(&mut self) {
        let goals = self.answered.each_ref().map(|answered| answered.load(Ordering::Relaxed) + 5);
        let goes_on = async {
            for (answered, goal) in self.answered.iter().zip(goals) {
                while answered.load(Ordering::Relaxed) < goal {
                    time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        tokio::select! {
            went_on = time::timeout(PATIENCE, goes_on) => went_on.expect("callers are answered"),
            Some(ended) = self.callers.join_next() => panic!("a caller gave up: {ended:?}"),
        }
    }
}

#[tokio::test]
async fn beside_the_one_that_serves_and_the_old_one_goes_when_nobody_needs_it() {
    let scene = Scene::set().await;
    let model = format!("m={}", checkpoint("bert-cls"));
    let worker = Arc::new(scene.worker("w1", &["--model", &model]).await);
    let view = scene.until("claimed", |view| view.aliases.contains_key("m")).await;
    let old = view.aliases["m"].digest.clone();
    worker.until_page("/readyz", "200 OK").await;
    let local = scene.etcd.version("m", &old).await.unwrap().unwrap();
    assert!(!local.stored && local.golden.is_none(), "{local:?}");

    let dir = variant(Path::new(&checkpoint("bert-cls")), 1, Distance::Stranger, scene.dir.path());
    let new = scene.publish(&dir, &worker).await.digest;
    let stop = CancellationToken::new();
    let mut load = load(&scene, &worker, &stop);
    scene.swap(&new).await;
    let view = scene.until_swap(SwapState::Committed).await;
    assert_eq!((view.aliases["m"].digest.as_str(), view.aliases["m"].epoch), (new.as_str(), 2));
    let report = worker.until_ready(&[&old, &new]).await;
    assert!(report.preparations.is_empty(), "{report:?}");
    worker.until("the new epoch", |report| report.aliases.iter().any(|alias| alias.epoch == 2)).await;
    load.goes_on().await;

    // Both can be asked, and differ.
    let (first, second) = (worker.embed(&old, "a text").await, worker.embed(&new, "a text").await);
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(second.alias.unwrap().digest, new);
    assert_ne!(floats(&first.dense.unwrap().data), floats(&second.dense.unwrap().data));

    scene.say(2);
    scene.etcd.request_retire("m", None).await.unwrap();
    scene.until_swap(SwapState::Retired).await;
    worker.until_ready(&[&new]).await;
    let refused = loop {
        // It is withdrawn first, and let go a little later.
        if let Err(refused) = worker.embed(&old, "a text").await {
            break refused;
        }
    };
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let info = refused.get_details_error_info().unwrap();
    assert_eq!((&*info.metadata["digest"], &*info.metadata["epoch"]), (&*new, "2"));
    load.goes_on().await;
    stop.cancel();
    load.callers.join_all().await;
    worker.until_page("/metrics", "\nbeige_worker_checkpoints 1.0\n").await;
    worker.until_page("/metrics", "\nbeige_worker_preparations_total{outcome=\"ready\"} 1\n").await;
    worker.until_page_lacks("/metrics", &old).await;
}

#[tokio::test]
async fn and_back_without_loading_anything() {
    let scene = Scene::set().await;
    let model = format!("m={}", checkpoint("bert-cls"));
    let worker = scene.worker("w1", &["--model", &model]).await;
    let old = scene.until("claimed", |view| view.aliases.contains_key("m")).await.aliases["m"].digest.clone();
    let new = scene.publish(Path::new(&checkpoint("bert-mean")), &worker).await.digest;
    scene.swap(&new).await;
    scene.until_swap(SwapState::Committed).await;
    scene.etcd.roll_back("m").await.unwrap();
    let view = scene.until_swap(SwapState::RolledBack).await;
    assert_eq!(view.aliases["m"].digest, old);
    worker.embed(&old, "a text").await.unwrap();
    scene.say(view.aliases["m"].epoch);
    worker.until_ready(&[&old]).await;
}
