//! What cannot be done is said before or when it shows.

use std::fs;

use serde_json::json;

use crate::support::{check_refused, golden};

#[test]
fn a_run_that_diverges_says_at_which_step() {
    let more = json!({"learning_rate": 9e8, "warmup_steps": 0, "max_steps": 30, "save_steps": 1});
    check_refused(&more, &["step ", "is not finite any more", "learning_rate"]);
    let infinite = json!({"learning_rate": 9e8, "warmup_steps": 0, "max_steps": 30, "fp16": true});
    check_refused(&infinite, &["step ", "is not finite any more", "bf16"]);
}

#[test]
fn lengths_beyond_the_models_positions_are_refused() {
    check_refused(
        &json!({"query_max_len": 97, "passage_max_len": 1000}),
        &["query_max_len is 97, and the model has 96 positions", "passage_max_len is 1000"],
    );
    let pairs = json!({"kind": "reranker", "model": golden("checkpoints/xlmr-cross"), "query_max_len": 16,
        "negatives_cross_device": false, "passage_max_len": 81});
    check_refused(&pairs, &["passage_max_len is together with query_max_len 97"]);
}

#[test]
fn bad_jobs_are_refused_by_what_is_wrong() {
    check_refused(&json!({"temperature": -1, "train_group_size": 0}), &["temperature", "train_group_size"]);
    check_refused(&json!({"tempratur": 1}), &["tempratur"]);
    check_refused(&json!({"evaluation": {"split": 2.0}}), &["evaluation.split is 2"]);
    check_refused(&json!({"evaluation": {"split": 1e-9}}), &["evaluation.split holds out no question"]);
    check_refused(
        &json!({"evaluation": {"sts": "/no.tsv"}, "metric_for_best_model": "spearman"}),
        &["/no.tsv"],
    );
    check_refused(&json!({"train_data": ["/nowhere.jsonl"]}), &["/nowhere.jsonl"]);
    check_refused(&json!({"model": "/nowhere"}), &["/nowhere"]);
    check_refused(
        &json!({"per_device_train_batch_size": 500, "dataloader_drop_last": true}),
        &["24 examples"],
    );
    let data = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
    let good = r#"{"query": "a", "pos": ["b"], "neg": ["c"]}"#;
    for (bad, reason) in [("{", "EOF"), (r#"{"query": "a", "pos": []}"#, "pos is empty")] {
        fs::write(data.path(), format!("{good}\n\n{bad}\n")).unwrap();
        let name = data.path().display().to_string();
        check_refused(&json!({"train_data": [&name]}), &[&name, "line 3", reason]);
    }
}
