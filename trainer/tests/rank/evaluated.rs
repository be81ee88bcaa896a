//! Models are measured while they are trained, and the best is kept.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{check_refused, evaluate, golden, job, judged, killed, metric, only, run};

/// A run whose best model is neither the initial one nor among the last two, and what it told: which seed has one depends on
/// how this processor rounds. Cut where the served window, of 96 tokens, cuts texts.
fn best_in_the_middle([corpus, queries, qrels]: &[PathBuf; 3]) -> (TempDir, Value, Vec<Value>) {
    let steps = 8;
    let run = |seed: u64| {
        let more = json!({"kind": "reranker", "model": golden("checkpoints/xlmr-cross"), "seed": seed,
            "query_instruction_for_retrieval": null, "query_max_len": 8, "passage_max_len": 88,
            "negatives_cross_device": false, "learning_rate": 1e-2, "warmup_steps": 0, "max_steps": steps,
            "evaluation": {"corpus": corpus, "queries": queries, "qrels": qrels}, "eval_steps": 1,
            "save_steps": 1, "save_total_limit": 1, "load_best_model_at_end": true});
        let dir = tempfile::tempdir().unwrap();
        let told = run(&job(dir.path(), &more), 1);
        let best = only(told.clone(), "evaluation").into_iter().rfind(|line| line["best"] == true).unwrap();
        (1..steps - 1).contains(&best["step"].as_u64().unwrap()).then_some((dir, more, told))
    };
    (1..=20).find_map(run).expect("one of twenty runs is best in the middle")
}

#[test]
fn the_best_model_is_kept_and_the_same_however_many_ranks_evaluate() {
    let apart = tempfile::tempdir().unwrap();
    let data = judged(apart.path());
    let (dir, more, told) = best_in_the_middle(&data);
    let evaluated = only(told.clone(), "evaluation");
    let steps: Vec<_> = evaluated.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let best = evaluated.iter().rev().find(|line| line["best"] == true).unwrap();
    assert!(evaluated.iter().all(|line| metric(line) <= metric(best)), "{evaluated:?}");
    let step = best["step"].as_u64().unwrap();
    let finished = told.last().unwrap();
    assert_eq!((&finished["kind"], &finished["step"]), (&json!("finished"), &best["step"]));
    // Of the last ones one is kept, and this one beside it.
    assert!(dir.path().join(format!("out/checkpoints/step-{step:08}/model.safetensors")).is_file());
    let others = fs::read_dir(dir.path().join("out/checkpoints")).unwrap();
    let others = others.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().into_string().unwrap();
        name.starts_with("step-") && name != format!("step-{step:08}")
    });
    assert_eq!(others.count(), 1);
    assert_eq!(evaluate(&dir.path().join("out/model"), &data), best["metrics"]);

    // Before the first step all ranks have the same model.
    let by_two = only(run(&job(apart.path(), &more), 2), "evaluation");
    assert!((metric(&by_two[0]) - metric(&evaluated[0])).abs() < 1e-9, "{by_two:?}");
}

#[test]
fn what_was_evaluated_before_a_crash_is_told_again() {
    let dir = tempfile::tempdir().unwrap();
    let [corpus, queries, qrels] = judged(dir.path());
    let more = json!({"evaluation": {"corpus": corpus, "queries": queries, "qrels": qrels}, "eval_steps": 1,
        "save_steps": 2});
    // How long it took is told as it was.
    let untimed = |mut line: Value| line.as_object_mut().unwrap().remove("seconds").map(|_| line).unwrap();
    let told =
        |job: &Path| -> Vec<Value> { only(run(job, 2), "evaluation").into_iter().map(untimed).collect() };
    let undisturbed = told(&job(dir.path(), &more));
    let (_killed, job) = killed(&more, &[(0, 3)]);
    assert_eq!(told(&job), undisturbed);
}

