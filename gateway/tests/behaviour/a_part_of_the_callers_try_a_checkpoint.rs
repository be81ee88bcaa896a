//! While a checkpoint is on trial a part of the callers are answered by it: always the same ones, and no caller by
//! two.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Canary, View};
use proto::v1;
use tokio::time;
use tokio_stream::StreamExt as _;
use tonic::{Code, Request};

use crate::support::gateway::{serving, view};
use crate::support::keys::{Key, KeyFile};
use crate::support::raw::Raw;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, field, texts};

fn worker() -> FakeWorker {
    FakeWorker::start("w1", &[("mini", &digest('a')), ("mini", &digest('b'))])
}

/// `mini` means `a`, and so many of a thousand callers try `b`.
fn on_trial(workers: &[&FakeWorker], per_mille: u32) -> View {
    let mut view = view(workers, 'a', 2);
    let alias = view.aliases.get_mut("mini").unwrap();
    alias.swap_id = Some("swap".into());
    alias.canary = Some(Canary { digest: digest('b'), per_mille, salt: "salt".into() });
    view
}

async fn begin(worker: &FakeWorker, per_mille: u32) -> Gateway {
    let gateway = Gateway::start(&[worker]).await;
    gateway.views.send_replace(Arc::new(on_trial(&[worker], per_mille)));
    gateway.until(|fleet| fleet.aliases().is_some_and(|aliases| aliases["mini"].epoch == 2)).await;
    gateway
}

fn by<T>(caller: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("beige-caller", caller.parse().unwrap());
    request
}

