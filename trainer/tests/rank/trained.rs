//! What a run makes of a model, and that it is what the reference makes of it.

use std::fs;
use std::path::{Path, PathBuf};

use model::{Checkpoint, Device, Model, Overrides, Pooling, Precision, Truncation};
use serde_json::{Value, json};
use tch::Tensor;

use crate::support::{check_refused, golden, job, only, run, tensors, weights};

#[test]
fn bge_m3s_heads_are_read_and_written_as_the_reference_has_them() {
    let more = |model: &Path| json!({"model": model, "unified_finetuning": true, "max_steps": 2, "gradient_accumulation_steps": 1});
    let dir = tempfile::tempdir().unwrap();
    run(&job(dir.path(), &more(&golden("traces/models/xlmr-m3"))), 1);
    let (trained, expected) = (dir.path().join("out/model"), weights(dir.path()));
    for head in ["colbert_linear.pt", "sparse_linear.pt"] {
        assert!(trained.join(head).is_file(), "{head}");
    }
    // With the heads in these files alone, it is the same model to begin with.
    let apart = tempfile::tempdir().unwrap();
    let model = apart.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "colbert_linear.pt", "sparse_linear.pt"]
    {
        fs::copy(trained.join(file), model.join(file)).unwrap();
    }
    let tensors = Tensor::read_safetensors(trained.join("model.safetensors")).unwrap();
    let body: Vec<_> = tensors.into_iter().filter(|(name, _)| !name.contains("_linear.")).collect();
    Tensor::write_safetensors(&body, model.join("model.safetensors")).unwrap();
    let [of_both, of_one] = [&trained, &model].map(|model| {
        let dir = tempfile::tempdir().unwrap();
        run(&job(dir.path(), &more(model)), 1);
        weights(dir.path())
    });
    assert!(of_both == of_one, "the weights differ");
    assert!(of_one != expected, "it learns nothing");

    fs::copy(model.join("sparse_linear.pt"), model.join("colbert_linear.pt")).unwrap();
    check_refused(&more(&model), &["colbert_linear.pt", "shape [1, 32]"]);
    fs::write(model.join("colbert_linear.pt"), "no zip").unwrap();
    check_refused(&more(&model), &["colbert_linear.pt", "no file of torch.save"]);
}

#[test]
fn the_trained_model_is_served_as_it_was_trained() {
    let dir = tempfile::tempdir().unwrap();
    let more = json!({"sentence_pooling_method": "mean", "max_steps": 30, "negatives_cross_device": false,
        "save_steps": 100});
    let told = only(run(&job(dir.path(), &more), 1), "step");
    let loss = |range: std::ops::Range<usize>| -> f64 {
        told[range].iter().map(|line| line["loss"].as_f64().unwrap()).sum()
    };
    assert!(loss(25..30) < loss(0..5), "{} {}", loss(0..5), loss(25..30));

    let trained = Checkpoint::open(&dir.path().join("out/model"), &Overrides::default()).unwrap();
    let card = trained.card();
    assert_eq!((card.pooling, card.normalize, card.max_tokens), (Some(Pooling::Mean), true, 96));
    assert_eq!(card.query_prompt.as_deref(), Some("Ask: "));
    let model = Model::load(&trained, Device::Cpu, Precision::F32).unwrap();
    let sequence = trained.tokenizer().unwrap().encode("Where does the fern grow?", Truncation::End).unwrap();
    assert!(model.run(&[&sequence]).unwrap().iter().flatten().all(|number| number.is_finite()));
}

/// A copy of a checkpoint that is trained without dropout.
fn without_dropout(name: &str, dir: &Path) -> PathBuf {
    let copy = dir.join("steady");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(golden(name)).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    let path = copy.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["hidden_dropout_prob"] = json!(0.0);
    config["attention_probs_dropout_prob"] = json!(0.0);
    fs::write(path, config.to_string()).unwrap();
    copy
}

/// What `tests/golden/traces/crossdev-kd` was recorded of, as a job.
fn recorded(dir: &Path, more: &Value) -> PathBuf {
    let mut job_ = json!({"model": without_dropout("checkpoints/xlmr-cls", dir),
        "gradient_accumulation_steps": 1, "gradient_cache_chunk": null, "max_steps": 6, "save_steps": 100,
        "query_instruction_for_retrieval": null, "shuffle_ratio": 0.0, "knowledge_distillation": true,
        "temperature": 0.05, "dataloader_drop_last": true, "gradient_scale": "flagembedding"});
    for (field, value) in more.as_object().unwrap() {
        job_[field] = value.clone();
    }
    job(dir, &job_)
}