#[test]
fn a_reranker_is_evaluated_by_all_ranks_together_as_it_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let data = judged(dir.path());
    let [corpus, queries, qrels] = &data;
    // Cut where the served window, of 96 tokens, cuts them.
    let more = json!({"kind": "reranker", "model": golden("checkpoints/xlmr-cross"),
        "query_instruction_for_retrieval": null, "query_max_len": 8, "passage_max_len": 88,
        "negatives_cross_device": false, "learning_rate": 5e-3, "max_steps": 6, "save_steps": 100,
        "evaluation": {"corpus": corpus, "queries": queries, "qrels": qrels}, "eval_steps": 2,
        "load_best_model_at_end": true});
    let told = run(&job(dir.path(), &more), 2);
    let evaluated = only(told.clone(), "evaluation");
    let steps: Vec<_> = evaluated.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 2, 4, 6]);
    let best = evaluated.iter().rev().find(|line| line["best"] == true).unwrap();
    assert!(metric(&evaluated[0]) < metric(best), "it learns nothing: {evaluated:?}");
    let finished = told.last().unwrap();
    assert_eq!((&finished["kind"], &finished["step"]), (&json!("finished"), &best["step"]));

    let initial = evaluate(&golden("checkpoints/xlmr-cross"), &data);
    assert_eq!(initial, evaluated[0]["metrics"]);
    assert_eq!(evaluate(&dir.path().join("out/model"), &data), best["metrics"]);
}

#[test]
fn a_reranker_is_evaluated_on_rows_that_are_held_out() {
    let more = json!({"kind": "reranker", "model": golden("checkpoints/xlmr-cross"), "max_steps": 1,
        "evaluation": {"split": 0.3}, "negatives_cross_device": false});
    let by = |ranks| {
        let dir = tempfile::tempdir().unwrap();
        metric(&only(run(&job(dir.path(), &more), ranks), "evaluation")[0])
    };
    // Before the first step all ranks have the same model.
    let alone = by(1);
    assert!((0.2..1.0).contains(&alone) && (by(2) - alone).abs() < 1e-9, "{alone}");
    let sts = json!({"split": 0.3, "sts": "p.tsv"});
    let more = json!({"kind": "reranker", "negatives_cross_device": false, "evaluation": sts});
    check_refused(&more, &["evaluation.sts is only for embedders"]);
}

#[test]
fn three_ways_are_evaluated_by_the_dense_one() {
    let told = |unified: bool, ranks| {
        let more = json!({"model": golden("traces/models/xlmr-m3"), "unified_finetuning": unified,
            "evaluation": {"split": 0.3}, "eval_steps": 1, "max_steps": 2, "load_best_model_at_end": true});
        let dir = tempfile::tempdir().unwrap();
        only(run(&job(dir.path(), &more), ranks), "evaluation")
    };
    let unified = told(true, 2);
    assert_eq!(unified.len(), 3);
    assert!((metric(&unified[0]) - metric(&told(false, 1)[0])).abs() < 1e-9, "{unified:?}");
}

#[test]
fn a_reranker_with_instructions_is_served_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let data = judged(dir.path());
    let [corpus, queries, qrels] = &data;
    // Cut where the served window, of 96 tokens, cuts them.
    let more = json!({"kind": "reranker", "model": golden("checkpoints/xlmr-cross"),
        "query_instruction_for_retrieval": "ask ", "passage_instruction_for_retrieval": "say ",
        "query_max_len": 8, "passage_max_len": 88,
        "negatives_cross_device": false, "max_steps": 2, "save_steps": 100,
        "evaluation": {"corpus": corpus, "queries": queries, "qrels": qrels}});
    let evaluated = only(run(&job(dir.path(), &more), 1), "evaluation");
    assert_eq!(evaluate(&dir.path().join("out/model"), &data), evaluated[1]["metrics"]);
    // Without them it is another measure.
    fs::remove_file(dir.path().join("out/model/config_sentence_transformers.json")).unwrap();
    assert_ne!(evaluate(&dir.path().join("out/model"), &data), evaluated[1]["metrics"]);
}