#[tokio::test]
async fn each_caller_is_answered_by_one_of_them() {
    let worker = worker();
    let gateway = begin(&worker, 300).await;
    let mut embeddings = gateway.embeddings().await;
    let mut tried = 0_u64;
    for caller in (0..40).map(|i| format!("caller {i}")) {
        let mut found = BTreeSet::new();
        for _ in 0..3 {
            let answer = embeddings.embed(by(&caller, embed(texts(2, 3)))).await.unwrap().into_inner();
            found.insert(answer.provenance.unwrap().digest);
        }
        let requests = by(&caller, tokio_stream::iter([embed(texts(2, 3)), embed(texts(1, 3))]));
        let mut answers = embeddings.embed_stream(requests).await.unwrap().into_inner();
        while let Some(answer) = answers.next().await {
            found.insert(answer.unwrap().provenance.unwrap().digest);
        }
        assert_eq!(found.len(), 1, "{caller} was answered by {found:?}");
        tried += u64::from(found.contains(&digest('b')));
    }
    assert!((3..=25).contains(&tried), "{tried} of 40 callers");

    // Of one and of the other, all that were made.
    let seen = |record: &cluster::Gateway| {
        let calls = |trial: &cluster::TrialSample| (trial.sample.old.calls, trial.sample.new.calls);
        record.trials.get("mini").map(calls) == Some((5 * (40 - tried), 5 * tried))
    };
    let trial = gateway.until_says(seen).await.trials.remove("mini").unwrap();
    assert_eq!(trial.swap_id, "swap");
    assert_eq!((trial.sample.old.errors, trial.sample.new.errors), (0, 0));
    assert!(trial.sample.new.latency.quantile(0.99).is_some());
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_key_is_one_caller_whatever_it_says_of_itself() {
    let worker = worker();
    let names = ["search", "web", "app", "batch", "lab", "jobs", "ops", "ci"];
    let keys = names.map(|name| Key::new(name, r#"rights = ["embed"]"#));
    let guard = KeyFile::of(&keys.each_ref()).guard();
    let gateway = Gateway::guarded(on_trial(&[&worker], 500), serving(), guard).await;
    gateway.until(|fleet| fleet.ready(&digest('b').as_str().into()).len() == 1).await;
    let mut embeddings = gateway.embeddings().await;
    let mut all = BTreeSet::new();
    for (key, name) in keys.iter().zip(names) {
        let mut found = BTreeSet::new();
        for caller in (0..10).map(|i| format!("caller {i}")) {
            let mut request = key.sign(embed(texts(1, 3)));
            request.metadata_mut().insert("beige-caller", caller.parse().unwrap());
            let answer = embeddings.embed(request).await.unwrap().into_inner();
            found.insert(answer.provenance.unwrap().digest);
        }
        assert_eq!(found.len(), 1, "{name} was answered by {found:?}");
        all.extend(found);
    }
    assert_eq!(all, [digest('a'), digest('b')].into(), "some keys try it, others do not");
    gateway.end().await.unwrap();
}

/// A gateway with a worker that has `a`, and perhaps one that has `b`; all callers try `b`.
async fn begin_apart(old: &FakeWorker, new: Option<&FakeWorker>) -> Gateway {
    let workers: Vec<_> = std::iter::once(old).chain(new).collect();
    let gateway = Gateway::begin(on_trial(&workers, 1000), serving()).await;
    let ready = |fleet: &gateway::fleet::Fleet, digit| fleet.ready(&digest(digit).as_str().into()).len();
    gateway.until(|fleet| (ready(fleet, 'a'), ready(fleet, 'b')) == (1, usize::from(new.is_some()))).await;
    gateway
}

#[tokio::test]
async fn who_tries_one_whose_worker_is_lost_is_never_answered_by_the_old_one_meanwhile() {
    let old = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let mut new = FakeWorker::start("w2", &[("mini", &digest('b'))]);
    let gateway = begin_apart(&old, Some(&new)).await;
    let mut embeddings = gateway.embeddings().await;
    let answer = embeddings.embed(embed(texts(2, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('b'), &texts(2, 3));

    new.kill();
    gateway.until(|fleet| fleet.ready(&digest('b').as_str().into()).is_empty()).await;
    let mut hurried = Request::new(embed(texts(2, 3)));
    hurried.set_timeout(Duration::from_millis(300));
    embeddings.embed(hurried).await.expect_err("nobody has what it tries");
    // It comes back, later than a plain call would have waited for it.
    let mut waiting = embeddings.clone();
    let (answer, ()) = tokio::join!(waiting.embed(embed(texts(2, 3))), async {
        time::sleep(Duration::from_millis(2_500)).await;
        new.revive();
    });
    assert_vectors(answer.unwrap().get_ref(), &digest('b'), &texts(2, 3));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn who_tries_one_that_nobody_has_is_answered_by_the_old_one_when_the_trial_ends() {
    let old = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = begin_apart(&old, None).await;
    let mut embeddings = gateway.embeddings().await;
    let (answer, ()) = tokio::join!(embeddings.embed(embed(texts(2, 3))), async {
        time::sleep(Duration::from_millis(1_500)).await;
        gateway.views.send_replace(Arc::new(view(&[&old], 'a', 3)));
    });
    let answer = answer.unwrap().into_inner();
    assert_vectors(&answer, &digest('a'), &texts(2, 3));
    assert_eq!(answer.provenance.unwrap().epoch, 3);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn who_insists_on_the_old_one_is_answered_by_it() {
    let worker = worker();
    let gateway = begin(&worker, 1000).await;
    let mut embeddings = gateway.embeddings().await;
    let answer = embeddings.embed(embed(texts(2, 3))).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('b'), &texts(2, 3));
    let what = Some(v1::require::What::Digest(digest('a')));
    let require = Some(v1::Require { what, min_epoch: 2 });
    let required = v1::EmbedRequest { require, ..embed(texts(2, 3)) };
    let named = v1::EmbedRequest { model: format!("mini@{}", digest('a')), ..embed(texts(2, 3)) };
    for request in [required, named] {
        let answer = embeddings.embed(request).await.unwrap().into_inner();
        assert_vectors(&answer, &digest('a'), &texts(2, 3));
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_that_fails_its_callers_is_seen_to() {
    let worker = worker();
    let gateway = begin(&worker, 1000).await;
    let mut embeddings = gateway.embeddings().await;
    worker.set(|mood| mood.refuses = Some(tonic::Status::internal("oh")));
    assert_eq!(embeddings.embed(embed(texts(2, 3))).await.unwrap_err().code(), Code::Internal);
    // A caller's own mistake says nothing of the checkpoint.
    worker.set(|mood| mood.refuses = Some(tonic::Status::invalid_argument("inputs[0]")));
    assert_eq!(embeddings.embed(embed(texts(2, 3))).await.unwrap_err().code(), Code::InvalidArgument);
    worker.set(|mood| {
        mood.refuses = None;
        mood.takes = Duration::from_secs(3_600);
    });
    // Of a caller that gives up at the deadline as well nobody could say which came first.
    let late = Raw::connect(gateway.address).await.embed(&[("grpc-timeout", "300m")], texts(2, 3)).await;
    assert_eq!(late.unwrap().code(), Code::DeadlineExceeded);
    let seen = |record: &cluster::Gateway| {
        record.trials.get("mini").is_some_and(|trial| trial.sample.new.errors == 2)
    };
    let trial = gateway.until_says(seen).await.trials.remove("mini").unwrap();
    assert_eq!(trial.sample.new.calls, 2);

    // The trial is over.
    gateway.views.send_replace(Arc::new(view(&[&worker], 'a', 3)));
    gateway.until_says(|record| record.trials.is_empty() && record.epochs["mini"] == 3).await;
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_name_for_a_caller_that_is_none_is_refused() {
    let worker = worker();
    let gateway = begin(&worker, 1000).await;
    let mut embeddings = gateway.embeddings().await;
    for name in [String::new(), "x".repeat(257)] {
        let status = embeddings.embed(by(&name, embed(texts(2, 3)))).await.unwrap_err();
        assert_eq!((status.code(), field(&status).as_deref()), (Code::InvalidArgument, Some("beige-caller")));
    }
    gateway.end().await.unwrap();
}
