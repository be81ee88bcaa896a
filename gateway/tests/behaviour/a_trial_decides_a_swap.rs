//! A swap with a canary or a shadow is decided by what gateways saw of it: over a real etcd, and with a gateway that
//! leads.

use std::time::Duration;

use cluster::Directory as _;
use proto::v1;
use tokio::time;
use tonic::{Request, Status};

use crate::support::cluster::Cluster;
use crate::support::publisher::{begin, checkpoint, publish};
use crate::support::{FakeWorker, Gateway, digest, embed, texts};

async fn start(plan: v1::SwapPlan) -> (Cluster, FakeWorker, Gateway, String) {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let cluster = Cluster::start(&[&worker]).await;
    let gateway = cluster.gateway().await;
    let files = checkpoint("vanilla");
    let plan = v1::SwapPlan { new_space: true, ..plan };
    let begin = v1::PublishBegin { promote: Some(plan), ..begin(&files) };
    let told = publish(gateway.models().await, begin, &files).await.unwrap();
    (cluster, worker, gateway, told.published.checkpoint.unwrap().digest)
}

/// A canary that latency does not end: on a busy machine it says nothing.
fn canary(per_mille: u32, hold_seconds: u32) -> v1::SwapPlan {
    let canary = v1::CanaryPlan {
        per_mille,
        hold_seconds: Some(hold_seconds),
        min_calls: Some(20),
        max_p99_ratio: Some(1000.0),
        ..v1::CanaryPlan::default()
    };
    v1::SwapPlan { canary: Some(canary), ..v1::SwapPlan::default() }
}

async fn swap(gateway: &Gateway) -> v1::Swap {
    let request = v1::GetSwapRequest { model: "mini".into() };
    gateway.models().await.get_swap(request).await.unwrap().into_inner()
}

/// Calls that the cluster was told were tried by the checkpoint on trial, too.
async fn shadowed(cluster: &Cluster) -> u64 {
    let view = cluster.etcd.directory().list().await.unwrap();
    let trials = view.gateways.values().filter_map(|gateway| gateway.trials.get("mini"));
    trials.map(|trial| trial.sample.shadow.calls).sum()
}

/// Calls as many callers until the swap is in `state`; answers it, and how many calls failed.
async fn call_until(gateway: &Gateway, state: v1::SwapState) -> (v1::Swap, usize) {
    let mut embeddings = gateway.embeddings().await;
    let mut failed = 0;
    for i in 0..6000 {
        let mut request = Request::new(embed(texts(2, 3)));
        request.metadata_mut().insert("beige-caller", format!("caller {}", i % 50).parse().unwrap());
        failed += usize::from(embeddings.embed(request).await.is_err());
        if i % 20 == 0 {
            let swap = swap(gateway).await;
            if swap.state() == state {
                return (swap, failed);
            }
        }
        time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the swap never was {state:?}: {:?}", swap(gateway).await)
}

#[tokio::test]
async fn for_the_new_checkpoint_where_nothing_speaks_against_it() {
    let (_cluster, _worker, gateway, new) = start(canary(300, 1)).await;
    let (swap, failed) = call_until(&gateway, v1::SwapState::Committed).await;
    assert_eq!((swap.to.as_str(), failed), (new.as_str(), 0));
    let seen = swap.comparison.unwrap();
    assert!(seen.new_calls >= 20 && seen.old_calls >= 20, "{seen:?}");
    assert_eq!((seen.new_errors, seen.old_errors), (0, 0));
    assert!(seen.new_p99_ms > 0.0 && seen.old_p99_ms > 0.0);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn against_it_where_its_calls_fail() {
    // Nobody would wait for the end of this.
    let (_cluster, worker, gateway, new) = start(canary(300, 3_600)).await;
    call_until(&gateway, v1::SwapState::Trial).await;
    worker.set(|mood| mood.fails = Some((new.clone(), Status::internal("oh"))));
    let (swap, failed) = call_until(&gateway, v1::SwapState::RolledBack).await;
    assert!(failed > 0 && !swap.reason.is_empty());
    assert!(swap.comparison.unwrap().new_errors > 0);
    // Everybody is answered by the old one again.
    gateway.until(|fleet| fleet.aliases().is_some_and(|aliases| aliases["mini"].canary.is_none())).await;
    let mut embeddings = gateway.embeddings().await;
    for caller in 0..50 {
        let mut request = Request::new(embed(texts(2, 3)));
        request.metadata_mut().insert("beige-caller", format!("caller {caller}").parse().unwrap());
        let answer = embeddings.embed(request).await.unwrap().into_inner();
        assert_eq!(answer.provenance.unwrap().digest, digest('a'));
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_shadow_shows_how_alike_the_answers_are_and_nobody_notices() {
    let shadow_seconds = Some(3_600);
    let plan = v1::SwapPlan { shadow_per_mille: 1000, shadow_seconds, ..v1::SwapPlan::default() };
    let (cluster, _worker, gateway, new) = start(plan).await;
    let (_, failed) = call_until(&gateway, v1::SwapState::Trial).await;
    assert_eq!(failed, 0);
    let mut embeddings = gateway.embeddings().await;
    while shadowed(&cluster).await == 0 {
        embeddings.embed(embed(texts(2, 3))).await.unwrap();
        time::sleep(Duration::from_millis(50)).await;
    }
    // That is enough.
    let plan = Some(v1::SwapPlan::default());
    let request = v1::PromoteRequest { model: "mini".into(), digest: new, plan };
    gateway.models().await.promote(request).await.unwrap();
    let (swap, failed) = call_until(&gateway, v1::SwapState::Committed).await;
    assert_eq!(failed, 0);
    let seen = swap.comparison.unwrap();
    assert!(seen.shadowed_calls > 0 && seen.latency_ratio > 0.0, "{seen:?}");
    assert_eq!(seen.new_calls, 0);
    gateway.end().await.unwrap();
}
