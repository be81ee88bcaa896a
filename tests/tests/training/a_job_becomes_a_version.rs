//! From submission to what answers calls.

use std::fs;

use proto::v1::models_client::ModelsClient;
use proto::v1::{GetModelRequest, GoldenSource, JobGate, JobState, ListVersionsRequest, Version};
use serde_json::{Value, json};
use tests::{Plan, checkpoint};
use tonic::transport::Channel;

use crate::support::{Scene, is_final, job};

fn plan() -> Plan {
    let model = format!("m={}", checkpoint("xlmr-cls"));
    Plan { workers: 1, models: vec![model], store: true, ..Plan::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trained_model_is_compared_published_and_swapped_in() {
    let scene = Scene::set(plan(), None).await;
    let publish = json!({
        "alias": "m", "promote": true, "new_space": true,
        // Whatever eight steps do, it is let through.
        "gate": { "metric": "ndcg_at_10", "margin": -1.0 },
    });
    // Nothing is cut off: what is served reads as much.
    let more = json!({
        "query_max_len": 96, "passage_max_len": 96, "evaluation": { "split": 0.2 }, "eval_steps": 4,
        "sentence_pooling_method": "cls", "publish": publish,
    });
    let spec = job(&more);
    scene.submit("first", &spec).await.unwrap();
    // To submit twice is to submit once.
    scene.submit("first", &spec).await.unwrap();
    let done = scene.ended("first").await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:?}");
    assert_eq!(done.evaluations.iter().map(|it| it.step).collect::<Vec<_>>(), [0, 4, 8]);
    assert_eq!(done.curve.iter().map(|it| it.step).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
    let gate = done.gate.clone().unwrap();
    assert!(gate.passed && gate.served.is_some(), "{gate:?}");
    // What is served is the model that training began with, measured over the wire.
    let before = done.evaluations[0].metrics.iter().find(|it| it.name == "ndcg_at_10").unwrap().value;
    assert!((gate.served.unwrap() - before).abs() < 0.02, "{gate:?}, {before}");

    let mut models = ModelsClient::new(scene.cluster.channel());
    let served = models.get(GetModelRequest { name: "m".into() }).await.unwrap().into_inner();
    assert_eq!(served.checkpoint.unwrap().digest, done.digest);
    assert_eq!(served.epoch, 2);
    let version = &version(&mut models, "m", &done.digest).await;
    assert_eq!(version.job, "first");
    assert!(version.evaluation.iter().any(|metric| metric.name == "ndcg_at_10"), "{version:?}");
    check_recorded(version, &gate);
    check_golden(version);
}

/// Workers are held to what the trainer made of the golden inputs.
#[track_caller]
fn check_golden(version: &Version) {
    assert_eq!((version.golden_inputs, version.golden_from()), (8, GoldenSource::Publisher), "{version:?}");
}

/// The decision, with its numbers, is in the version's record.
#[track_caller]
fn check_recorded(version: &Version, gate: &JobGate) {
    for (name, expected) in [
        ("gate_ndcg_at_10", gate.trained),
        ("gate_served_ndcg_at_10", gate.served.unwrap()),
        ("gate_margin", gate.margin),
        ("gate_passed", f64::from(u8::from(gate.passed))),
    ] {
        let found = version.evaluation.iter().find(|metric| metric.name == name).map(|metric| metric.value);
        assert_eq!(found, Some(expected), "{name}: {version:?}");
    }
}

async fn version(models: &mut ModelsClient<Channel>, model: &str, digest: &str) -> Version {
    let asked = ListVersionsRequest { model: model.to_owned() };
    let versions = models.list_versions(asked).await.unwrap().into_inner().versions;
    let is_it = |version: &Version| version.checkpoint.as_ref().is_some_and(|it| it.digest == digest);
    versions.into_iter().find(is_it).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_better_is_published_and_not_promoted() {
    let scene = Scene::set(plan(), None).await;
    let publish = json!({
        "alias": "m", "promote": true, "new_space": true, "gate": { "metric": "ndcg_at_10", "margin": 1.0 },
    });
    scene.submit("held", &job(&json!({ "evaluation": { "split": 0.2 }, "publish": publish }))).await.unwrap();
    let done = scene.ended("held").await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:?}");
    assert!(
        !done.gate.clone().unwrap().passed && !done.digest.is_empty() && done.swap_id.is_empty(),
        "{done:?}"
    );
    let mut models = ModelsClient::new(scene.cluster.channel());
    let served = models.get(GetModelRequest { name: "m".into() }).await.unwrap().into_inner();
    assert_eq!(served.epoch, 1);
    assert_ne!(served.checkpoint.unwrap().digest, done.digest);
    check_recorded(&version(&mut models, "m", &done.digest).await, &done.gate.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trained_reranker_is_compared_over_the_wire_and_swapped_in() {
    let model = format!("r={}", checkpoint("xlmr-cross"));
    let scene = Scene::set(Plan { models: vec![model], ..plan() }, None).await;
    // Whatever eight steps do, it is let through; an index space is nothing to it.
    let publish = json!({
        "alias": "r", "promote": true, "gate": { "metric": "map_at_100", "margin": -1.0 },
    });
    // Without characters that the vocabulary lacks: in training pairs are spelled out again, which puts other tokens in
    // their place.
    let lines = fs::read_to_string(scene.data().join("train.jsonl")).unwrap();
    let words = |text: &Value| text.as_str().unwrap().replace(|c: char| "0123456789J".contains(c), "");
    let texts = |texts: &Value| texts.as_array().unwrap().iter().map(words).collect::<Vec<_>>();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        json!({ "query": row["query"], "pos": texts(&row["pos"]), "neg": texts(&row["neg"]) }).to_string()
    };
    let rows: Vec<String> = lines.lines().map(row).collect();
    fs::write(scene.data().join("words.jsonl"), rows.join("\n")).unwrap();
    let spec = job(&json!({
        "kind": "reranker", "model": checkpoint("xlmr-cross"), "train_data": ["words.jsonl"],
        "negatives_cross_device": false,
        // Cut where the served window, of 96 tokens, cuts them.
        "query_max_len": 8, "passage_max_len": 88,
        "evaluation": { "split": 0.3 }, "publish": publish,
    }));
    scene.submit("pairs", &spec).await.unwrap();
    let done = scene.ended("pairs").await;
    assert_eq!(done.state(), JobState::Succeeded, "{done:?}");
    let gate = done.gate.clone().unwrap();
    let of =
        |at: usize| done.evaluations[at].metrics.iter().find(|it| it.name == "map_at_100").unwrap().value;
    // What is served is the model that training began with, what was trained the one that it ended with.
    assert!(gate.passed && (gate.served.unwrap() - of(0)).abs() < 1e-9, "{gate:?}, {}", of(0));
    assert!((gate.trained - of(1)).abs() < 1e-9, "{gate:?}, {}", of(1));
    assert!(of(0) < 1.0 && (of(1) - of(0)).abs() > 1e-9, "nothing to compare: {} {}", of(0), of(1));

    let mut models = ModelsClient::new(scene.cluster.channel());
    let served = models.get(GetModelRequest { name: "r".into() }).await.unwrap().into_inner();
    assert_eq!((served.checkpoint.unwrap().digest, served.epoch), (done.digest.clone(), 2));
    check_golden(&version(&mut models, "r", &done.digest).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_trained_is_published_without_its_data() {
    // There is no worker yet that could try the model.
    let mut scene = Scene::set(Plan { workers: 0, ..plan() }, None).await;
    scene.submit("trained", &job(&json!({ "max_steps": 2, "publish": { "alias": "m" } }))).await.unwrap();
    let found = scene.until("trained", |job| job.state() != JobState::Queued && job.model_step > 0).await;
    assert!(!is_final(found.state()), "{found:?}");
    scene.until("trained", |job| job.state() != JobState::Running).await;
    fs::remove_file(scene.data().join("train.jsonl")).unwrap();
    scene.restart().await;
    scene.cluster.add_worker(&[]).await;
    let done = scene.ended("trained").await;
    assert_eq!((done.state(), done.attempt), (JobState::Succeeded, 1), "{done:?}");
    assert!(!done.digest.is_empty(), "{done:?}");
}
