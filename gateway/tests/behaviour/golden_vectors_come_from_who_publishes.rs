//! Who publishes a checkpoint may say what it makes of some inputs: a worker has to agree before anything can be seen, and
//! the record then keeps what was said.

use cluster::{Golden, GoldenSource};
use proto::v1;
use tonic::Code;

use crate::support::cluster::Cluster;
use crate::support::publisher::{Files, begin, checkpoint, first, publish};
use crate::support::{FakeWorker, Gateway, digest, field};

async fn start() -> (Cluster, FakeWorker, Gateway) {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let cluster = Cluster::start(&[&worker]).await;
    let gateway = cluster.gateway().await;
    (cluster, worker, gateway)
}

/// A text, and what fake workers make of it.
fn sample(text: &str) -> v1::GoldenSample {
    let length = f32::from(u16::try_from(text.len()).unwrap());
    let embedding = [1.0, length, 1.0 / length, 0.0].into_iter().flat_map(f32::to_le_bytes).collect();
    v1::GoldenSample { text: text.to_owned(), embedding, ..v1::GoldenSample::default() }
}

fn with(files: &Files, golden: Vec<v1::GoldenSample>) -> v1::PublishBegin {
    v1::PublishBegin { golden, ..begin(files) }
}

async fn versions(gateway: &Gateway) -> Vec<v1::Version> {
    let request = v1::ListVersionsRequest { model: "mini".into() };
    gateway.models().await.list_versions(request).await.unwrap().into_inner().versions
}

#[tokio::test]
async fn what_a_worker_agrees_with_is_recorded_as_the_publishers() {
    let (cluster, worker, gateway) = start().await;
    let files = checkpoint("vanilla");
    let golden = vec![sample("a text"), sample("another text"), sample("a third")];
    let published = publish(gateway.models().await, with(&files, golden), &files).await.unwrap().published;
    assert_eq!((published.golden_inputs, published.golden_from()), (3, v1::GoldenSource::Publisher));
    assert_eq!(worker.trials()[0].texts, ["a text", "another text", "a third"]);
    let digest = published.checkpoint.unwrap().digest;
    let recorded = cluster.etcd.version("mini", &digest).await.unwrap().unwrap().golden.unwrap();
    let vectors = [1.0, 6.0, 1.0 / 6.0, 0.0, 1.0, 12.0, 1.0 / 12.0, 0.0, 1.0, 7.0, 1.0 / 7.0, 0.0];
    let texts = ["a text", "another text", "a third"].map(str::to_owned).to_vec();
    assert_eq!(recorded, Golden::new(texts, &vectors, GoldenSource::Publisher));

    // Published again it has to be met again; the record stays what it is.
    let again = publish(gateway.models().await, with(&files, vec![sample("other")]), &files).await.unwrap();
    assert_eq!(
        (again.published.golden_inputs, again.published.golden_from()),
        (3, v1::GoldenSource::Publisher)
    );
    let wrong = v1::GoldenSample { text: "a longer one".into(), ..sample("b") };
    let refused = publish(gateway.models().await, with(&files, vec![wrong]), &files).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);

    let plain = checkpoint("chocolate");
    let told = publish(gateway.models().await, begin(&plain), &plain).await.unwrap().published;
    assert_eq!((told.golden_inputs, told.golden_from()), (1, v1::GoldenSource::Trial));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn where_a_worker_does_not_agree_nothing_is_published() {
    let (cluster, worker, gateway) = start().await;
    worker.set(|mood| mood.accent = 5.0);
    let files = checkpoint("vanilla");
    // Its accent is lost beside so long a text.
    let golden = vec![sample(&"long ".repeat(100)), sample("a text")];
    let refused = publish(gateway.models().await, with(&files, golden), &files).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    for part in ["begin.golden[1], \"a text\"", "worker w1", "cosine of 0.7"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
    assert_eq!(versions(&gateway).await, []);
    assert!(cluster.store.manifests().await.unwrap().is_empty());
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn samples_of_another_checkpoint_name_the_field() {
    let (_cluster, worker, gateway) = start().await;
    let files = checkpoint("vanilla");
    let short = v1::GoldenSample { embedding: vec![0, 0, 0, 63], ..sample("a text") };
    let pair = v1::GoldenSample {
        text: "a document".into(),
        query: Some("a query".into()),
        score: Some(0.5),
        ..v1::GoldenSample::default()
    };
    let empty = v1::GoldenSample { text: String::new(), ..sample("a text") };
    for (sample, expected, trials) in [
        (short, "begin.golden[0].embedding", 1),
        (pair, "begin.golden[0].score", 1),
        // Seen before anything is uploaded.
        (empty, "begin.golden[0].text", 0),
    ] {
        let before = worker.trials().len();
        let refused = publish(gateway.models().await, with(&files, vec![sample]), &files).await.unwrap_err();
        let told = (refused.code(), field(&refused));
        assert_eq!(told, (Code::InvalidArgument, Some(expected.to_owned())), "{refused}");
        assert_eq!(worker.trials().len() - before, trials, "{expected}");
    }
    assert_eq!(versions(&gateway).await, []);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn samples_that_another_version_shows_to_be_wrong_are_refused_before_anything_is_sent() {
    let (_cluster, worker, gateway) = start().await;
    let files = checkpoint("vanilla");
    let known = publish(gateway.models().await, begin(&files), &files).await.unwrap().published;
    let known = known.checkpoint.unwrap();
    let short = || vec![v1::GoldenSample { embedding: vec![0, 0, 0, 63], ..sample("a text") }];
    let claim = v1::PublishBegin {
        index_space: known.index_space.clone(),
        ..with(&checkpoint("chocolate"), short())
    };
    for begin in [with(&files, short()), claim] {
        let requests = tokio_stream::iter([first(begin)]);
        let mut answers = gateway.models().await.publish(requests).await.unwrap().into_inner();
        // Not even what is wanted was said.
        let refused = answers.message().await.unwrap_err();
        let told = (refused.code(), field(&refused));
        assert_eq!(told, (Code::InvalidArgument, Some("begin.golden[0].embedding".to_owned())), "{refused}");
        let why = format!("a vector of 1, and checkpoint {} makes a vector of 4", known.digest);
        assert!(refused.message().contains(&why), "{}", refused.message());
    }
    assert_eq!(worker.trials().len(), 1);
    gateway.end().await.unwrap();
}
