//! Killed and resumed, runs end where undisturbed ones end, to the bit.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tch::Kind;

use crate::support::{check_refused, golden, job, killed, only, run, tensors, weights};

#[test]
fn a_run_that_was_killed_ends_like_one_that_was_not() {
    let undisturbed = tempfile::tempdir().unwrap();
    let told = only(run(&job(undisturbed.path(), &json!({})), 2), "step");
    assert_eq!(
        told.iter().map(|line| line["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    let expected = weights(undisturbed.path());
    assert_ne!(expected, fs::read(golden("checkpoints/xlmr-cls").join("model.safetensors")).unwrap());

    let (killed, job) = killed(&json!({}), &[(1, 1), (1, 3), (0, 5)]);
    let rest = only(run(&job, 2), "step");
    assert!(rest.len() < 6, "it began anew: {rest:?}");
    let last =
        |lines: &[Value]| (lines[lines.len() - 1]["loss"].clone(), lines[lines.len() - 1]["step"].clone());
    assert_eq!(last(&rest), last(&told));
    assert!(weights(killed.path()) == expected, "the weights differ");

    let checkpoints = fs::read_dir(killed.path().join("out/checkpoints")).unwrap();
    let mut names: Vec<String> =
        checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    assert_eq!(names, ["step-00000004", "step-00000006"]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path(), &json!({"max_steps": 5, "negatives_cross_device": false}));
    let told = only(run(&job, 1), "step");
    let expected = weights(dir.path());
    let newest = dir.path().join("out/checkpoints/step-00000004/optimizer.safetensors");
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    let rest = only(run(&job, 1), "step");
    assert_eq!(rest[0]["step"], 3);
    assert_eq!(rest[2]["loss"], told[4]["loss"]);
    assert!(weights(dir.path()) == expected, "the weights differ");
}

/// How the scale of a checkpoint stands.
fn scaler(dir: &Path, step: u64) -> Value {
    let path = dir.join(format!("out/checkpoints/step-{step:08}/state.json"));
    serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap()["scaler"].clone()
}

#[test]
fn half_precision_goes_on_with_its_scale() {
    for kind in ["fp16", "bf16"] {
        let more = json!({kind: true, "temperature": 0.02, "max_grad_norm": 0, "max_steps": 5});
        let dir = tempfile::tempdir().unwrap();
        let job = job(dir.path(), &more);
        let told = only(run(&job, 2), "step");
        let left_out = told.iter().filter(|line| line["grad_norm"] == 0.0).count();
        let scaler = scaler(dir.path(), 4);
        if kind == "fp16" {
            // A scale of 65536 is too large for such losses at first.
            assert!((1..4).contains(&left_out), "{told:?}");
            assert!(scaler["factor"].as_f64().unwrap() < 65_536.0 && scaler["steps"].as_u64() > Some(0));
        } else {
            assert!(left_out == 0 && scaler.is_null());
        }
        let expected = weights(dir.path());
        fs::remove_dir_all(dir.path().join("out/model")).unwrap();
        assert_eq!(only(run(&job, 2), "step").len(), 1);
        assert!(weights(dir.path()) == expected, "the weights differ");
    }
}

#[test]
fn adapters_go_on_where_they_were_and_are_merged_in_the_end() {
    let more = json!({"use_lora": true, "lora_rank": 4, "max_steps": 5, "negatives_cross_device": false,
        "gradient_checkpointing": true});
    let dir = tempfile::tempdir().unwrap();
    let job = job(dir.path(), &more);
    let told = only(run(&job, 1), "step");
    let expected = weights(dir.path());
    let checkpoint = dir.path().join("out/checkpoints/step-00000004");
    assert!(checkpoint.join("adapters.safetensors").is_file());
    assert!(!checkpoint.join("model.safetensors").exists());
    // From step 4 again.
    fs::remove_dir_all(dir.path().join("out/model")).unwrap();
    let rest = only(run(&job, 1), "step");
    assert_eq!((rest.len(), &rest[0]["loss"]), (1, &told[4]["loss"]));
    assert!(weights(dir.path()) == expected, "the weights differ");

    let initial = tensors(&golden("checkpoints/xlmr-cls").join("model.safetensors"));
    let trained = tensors(&dir.path().join("out/model/model.safetensors"));
    assert!(initial.keys().eq(trained.keys()));
    for (name, tensor) in &initial {
        let adapted = ["query.weight", "key.weight", "value.weight"].iter().any(|end| name.ends_with(end));
        let same = tensor.to_kind(Kind::Float) == trained[name].to_kind(Kind::Float);
        assert_eq!(same, !adapted, "{name}");
    }
    check_refused(&json!({"use_lora": true, "target_modules": ["q_proj"]}), &["q_proj"]);
}

#[test]
fn batches_by_file_go_on_where_they_were() {
    // Over the end of an epoch.
    let data = [golden("traces/data/places"), golden("traces/data/kinds-no_in_batch_neg")];
    let more = json!({"train_data": data, "same_dataset_within_batch": true, "max_steps": 14, "save_steps": 3,
        "negatives_cross_device": false, "gradient_accumulation_steps": 1});
    let undisturbed = tempfile::tempdir().unwrap();
    let told = only(run(&job(undisturbed.path(), &more), 2), "step");
    let (killed, job) = killed(&more, &[(1, 4), (0, 10)]);
    let rest = only(run(&job, 2), "step");
    assert!(rest.len() < 8, "it began anew: {rest:?}");
    assert_eq!(rest.last().unwrap()["loss"], told.last().unwrap()["loss"]);
    assert!(weights(killed.path()) == weights(undisturbed.path()), "the weights differ");
}