#[test]
fn a_job_of_two_ranks_does_what_the_reference_did() {
    let dir = tempfile::tempdir().unwrap();
    let told = only(run(&recorded(dir.path(), &json!({})), 2), "step");
    let steps = |rank: usize| -> Vec<Value> {
        let path = golden(&format!("traces/crossdev-kd/losses_rank{rank}.json"));
        let file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        file["steps"].as_array().unwrap().clone()
    };
    let (first, second) = (steps(0), steps(1));
    assert_eq!((told.len(), first.len()), (6, 6));
    let number = |step: &Value, field: &str| step[field].as_f64().unwrap();
    for ((found, first), second) in told.iter().zip(&first).zip(&second) {
        let loss = f64::midpoint(number(first, "loss"), number(second, "loss"));
        assert!((number(found, "loss") - loss).abs() < 1e-4, "{found} {first} {second}");
        let norm = number(first, "grad_norm");
        assert!((number(found, "grad_norm") / norm - 1.0).abs() < 1e-3, "{found} {first}");
        assert!((number(found, "learning_rate") - number(first, "lr")).abs() < 1e-12, "{found} {first}");
    }
}

#[test]
fn the_references_gradient_is_a_share_of_the_exact_one() {
    let norm = |scale: &str| {
        let dir = tempfile::tempdir().unwrap();
        let more = json!({"gradient_scale": scale, "knowledge_distillation": false, "max_steps": 1});
        only(run(&recorded(dir.path(), &more), 2), "step")[0]["grad_norm"].as_f64().unwrap()
    };
    let ratio = norm("flagembedding") / norm("exact");
    assert!((ratio - 0.5).abs() < 1e-5, "{ratio}");
}

#[test]
fn what_is_frozen_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let more = json!({"fix_position_embedding": true, "max_steps": 2, "negatives_cross_device": false});
    run(&job(dir.path(), &more), 1);
    let initial = tensors(&golden("checkpoints/xlmr-cls").join("model.safetensors"));
    let trained = tensors(&dir.path().join("out/model/model.safetensors"));
    let is_same = |part: &str| {
        let (name, tensor) = initial.iter().find(|(name, _)| name.contains(part)).unwrap();
        *tensor == trained[name]
    };
    assert!(is_same("position_embeddings"));
    assert!(!is_same("word_embeddings") && !is_same("query.weight"));
}

#[test]
fn cross_encoders_and_batches_by_file_are_trained_too() {
    let dir = tempfile::tempdir().unwrap();
    let more = json!({"kind": "reranker", "model": golden("checkpoints/xlmr-cross"), "max_steps": 3,
        "knowledge_distillation": true, "negatives_cross_device": false});
    assert_eq!(only(run(&job(dir.path(), &more), 2), "step").len(), 3);
    Checkpoint::open(&dir.path().join("out/model"), &Overrides::default()).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let data = [golden("traces/data/places"), golden("traces/data/kinds-no_in_batch_neg")];
    let more =
        json!({"train_data": data, "same_dataset_within_batch": true, "max_steps": 4, "mrl_dims": [8, 32]});
    assert_eq!(only(run(&job(dir.path(), &more), 2), "step").len(), 4);
}

/// Lines of one file that differ in what ranks must agree on to exchange anything.
#[test]
fn ranks_agree_on_the_batches_of_a_file() {
    let (dir, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let line = |at: usize| {
        let negatives: Vec<String> = (0..=at % 4).map(|n| format!("the moss {n} of {at}")).collect();
        let mut line = json!({"query": format!("fern {at}"), "pos": ["a fern"], "neg": negatives});
        if at.is_multiple_of(3) {
            line["pos_scores"] = json!([1.5]);
            line["neg_scores"] = json!(vec![0.5; negatives.len()]);
        }
        line["type"] = json!("symmetric_class");
        format!("{line}\n")
    };
    let file = data.path().join("lines.jsonl");
    fs::write(&file, (0..12).map(line).collect::<String>()).unwrap();
    let more = json!({"train_data": [file], "same_dataset_within_batch": true, "knowledge_distillation": true,
        "per_device_train_batch_size": 1, "train_group_size": 4, "gradient_accumulation_steps": 1, "max_steps": 8});
    assert_eq!(only(run(&job(dir.path(), &more), 2), "step").len(), 8);
}

#[test]
fn negatives_are_chosen_with_a_guide() {
    let dir = tempfile::tempdir().unwrap();
    let more = json!({"guide_model": golden("checkpoints/bert-mean"), "mask_duplicates": true, "max_steps": 2,
        "false_negative_margin": 0.1, "guide_margin": 0.05, "hardness_weight": 9});
    assert_eq!(only(run(&job(dir.path(), &more), 2), "step").len(), 2);
    check_refused(
        &json!({"guide_model": golden("checkpoints/xlmr-cross")}),
        &["xlmr-cross", "makes no vectors"],
    );
}
