//! A key may use so many tokens a second and so many at a time, at all gateways together; others are not touched.

use std::time::Duration;

use cluster::GatewayId;
use gateway::fleet::Fleet;
use proto::v1::{EmbedResponse, Priority};
use tokio::time;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt as _;

use crate::support::gateway::{serving, view};
use crate::support::keys::{Key, KeyFile};
use crate::support::{FakeWorker, Gateway, digest, embed, texts};

/// About a hundred tokens, by estimate and by what the fakes say.
fn hundred() -> Vec<String> {
    texts(10, 12)
}

async fn guarded(worker: &FakeWorker, keys: &KeyFile) -> Gateway {
    let gateway = Gateway::guarded(view(&[worker], 'a', 1), serving(), keys.guard()).await;
    gateway.until(Fleet::serves).await;
    gateway
}

async fn ask(gateway: &Gateway, key: &Key, inputs: Vec<String>) -> Result<Response<EmbedResponse>, Status> {
    gateway.embeddings().await.embed(key.sign(embed(inputs))).await
}

#[track_caller]
fn over(status: &Status, key: &str) {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let violations = status.get_details_quota_failure().unwrap().violations;
    assert_eq!(violations[0].subject, format!("key:{key}"));
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
}

/// How many calls of a hundred tokens are answered before one is refused.
async fn until_over(gateway: &Gateway, key: &Key) -> usize {
    for answered in 0..100 {
        if let Err(status) = ask(gateway, key, hundred()).await {
            over(&status, "small");
            return answered;
        }
    }
    panic!("it was never refused");
}

#[tokio::test]
async fn a_key_that_used_up_its_tokens_is_told_when_to_come_back_and_others_are_answered() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let small = Key::new("small", "rights = [\"embed\"]\ntokens_per_second = 100");
    let large = Key::new("large", "rights = [\"embed\"]\ntokens_per_second = 1000000");
    let file = KeyFile::of(&[&small, &large]);
    let gateway = guarded(&worker, &file).await;
    let answered = until_over(&gateway, &small).await;
    assert!((5..30).contains(&answered), "{answered}");
    ask(&gateway, &large, hundred()).await.unwrap();
    let counted = r#"beige_gateway_refused_total{reason="tokens_per_second"}"#;
    gateway.until_metric(counted, 1.0).await;

    let comes_back = async {
        while let Err(status) = ask(&gateway, &small, hundred()).await {
            let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
            time::sleep(wait).await;
        }
    };
    time::timeout(Duration::from_secs(60), comes_back).await.expect("what it is told is true");
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn gateways_share_what_a_key_may_use() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let small = Key::new("small", "rights = [\"embed\"]\ntokens_per_second = 100");
    let file = KeyFile::of(&[&small]);
    let alone = guarded(&worker, &file).await;
    let all = until_over(&alone, &small).await;
    let mut seen = view(&[&worker], 'a', 1);
    for id in ["g1", "g2", "g3", "g4"] {
        seen.gateways.insert(GatewayId::parse(id).unwrap(), cluster::Gateway::default());
    }
    let gateway = Gateway::guarded(seen, serving(), file.guard()).await;
    gateway.until(|fleet| fleet.serves() && fleet.gateways() == 4).await;
    let part = until_over(&gateway, &small).await;
    assert!(part < all && part > 0, "{part} of {all}");
    alone.end().await.unwrap();
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn so_many_tokens_are_under_way_at_a_time_and_streams_wait_for_room() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let small = Key::new("small", "rights = [\"embed\"]\nconcurrent_tokens = 150");
    let gateway = guarded(&worker, &KeyFile::of(&[&small])).await;
    worker.set(|mood| mood.takes = Duration::from_secs(3_600));
    let first = ask(&gateway, &small, hundred());
    let others = async {
        while worker.running() == 0 {
            time::sleep(Duration::from_millis(10)).await;
        }
        over(&ask(&gateway, &small, hundred()).await.unwrap_err(), "small");
        let requests = futures::stream::iter([embed(hundred())]);
        let mut client = gateway.embeddings().await;
        let mut answers = client.embed_stream(small.sign(requests)).await.unwrap().into_inner();
        // Time to be refused, if it were a call.
        time::sleep(Duration::from_millis(300)).await;
        worker.set(|mood| mood.takes = Duration::ZERO);
        answers.message().await.unwrap().expect("a stream waits where a call is refused");
    };
    let (first, ()) = tokio::join!(first, others);
    first.unwrap();
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn what_failed_by_our_fault_costs_nothing() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let small = Key::new("small", "rights = [\"embed\"]\ntokens_per_second = 100");
    let gateway = guarded(&worker, &KeyFile::of(&[&small])).await;
    worker.set(|mood| mood.refuses = Some(Status::internal("a defect")));
    for _ in 0..50 {
        assert_eq!(ask(&gateway, &small, hundred()).await.unwrap_err().code(), Code::Internal);
    }
    worker.set(|mood| mood.refuses = None);
    ask(&gateway, &small, hundred()).await.unwrap();
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn jobs_and_calls_reach_the_worker_as_what_they_are() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    for priority in [Priority::Interactive, Priority::Bulk] {
        let request = proto::v1::EmbedRequest { priority: priority.into(), ..embed(texts(1, 3)) };
        gateway.embeddings().await.embed(request).await.unwrap();
        assert_eq!(worker.take_seen()[0].priority, priority, "the worker queues it by its class");
    }
    gateway.end().await.unwrap();
}
