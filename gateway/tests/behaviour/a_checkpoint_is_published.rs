//! A checkpoint is uploaded, tried out by a worker, and only then there for all to see; a publication that is cut short
//! leaves nothing that can be seen, and a next one goes on from it.

use std::time::Duration;

use proto::v1;
use tokio::time;
use tonic::{Code, Status};

use crate::support::cluster::{Cluster, PART_BYTES};
use crate::support::publisher::{Files, Publication, begin, checkpoint, publish, sha256};
use crate::support::{FakeWorker, Gateway, digest, field};

async fn start() -> (Cluster, [FakeWorker; 2], Gateway) {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    let cluster = Cluster::start(&[&workers[0], &workers[1]]).await;
    let gateway = cluster.gateway().await;
    (cluster, workers, gateway)
}

async fn versions(gateway: &Gateway) -> Vec<v1::Version> {
    let request = v1::ListVersionsRequest { model: "mini".into() };
    gateway.models().await.list_versions(request).await.unwrap().into_inner().versions
}

async fn until(condition: impl Fn() -> bool) {
    for _ in 0..1200 {
        if condition() {
            return;
        }
        time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never came to that");
}

#[tokio::test]
async fn it_is_stored_tried_and_recorded() {
    let (cluster, workers, gateway) = start().await;
    let files = checkpoint("vanilla");
    let wanted = v1::PublishBegin {
        parent: digest('a'),
        evaluation: vec![v1::Metric { name: "ndcg_at_10".into(), value: 0.5 }],
        job: "job-7".into(),
        ..begin(&files)
    };
    let told = publish(gateway.models().await, wanted, &files).await.unwrap();
    // The empty file needs no bytes.
    assert_eq!(told.wanted.len(), 3);
    assert!(told.wanted.iter().all(|file| file.offset == 0));
    assert_eq!(told.progress[0].stage(), v1::Stage::Loading);

    let published = told.published;
    let checkpoint = published.checkpoint.clone().unwrap();
    assert_eq!((published.model.as_str(), published.stored, published.pinned), ("mini", true, false));
    assert_eq!((published.golden_inputs, published.role()), (1, v1::VersionRole::Unspecified));
    assert_eq!((published.parent.as_str(), published.job.as_str()), (digest('a').as_str(), "job-7"));
    assert_eq!((checkpoint.dimensions, checkpoint.pooling.as_str()), (4, "mean"));
    assert_eq!(checkpoint.index_space, checkpoint.digest, "a space of its own");
    let paths: Vec<_> = published.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["1_Pooling/config.json", "config.json", "empty", "model.safetensors"]);

    assert_eq!(versions(&gateway).await, [published]);
    let manifest = cluster.store.manifest(&checkpoint.digest).await.unwrap();
    assert_eq!(manifest.bytes(), files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    assert_eq!(workers.iter().map(|worker| worker.trials().len()).sum::<usize>(), 1);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn to_publish_twice_is_to_publish_once() {
    let (_cluster, _workers, gateway) = start().await;
    let files = checkpoint("vanilla");
    let once = publish(gateway.models().await, begin(&files), &files).await.unwrap();
    let twice = publish(gateway.models().await, begin(&files), &files).await.unwrap();
    assert_eq!(twice.wanted, []);
    assert_eq!(twice.published, once.published);
    // Only what differs is sent.
    let other = checkpoint("chocolate");
    let told = publish(gateway.models().await, begin(&other), &other).await.unwrap();
    assert_eq!(told.wanted.len(), 1);
    let listed = versions(&gateway).await;
    assert_eq!(listed, [told.published, once.published], "the newest first");
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn an_upload_that_was_cut_short_goes_on() {
    let (cluster, workers, gateway) = start().await;
    let files = checkpoint("vanilla");
    let publication = Publication::begin(gateway.models().await, begin(&files)).await.unwrap();
    publication.send_wanted(&files, 2500).await;
    let parts = cluster.folder().join("parts").join(sha256(&files[1].1));
    until(|| parts.read_dir().is_ok_and(|parts| parts.count() > 0)).await;
    drop(publication);
    assert_eq!(versions(&gateway).await, []);
    assert!(workers.iter().all(|worker| worker.trials().is_empty()));

    let told = publish(gateway.models().await, begin(&files), &files).await.unwrap();
    let weights = told.wanted.iter().find(|file| file.sha256 == sha256(&files[1].1)).unwrap();
    assert!([PART_BYTES, 2 * PART_BYTES].contains(&weights.offset), "{weights:?}");
    assert_eq!(versions(&gateway).await.len(), 1);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn whoever_leaves_during_the_trial_leaves_nothing() {
    let (cluster, workers, gateway) = start().await;
    for worker in &workers {
        worker.set(|mood| mood.takes = Duration::from_secs(3600));
    }
    let files = checkpoint("vanilla");
    let mut publication = Publication::begin(gateway.models().await, begin(&files)).await.unwrap();
    publication.send_wanted(&files, usize::MAX).await;
    publication.answers.message().await.unwrap().unwrap();
    drop(publication);
    // The publication does not go on without a publisher.
    let marks = cluster.folder().join("publishing");
    until(|| marks.read_dir().unwrap().count() == 0).await;
    assert_eq!(versions(&gateway).await, []);
    assert!(cluster.store.manifests().await.unwrap().is_empty());
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn another_worker_tries_it_where_one_dies() {
    let (_cluster, mut workers, gateway) = start().await;
    for worker in &workers {
        worker.set(|mood| mood.takes = Duration::from_secs(3_600));
    }
    let files = checkpoint("vanilla");
    let mut publication = Publication::begin(gateway.models().await, begin(&files)).await.unwrap();
    publication.send_wanted(&files, usize::MAX).await;
    publication.answers.message().await.unwrap().unwrap();
    // The trial that has begun takes as long as it was to.
    for worker in &workers {
        worker.set(|mood| mood.takes = Duration::ZERO);
    }
    let trying = workers.iter_mut().find(|worker| !worker.trials().is_empty()).unwrap();
    trying.kill();
    publication.finish().await.unwrap();
    assert!(workers.iter().all(|worker| worker.trials().len() == 1));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn what_does_not_load_is_not_published() {
    let (cluster, workers, gateway) = start().await;
    let files = checkpoint("vanilla");
    let refusals = [
        (
            Status::invalid_argument("tensor embeddings.weight is missing"),
            Code::InvalidArgument,
            "embeddings.weight",
            1,
        ),
        (Status::failed_precondition("no room"), Code::FailedPrecondition, "no room", 2),
        (Status::resource_exhausted("another is tried"), Code::ResourceExhausted, "another", 2),
        (Status::internal("secret"), Code::Internal, "internal error, id", 1),
    ];
    for (status, code, says, asked) in refusals {
        let before: usize = workers.iter().map(|worker| worker.trials().len()).sum();
        for worker in &workers {
            worker.set(|mood| mood.refuses = Some(status.clone()));
        }
        let refused = publish(gateway.models().await, begin(&files), &files).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(says), "{}", refused.message());
        let after: usize = workers.iter().map(|worker| worker.trials().len()).sum();
        assert_eq!(after - before, asked, "{status}");
    }
    assert_eq!(versions(&gateway).await, []);
    assert!(cluster.store.manifests().await.unwrap().is_empty());
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn an_index_space_is_granted_to_vectors_that_prove_it() {
    let (_cluster, workers, gateway) = start().await;
    let first = checkpoint("vanilla");
    let space = publish(gateway.models().await, begin(&first), &first).await.unwrap();
    let space = space.published.checkpoint.unwrap().index_space;
    let claim =
        |files: &Files, space: &str| v1::PublishBegin { index_space: space.to_owned(), ..begin(files) };

    let kin = checkpoint("french vanilla");
    let told = publish(gateway.models().await, claim(&kin, &space), &kin).await.unwrap();
    assert_eq!(told.published.checkpoint.unwrap().index_space, space);
    assert_eq!(told.published.golden_inputs, 1, "the texts to be met are not its own");
    let asked: Vec<_> = workers.iter().flat_map(FakeWorker::trials).flat_map(|trial| trial.texts).collect();
    assert_eq!(asked, ["a text of the worker's own"]);

    for worker in &workers {
        worker.set(|mood| mood.accent = 5.0);
    }
    let stranger = checkpoint("chocolate");
    let status = publish(gateway.models().await, claim(&stranger, &space), &stranger).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("cosine"), "{}", status.message());

    let status = publish(gateway.models().await, claim(&stranger, "nobody's"), &stranger).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(versions(&gateway).await.len(), 2);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn bytes_that_are_not_those_announced_are_refused() {
    let (_cluster, _workers, gateway) = start().await;
    let files = checkpoint("vanilla");
    let (config, weights) = (sha256(&files[0].1), sha256(&files[1].1));
    let config_bytes = files[0].1.len();
    let cases: [(&str, usize, Vec<u8>, &str); 6] = [
        (&config, 0, vec![b'x'; config_bytes], "chunk.data"),
        (&config, 0, vec![b'x'; config_bytes + 1], "chunk.data"),
        (&config, 1, vec![b'x'], "chunk.offset"),
        (&digest('0'), 0, vec![b'x'], "chunk.sha256"),
        ("", 0, vec![b'x'], "chunk.sha256"),
        (&weights, 0, vec![b'x'; (1 << 20) + 1], "chunk.data"),
    ];
    for (sha256, offset, data, expected) in cases {
        let publication = Publication::begin(gateway.models().await, begin(&files)).await.unwrap();
        publication.send(sha256, offset, &data).await;
        let status = publication.finish().await.unwrap_err();
        assert_eq!(
            (status.code(), field(&status).as_deref()),
            (Code::InvalidArgument, Some(expected)),
            "{status}"
        );
    }
    let publication = Publication::begin(gateway.models().await, begin(&files)).await.unwrap();
    publication.send(&weights, 0, &files[1].1[..10]).await;
    publication.send(&config, 0, &files[0].1).await;
    let status = publication.finish().await.unwrap_err();
    assert_eq!(
        (status.code(), field(&status).as_deref()),
        (Code::InvalidArgument, Some("chunk.sha256")),
        "{status}"
    );
    assert_eq!(versions(&gateway).await, []);
    gateway.end().await.unwrap();
}

/// What is wrong with a beginning.
type Change<'a> = &'a dyn Fn(&mut v1::PublishBegin);

#[tokio::test]
async fn a_bad_beginning_is_named() {
    let (_cluster, _workers, gateway) = start().await;
    let files = checkpoint("vanilla");
    let changed = |change: Change| {
        let mut begin = begin(&files);
        change(&mut begin);
        begin
    };
    let cases: [(Change, &str); 14] = [
        (&|begin| begin.model = "a/b".into(), "begin.model"),
        (&|begin| begin.files.clear(), "begin.files"),
        (&|begin| begin.files[1].path = "../../etc/passwd".into(), "begin.files[1].path"),
        (&|begin| begin.files[1].path = "/etc/passwd".into(), "begin.files[1].path"),
        (&|begin| begin.files[1].path = begin.files[0].path.clone(), "begin.files[1].path"),
        (&|begin| begin.files[2].sha256 = "ABC".into(), "begin.files[2].sha256"),
        (&|begin| begin.files[2].size = u64::MAX, "begin.files[2].size"),
        (&|begin| begin.pooling = "max".into(), "begin.pooling"),
        (&|begin| begin.max_tokens = Some(0), "begin.max_tokens"),
        (&|begin| begin.parent = "d".into(), "begin.parent"),
        (&|begin| begin.index_space = "\n".into(), "begin.index_space"),
        (
            &|begin| begin.evaluation = vec![v1::Metric { name: "m".into(), value: f64::NAN }],
            "begin.evaluation[0].value",
        ),
        (&|begin| begin.job_owner_revision = 7, "begin.job"),
        (
            &|begin| begin.promote = Some(v1::SwapPlan { min_ready: Some(0), ..v1::SwapPlan::default() }),
            "begin.promote.min_ready",
        ),
    ];
    for (change, expected) in cases {
        let publication = Publication::begin(gateway.models().await, changed(change)).await;
        let status = publication.err().expect(expected);
        assert_eq!(
            (status.code(), field(&status).as_deref()),
            (Code::InvalidArgument, Some(expected)),
            "{status}"
        );
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn without_a_store_it_is_said_what_to_set() {
    let (cluster, _workers, gateway) = start().await;
    gateway.end().await.unwrap();
    let gateway = cluster.gateway_with(None).await;
    let files = checkpoint("vanilla");
    let status = publish(gateway.models().await, begin(&files), &files).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("--store"), "{}", status.message());
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_job_that_has_another_owner_publishes_nothing() {
    let (_cluster, _workers, gateway) = start().await;
    let files = checkpoint("vanilla");
    let fenced = v1::PublishBegin { job: "job-7".into(), job_owner_revision: 12_345, ..begin(&files) };
    let status = publish(gateway.models().await, fenced, &files).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("job-7"), "{}", status.message());
    assert_eq!(versions(&gateway).await, []);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn without_etcd_nothing_is_uploaded() {
    let (mut cluster, workers, gateway) = start().await;
    cluster.server.kill();
    let files = checkpoint("vanilla");
    let status = publish(gateway.models().await, begin(&files), &files).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(workers.iter().all(|worker| worker.trials().is_empty()));
    gateway.end().await.unwrap();
}
