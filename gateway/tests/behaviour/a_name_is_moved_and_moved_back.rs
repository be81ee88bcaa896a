//! Promote, roll back, retire, over a real etcd and with a gateway that leads: under calls, none of which fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cluster::NackReason;
use proto::v1;
use proto::v1::embeddings_client::EmbeddingsClient;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

use crate::support::cluster::Cluster;
use crate::support::publisher::{begin, checkpoint, publish, published};
use crate::support::worker::Loads;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, field, texts};

async fn start() -> (Cluster, [FakeWorker; 2], Gateway) {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let gateway = cluster.gateway().await;
    (cluster, workers, gateway)
}

fn new_space() -> v1::SwapPlan {
    v1::SwapPlan { new_space: true, ..v1::SwapPlan::default() }
}

async fn promote(gateway: &Gateway, digest: &str, plan: v1::SwapPlan) -> Result<v1::Swap, Status> {
    let request = v1::PromoteRequest { model: "mini".into(), digest: digest.into(), plan: Some(plan) };
    Ok(gateway.models().await.promote(request).await?.into_inner())
}

async fn roll_back(gateway: &Gateway) -> Result<v1::Swap, Status> {
    let request = v1::RollbackRequest { model: "mini".into() };
    Ok(gateway.models().await.rollback(request).await?.into_inner())
}

async fn retire(gateway: &Gateway, digest: &str) -> Result<v1::Swap, Status> {
    let request = v1::RetireRequest { model: "mini".into(), digest: digest.into() };
    Ok(gateway.models().await.retire(request).await?.into_inner())
}

/// Every state of the swap under way, up to the decision.
async fn watched(gateway: &Gateway) -> Vec<v1::Swap> {
    let request = v1::WatchSwapRequest { model: "mini".into(), follow: false };
    let mut steps = gateway.models().await.watch_swap(request).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(step) = time::timeout(Duration::from_secs(60), steps.message()).await.unwrap().unwrap() {
        seen.push(step);
    }
    seen
}

