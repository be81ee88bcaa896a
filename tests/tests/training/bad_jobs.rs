//! What cannot be done is refused before anything starts, all of it at once, by field.

use std::fs;

use proto::v1::ListJobsRequest;
use serde_json::{Value, json};
use tests::{Plan, checkpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{Scene, job};

pub(crate) fn fields(status: &Status) -> Vec<String> {
    let violations = status.get_details_bad_request().into_iter().flat_map(|it| it.field_violations);
    violations.map(|violation| violation.field).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_jobs_are_refused_by_field() {
    let scene = Scene::set(Plan::default(), None).await;
    let line = r#"{"query": "q", "pos": ["p"], "neg": ["n"]}"#;
    fs::write(scene.data().join("torn.jsonl"), format!("{line}\n{line}\n{{\"query\": \n")).unwrap();
    fs::write(scene.data().join("alone.jsonl"), format!("{line}\n{{\"query\": \"q\", \"pos\": []}}\n"))
        .unwrap();
    fs::write(scene.data().join("bare.jsonl"), r#"{"query": "q", "pos": ["p"]}"#).unwrap();
    fs::write(scene.data().join("plain.jsonl"), line).unwrap();
    fs::write(scene.data().join("empty.jsonl"), "\n").unwrap();
    let cases: [(Value, &[&str], &str); 16] = [
        (
            json!({ "train_data": ["nothing.jsonl"] }),
            &["train_data[0]"],
            "nothing.jsonl is not below a data root",
        ),
        (json!({ "train_data": ["torn.jsonl"] }), &["train_data[0]"], "line 3"),
        (json!({ "train_data": ["alone.jsonl"] }), &["train_data[0]"], "line 2: pos is empty"),
        (json!({ "train_data": ["bare.jsonl"] }), &["train_data[0]"], "line 1: neg is empty"),
        (json!({ "train_data": ["empty.jsonl"] }), &["train_data[0]"], "is empty"),
        (json!({ "train_group_size": -3 }), &["train_group_size"], "-3"),
        (json!({ "model": "no-such-model" }), &["model"], "not below a data root"),
        (json!({ "train_data": ["../../secret.jsonl"] }), &["train_data[0]"], "not below a data root"),
        (json!({ "train_data": ["/etc/passwd"] }), &["train_data[0]"], "not below a data root"),
        (
            json!({ "train_data": ["http://169.254.169.254/latest"] }),
            &["train_data[0]"],
            "of the scheme http",
        ),
        (json!({ "train_data": ["s3://bucket/train.jsonl"] }), &["train_data[0]"], "of the scheme s3"),
        (json!({ "ranks": 3 }), &["ranks"], "no trainer of the cluster has more than 2"),
        (json!({ "rangs": 2 }), &["rangs"], "no such field"),
        (
            json!({ "knowledge_distillation": true, "train_data": ["plain.jsonl"] }),
            &["train_data[0]"],
            "pos_scores",
        ),
        (json!({ "guide_model": "../elsewhere" }), &["guide_model"], "not below a data root"),
        (
            json!({ "temperature": 0, "learning_rate": "fast", "train_data": ["../x"], "kind": "poet" }),
            &["kind", "learning_rate"],
            "unknown variant",
        ),
    ];
    for (more, named, part) in cases {
        let refused = scene.submit("bad", &job(&more)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{more}: {refused}");
        let found = fields(&refused);
        assert!(named.iter().all(|field| found.iter().any(|it| it == field)), "{more}: {found:?}, {refused}");
        assert!(refused.message().contains(part), "{more}: {}", refused.message());
    }
    for name in ["", "a/b", "..", &"x".repeat(201)] {
        let refused = scene.submit(name, &job(&json!({}))).await.unwrap_err();
        assert_eq!(
            (refused.code(), fields(&refused)),
            (Code::InvalidArgument, vec!["name".to_owned()]),
            "{name}"
        );
    }
    let jobs = scene.client().list(ListJobsRequest {}).await.unwrap().into_inner().jobs;
    assert!(jobs.is_empty(), "{jobs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_used_once() {
    let scene = Scene::set(Plan::default(), None).await;
    scene.submit("twice", &job(&json!({}))).await.unwrap();
    let other = job(&json!({ "model": checkpoint("bert-cls") }));
    let refused = scene.submit("twice", &other).await.unwrap_err();
    assert_eq!((refused.code(), fields(&refused)), (Code::AlreadyExists, vec!["name".to_owned()]));
}
