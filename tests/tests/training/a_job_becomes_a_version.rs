//! From submission to what answers calls.

use proto::v1::models_client::ModelsClient;
use proto::v1::{GetModelRequest, JobState, ListVersionsRequest};
use serde_json::json;
use tests::{Plan, checkpoint};

use crate::support::{Scene, job};

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
    let versions =
        models.list_versions(ListVersionsRequest { model: "m".into() }).await.unwrap().into_inner();
    let is_new = |version: &&proto::v1::Version| {
        version.checkpoint.as_ref().is_some_and(|it| it.digest == done.digest)
    };
    let version = versions.versions.iter().find(is_new).unwrap();
    assert_eq!(version.job, "first");
    let names: Vec<&str> = version.evaluation.iter().map(|metric| metric.name.as_str()).collect();
    for name in ["ndcg_at_10", "gate_ndcg_at_10", "gate_served_ndcg_at_10", "gate_margin", "gate_passed"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
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
}