async fn until_state(gateway: &Gateway, state: v1::SwapState) -> v1::Swap {
    for _ in 0..600 {
        let request = v1::GetSwapRequest { model: "mini".into() };
        let swap = gateway.models().await.get_swap(request).await.unwrap().into_inner();
        if swap.state() == state {
            return swap;
        }
        time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the swap never was {state:?}")
}

#[track_caller]
fn refused(outcome: Result<v1::Swap, Status>, code: Code, says: &str) {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert!(status.message().contains(says), "{}", status.message());
}

/// Calls without a pause until told to stop; answers the epochs and digests of all answers.
fn callers(gateway: &Gateway, stop: &CancellationToken) -> tokio::task::JoinHandle<Vec<(u64, String)>> {
    let (address, stop) = (gateway.address, stop.clone());
    TaskTracker::new().spawn(async move {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let mut client = EmbeddingsClient::new(channel);
        let mut seen = Vec::new();
        while !stop.is_cancelled() {
            let answer = client.embed(embed(texts(3, 3))).await.expect("no call fails").into_inner();
            let provenance = answer.provenance.clone().unwrap();
            assert_vectors(&answer, &provenance.digest, &texts(3, 3));
            seen.push((provenance.epoch, provenance.digest));
        }
        seen
    })
}

#[tokio::test]
async fn under_calls_none_of_which_fails() {
    let (_cluster, workers, gateway) = start().await;
    let (old, new) = (digest('a'), published(&gateway, "vanilla").await);
    let stop = CancellationToken::new();
    let calls = callers(&gateway, &stop);

    let swap = promote(&gateway, &new[..12], new_space()).await.unwrap();
    assert_eq!((swap.from.as_str(), swap.to.as_str()), (old.as_str(), new.as_str()));
    let steps = watched(&gateway).await;
    let last = steps.last().unwrap();
    assert_eq!((last.state(), last.epoch, last.ready), (v1::SwapState::Committed, 2, 2));
    assert!(last.workers.iter().all(|worker| worker.stage() == v1::Stage::Ready), "{:?}", last.workers);
    assert!(last.events.len() >= 3, "{:?}", last.events);
    gateway.until_says(|record| record.epochs.get("mini") == Some(&2)).await;

    let back = roll_back(&gateway).await.unwrap();
    assert_eq!((back.state(), back.epoch), (v1::SwapState::RolledBack, 3));
    gateway.until_says(|record| record.epochs.get("mini") == Some(&3)).await;
    // What was rolled back is let go.
    for worker in &workers {
        worker.until_loaded(&[&old]).await;
    }

    stop.cancel();
    let seen = calls.await.unwrap();
    assert!(seen.is_sorted_by_key(|(epoch, _)| *epoch), "an epoch went back");
    for (epoch, expected) in [(1, &old), (2, &new), (3, &old)] {
        let digests: Vec<_> = seen.iter().filter(|seen| seen.0 == epoch).map(|(_, digest)| digest).collect();
        assert!(!digests.is_empty() && digests.iter().all(|digest| *digest == expected), "epoch {epoch}");
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn what_was_before_is_let_go_by_hand_or_by_plan() {
    let (_cluster, workers, gateway) = start().await;
    let new = published(&gateway, "vanilla").await;
    promote(&gateway, &new, new_space()).await.unwrap();
    until_state(&gateway, v1::SwapState::Committed).await;
    let model = v1::GetModelRequest { name: "mini".into() };
    let model = gateway.models().await.get(model).await.unwrap().into_inner();
    assert_eq!(model.checkpoint.unwrap().digest, new);
    assert_eq!(model.others.iter().map(|other| other.digest.clone()).collect::<Vec<_>>(), [digest('a')]);
    refused(retire(&gateway, &digest('b')).await, Code::FailedPrecondition, "before");
    retire(&gateway, "").await.unwrap();
    until_state(&gateway, v1::SwapState::Retired).await;
    refused(roll_back(&gateway).await, Code::FailedPrecondition, "go back");

    let newer = published(&gateway, "chocolate").await;
    let plan = v1::SwapPlan { retire_after_seconds: Some(0), ..new_space() };
    promote(&gateway, &newer, plan).await.unwrap();
    until_state(&gateway, v1::SwapState::Retired).await;
    for worker in &workers {
        worker.until_loaded(&[&newer]).await;
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn callers_that_name_the_old_one_do_not_keep_it_for_ever() {
    let (_cluster, workers, gateway) = start().await;
    let new = published(&gateway, "vanilla").await;
    promote(&gateway, &new, new_space()).await.unwrap();
    until_state(&gateway, v1::SwapState::Committed).await;
    for worker in &workers {
        worker.set(|mood| mood.takes = Duration::from_millis(300));
    }
    let named = v1::EmbedRequest { model: format!("mini@{}", digest('a')), ..embed(texts(3, 3)) };
    let (stop, address) = (CancellationToken::new(), gateway.address);
    let answered = [0; 2].map(|none| Arc::new(AtomicUsize::new(none)));
    // Two callers in turns: there is never a moment without a call.
    let calls: Vec<_> = (0..2)
        .zip(answered.clone())
        .map(|(i, answered)| {
            let (stop, named) = (stop.clone(), named.clone());
            TaskTracker::new().spawn(async move {
                time::sleep(Duration::from_millis(150 * i)).await;
                let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
                let mut client = EmbeddingsClient::new(endpoint.connect().await.unwrap());
                while !stop.is_cancelled() {
                    match client.embed(named.clone()).await {
                        Ok(answer) => assert_vectors(answer.get_ref(), &digest('a'), &texts(3, 3)),
                        Err(status) => return status,
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                panic!("nobody was told that it goes")
            })
        })
        .collect();
    let both = async {
        while answered.iter().any(|answered| answered.load(Ordering::Relaxed) < 2) {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    time::timeout(Duration::from_secs(60), both).await.expect("both are answered");
    retire(&gateway, "").await.unwrap();
    until_state(&gateway, v1::SwapState::Retired).await;
    for call in calls {
        let status = call.await.unwrap();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    }
    stop.cancel();
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_a_reason() {
    let (_cluster, workers, gateway) = start().await;
    refused(promote(&gateway, &digest('b'), new_space()).await, Code::NotFound, "publish it first");
    refused(roll_back(&gateway).await, Code::FailedPrecondition, "go back");
    refused(retire(&gateway, "").await, Code::FailedPrecondition, "mini");
    let nobody = v1::RollbackRequest { model: "nobody".into() };
    let status = gateway.models().await.rollback(nobody).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let nothing = v1::GetSwapRequest { model: "mini".into() };
    assert_eq!(gateway.models().await.get_swap(nothing).await.unwrap_err().code(), Code::NotFound);

    let (one, other) = (published(&gateway, "vanilla").await, published(&gateway, "chocolate").await);
    let status = promote(&gateway, "", new_space()).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_deref()), (Code::InvalidArgument, Some("digest")));
    refused(promote(&gateway, &one, v1::SwapPlan::default()).await, Code::FailedPrecondition, "--new-space");
    let plan = v1::SwapPlan { shadow_per_mille: 1001, ..new_space() };
    let status = promote(&gateway, &one, plan).await.unwrap_err();
    assert_eq!(
        (status.code(), field(&status).as_deref()),
        (Code::InvalidArgument, Some("plan.shadow_per_mille"))
    );

    for worker in &workers {
        worker.set(|mood| mood.loads = Loads::Later);
    }
    promote(&gateway, &one, new_space()).await.unwrap();
    refused(promote(&gateway, &other, new_space()).await, Code::FailedPrecondition, "under way");
    promote(&gateway, &one, new_space()).await.expect("to ask twice is to ask once");
    let called_off = roll_back(&gateway).await.unwrap();
    assert_eq!(called_off.state(), v1::SwapState::Aborted);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn workers_that_cannot_are_told_of_and_nothing_moves() {
    let (_cluster, workers, gateway) = start().await;
    let new = published(&gateway, "vanilla").await;
    workers[1].set(|mood| mood.loads = Loads::Never(NackReason::Golden));
    promote(&gateway, &new, new_space()).await.unwrap();
    let steps = watched(&gateway).await;
    let last = steps.last().unwrap();
    assert_eq!((last.state(), last.epoch), (v1::SwapState::Aborted, 0));
    assert!(!last.reason.is_empty());
    let told: Vec<_> = last
        .workers
        .iter()
        .map(|worker| (worker.worker.as_str(), worker.stage(), worker.reason.as_str()))
        .collect();
    assert_eq!(told[1], ("w2", v1::Stage::Failed, "golden"));
    let answer = gateway.embeddings().await.embed(embed(texts(3, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('a'), &texts(3, 3));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_worker_that_says_nothing_until_the_deadline_is_told_of() {
    let (_cluster, workers, gateway) = start().await;
    let new = published(&gateway, "vanilla").await;
    workers[1].set(|mood| mood.loads = Loads::Later);
    let plan = v1::SwapPlan { deadline_seconds: Some(2), ..new_space() };
    promote(&gateway, &new, plan).await.unwrap();
    let steps = watched(&gateway).await;
    let last = steps.last().unwrap();
    assert_eq!((last.state(), last.epoch), (v1::SwapState::Aborted, 0));
    assert!(last.reason.ends_with("of 2 workers were ready in time"), "{}", last.reason);
    let told = last.workers.iter().find(|worker| worker.worker == "w2").unwrap();
    assert_eq!((told.stage(), told.reason.as_str()), (v1::Stage::Failed, "timeout"), "{last:#?}");
    let answer = gateway.embeddings().await.embed(embed(texts(3, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('a'), &texts(3, 3));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_watch_shows_how_far_each_worker_is_and_follows_if_asked() {
    let (_cluster, workers, gateway) = start().await;
    let new = published(&gateway, "vanilla").await;
    for worker in &workers {
        worker.set(|mood| mood.loads = Loads::Later);
    }
    promote(&gateway, &new, new_space()).await.unwrap();
    let request = v1::WatchSwapRequest { model: "mini".into(), follow: true };
    let mut steps = gateway.models().await.watch_swap(request).await.unwrap().into_inner();
    let mut until = async |condition: &dyn Fn(&v1::Swap) -> bool| {
        loop {
            let step = time::timeout(Duration::from_secs(60), steps.message()).await;
            let step = step.expect("it never came to that").unwrap().unwrap();
            if condition(&step) {
                return step;
            }
        }
    };
    let downloading = v1::Preparation {
        worker: "w1".into(),
        model: "mini".into(),
        digest: new.clone(),
        stage: v1::Stage::Downloading.into(),
        bytes_done: 7,
        bytes_total: 9,
        ..v1::Preparation::default()
    };
    workers[0].set(|mood| mood.preparations = vec![downloading.clone()]);
    let step = until(&|swap| swap.workers.iter().any(|worker| worker.bytes_done == 7)).await;
    assert_eq!(step.workers[0], downloading);
    assert_eq!(step.workers[1].stage(), v1::Stage::Unspecified);
    for worker in &workers {
        worker.set(|mood| mood.loads = Loads::Willingly);
    }
    until(&|swap| swap.state() == v1::SwapState::Committed).await;
    retire(&gateway, "").await.unwrap();
    until(&|swap| swap.state() == v1::SwapState::Retired).await;
    let newer = published(&gateway, "chocolate").await;
    promote(&gateway, &newer, new_space()).await.unwrap();
    until(&|swap| swap.to == newer && swap.state() == v1::SwapState::Committed).await;
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_publication_may_begin_the_swap() {
    let (_cluster, _workers, gateway) = start().await;
    let files = checkpoint("vanilla");
    let with = |plan| v1::PublishBegin { promote: Some(plan), ..begin(&files) };
    let status = publish(gateway.models().await, with(v1::SwapPlan::default()), &files).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("--new-space"), "{}", status.message());
    let told = publish(gateway.models().await, with(new_space()), &files).await.unwrap();
    let swap = until_state(&gateway, v1::SwapState::Committed).await;
    assert_eq!(swap.to, told.published.checkpoint.unwrap().digest);
    // It means that already, which is what was wanted.
    publish(gateway.models().await, with(new_space()), &files).await.unwrap();
    gateway.end().await.unwrap();
}
