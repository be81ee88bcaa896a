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

/// Settings, the fields that are told of, and a part of what is said.
type Case = (Value, &'static [&'static str], &'static str);

fn of_fields_and_files() -> Vec<Case> {
    vec![
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
        // Numbers that would take the trainer with them.
        (
            json!({ "per_device_train_batch_size": 1_000_000_000_000_u64 }),
            &["per_device_train_batch_size"],
            "at most 1048576",
        ),
        (json!({ "use_lora": true, "lora_rank": 1_000_000_000 }), &["lora_rank"], "from 1 to 4096"),
        (json!({ "timeout_seconds": u64::MAX }), &["timeout_seconds"], "from 1 to 31536000"),
        (
            json!({ "train_data": ["sized.jsonl"], "same_dataset_within_batch": true }),
            &["train_data"],
            "do not fill",
        ),
        // Settings that would change nothing.
        (json!({ "lora_rank": 8 }), &["lora_rank"], "only for jobs with use_lora"),
        (
            json!({ "mrl_dims": [8, 33] }),
            &["mrl_dims"],
            "it has 33, and the model's vectors have 32 dimensions",
        ),
        (
            json!({ "query_instruction_format": "Query: " }),
            &["query_instruction_format"],
            "no place for the text",
        ),
    ]
}

fn of_all_together() -> Vec<Case> {
    vec![
        // Whatever is wrong is said at once, whether it shows in the document, in files or in the cluster.
        (
            json!({
                "temperature": 0, "learning_rate": "fast", "train_data": ["../x", "torn.jsonl"], "kind": "poet",
                "ranks": 3, "rangs": 2, "guide_model": "nowhere",
            }),
            &[
                "kind",
                "learning_rate",
                "rangs",
                "temperature",
                "guide_model",
                "train_data[0]",
                "train_data[1]",
                "ranks",
            ],
            "unknown variant",
        ),
        (
            json!({ "model": "no-such-model", "ranks": 3, "train_data": ["empty.jsonl"] }),
            &["model", "train_data[0]", "ranks"],
            "is empty",
        ),
        // What a rank could not begin with.
        (
            json!({ "kind": "reranker", "negatives_cross_device": false, "use_lora": true }),
            &["use_lora"],
            "this one lacks classifier",
        ),
        (json!({ "guide_model": checkpoint("xlmr-cross") }), &["guide_model"], "makes no vectors"),
        (json!({ "unified_finetuning": true, "use_lora": true }), &["use_lora"], "lacks colbert_linear"),
        (json!({ "use_lora": true, "target_modules": ["q_proj"] }), &["target_modules"], "q_proj"),
        (
            json!({ "passage_max_len": 1000 }),
            &["passage_max_len"],
            "it is 1000, and the model has 96 positions",
        ),
        (
            json!({ "train_data": ["plain.jsonl"], "dataloader_drop_last": true, "train_group_size": 2 }),
            &["train_data"],
            "1 examples do not fill one batch on each of 2 ranks",
        ),
        // What depends on a field that is wrong is not held against another one.
        (json!({ "sentence_pooling_method": "max" }), &["sentence_pooling_method"], "wanted is cls, mean"),
        (
            json!({ "sentence_pooling_method": "max", "query_max_len": 1000 }),
            &["sentence_pooling_method", "query_max_len"],
            "it is 1000",
        ),
        (json!({ "use_lora": true, "lora_rank": 0 }), &["lora_rank"], "lora_rank"),
    ]
}

fn of_evaluations() -> Vec<Case> {
    vec![
        (json!({ "evaluation": { "split": 1e-9 } }), &["evaluation"], "holds out no question"),
        (
            json!({ "evaluation":
                { "corpus": "torn.jsonl", "queries": "empty.jsonl", "qrels": "plain.jsonl", "sts": "plain.jsonl" } }),
            &["evaluation.corpus", "evaluation.queries", "evaluation.sts"],
            "there is no text in it",
        ),
        (
            json!({ "evaluation": { "splt": 0.1, "sts": "nowhere.tsv" }, "eval_steps": 2 }),
            &["evaluation.splt"],
            "no such field",
        ),
    ]
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
    let sized = line.replace('}', ", \"batch_size\": 18446744073709551615}");
    fs::write(scene.data().join("sized.jsonl"), sized).unwrap();
    for (more, named, part) in
        of_fields_and_files().into_iter().chain(of_all_together()).chain(of_evaluations())
    {
        let refused = scene.submit("bad", &job(&more)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{more}: {refused}");
        let (mut found, mut named) = (fields(&refused), named.to_vec());
        found.sort();
        named.sort_unstable();
        assert_eq!(found, named, "{more}: {refused}");
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
