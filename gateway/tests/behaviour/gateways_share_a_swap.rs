//! Several gateways: any of them takes what people ask, one carries it out, and when it is gone another does; a
//! checkpoint is retired only when none of them has a call left on it.

use std::time::Duration;

use proto::v1;
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::support::cluster::Cluster;
use crate::support::publisher::published;
use crate::support::worker::Loads;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, texts};

async fn start() -> (Cluster, FakeWorker, [Gateway; 2]) {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let cluster = Cluster::start(&[&worker]).await;
    let gateways = [cluster.gateway().await, cluster.gateway().await];
    (cluster, worker, gateways)
}

async fn promote(gateway: &Gateway, digest: &str) {
    let plan = Some(v1::SwapPlan { new_space: true, ..v1::SwapPlan::default() });
    let request = v1::PromoteRequest { model: "mini".into(), digest: digest.into(), plan };
    gateway.models().await.promote(request).await.unwrap();
}

async fn until_state(gateway: &Gateway, state: v1::SwapState) {
    let request = v1::WatchSwapRequest { model: "mini".into(), follow: true };
    let mut models = gateway.models().await;
    // Another gateway took it, and this one hears of it in a moment.
    let opened = async {
        loop {
            match models.watch_swap(request.clone()).await {
                Err(status) if status.code() == Code::NotFound => {
                    time::sleep(Duration::from_millis(20)).await;
                }
                opened => return opened.unwrap().into_inner(),
            }
        }
    };
    let mut steps = time::timeout(Duration::from_secs(60), opened).await.expect("the swap is never heard of");
    let reached = async {
        while let Some(step) = steps.message().await.unwrap() {
            if step.state() == state {
                return;
            }
        }
    };
    time::timeout(Duration::from_secs(60), reached).await.expect("the swap never came so far");
}

/// The gateway that leads, and the other.
async fn by_lead(cluster: &Cluster, [one, other]: [Gateway; 2]) -> (Gateway, Gateway) {
    for _ in 0..600 {
        let shown = one.ask("/metrics").await;
        let leads = |gateway: &Gateway| {
            shown.contains(&format!("beige_gateway_leader{{gateway=\"{}\"}} 1", Cluster::id(gateway)))
        };
        if leads(&one) {
            return (one, other);
        }
        if leads(&other) {
            return (other, one);
        }
        time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody leads {:?}", cluster.etcd)
}

#[tokio::test]
async fn another_one_carries_on_where_the_leader_is_gone() {
    let (cluster, worker, gateways) = start().await;
    let new = published(&gateways[0], "vanilla").await;
    worker.set(|mood| mood.loads = Loads::Later);
    let (leader, other) = by_lead(&cluster, gateways).await;
    promote(&leader, &new).await;
    until_state(&other, v1::SwapState::Preparing).await;
    leader.end().await.unwrap();
    worker.set(|mood| mood.loads = Loads::Willingly);
    until_state(&other, v1::SwapState::Committed).await;
    let answer = other.embeddings().await.embed(embed(texts(3, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &new, &texts(3, 3));
    other.end().await.unwrap();
}

#[tokio::test]
async fn an_open_stream_anywhere_keeps_its_checkpoint() {
    let (cluster, worker, gateways) = start().await;
    let new = published(&gateways[0], "vanilla").await;
    let (leader, other) = by_lead(&cluster, gateways).await;
    let (requests, sent) = mpsc::channel(1);
    let mut answers =
        other.embeddings().await.embed_stream(ReceiverStream::new(sent)).await.unwrap().into_inner();
    requests.send(embed(texts(1, 3))).await.unwrap();
    assert_vectors(&answers.message().await.unwrap().unwrap(), &digest('a'), &texts(1, 3));

    promote(&leader, &new).await;
    until_state(&leader, v1::SwapState::Committed).await;
    let retire = v1::RetireRequest { model: "mini".into(), digest: String::new() };
    leader.models().await.retire(retire).await.unwrap();
    time::sleep(Duration::from_secs(2)).await;
    requests.send(embed(texts(2, 3))).await.unwrap();
    assert_vectors(&answers.message().await.unwrap().unwrap(), &digest('a'), &texts(2, 3));
    worker.until_loaded(&[&digest('a'), &new]).await;
    drop(requests);
    assert!(answers.message().await.unwrap().is_none());
    until_state(&leader, v1::SwapState::Retired).await;
    worker.until_loaded(&[&new]).await;
    leader.end().await.unwrap();
    other.end().await.unwrap();
}
