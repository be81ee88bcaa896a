//! A reranker and a bge-m3 begin as encoders without heads.

use std::fs;
use std::path::Path;

use model::{Checkpoint, Kind, Overrides};
use serde_json::{Value, json};
use tch::Tensor;

use crate::support::{check_refused, golden, job, killed, only, run, tensors, weights};

fn reranker(model: &str) -> Value {
    json!({"kind": "reranker", "model": golden(&format!("checkpoints/{model}")), "max_steps": 4,
        "negatives_cross_device": false})
}

fn initial(dir: &Path) -> Vec<(String, Tensor)> {
    tensors(&dir.join("out/initial/model.safetensors")).into_iter().collect()
}

/// Standard deviation and mean.
fn spread(tensor: &Tensor) -> [f64; 2] {
    [tensor.std(false).double_value(&[]), tensor.mean(tch::Kind::Double).double_value(&[])]
}

#[test]
fn an_encoder_becomes_a_cross_encoder() {
    for (model, prefix, family, drawn) in [
        ("bert-mean", "bert.", "Bert", &["classifier."][..]),
        ("xlmr-cls", "roberta.", "XLMRoberta", &["classifier.dense.", "classifier.out_proj."]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(only(run(&job(dir.path(), &reranker(model)), 2), "step").len(), 4);

        let made = Checkpoint::open(&dir.path().join("out/model"), &Overrides::default()).unwrap();
        let architecture = format!("{family}ForSequenceClassification");
        assert_eq!((made.card().kind, &made.card().architecture), (Kind::CrossEncoder, &architecture));
        let trained = tensors(&dir.path().join("out/model/model.safetensors"));
        for (name, initial) in initial(dir.path()) {
            assert!(trained.contains_key(&name), "{name}");
            if !drawn.iter().any(|layer| name.starts_with(layer)) {
                assert!(name.starts_with(prefix), "{name}");
            } else if name.ends_with("bias") {
                assert_eq!(initial.count_nonzero(None::<i64>).int64_value(&[]), 0, "{name}");
            } else {
                // Of 32 numbers, or 1,024.
                let [deviation, mean] = spread(&initial);
                assert!((deviation - 0.02).abs() < 0.01 && mean.abs() < 0.015, "{name}: {deviation} {mean}");
                assert_ne!(initial, trained[&name], "{name}");
            }
        }
    }
}

#[test]
fn the_body_is_the_encoders() {
    let dir = tempfile::tempdir().unwrap();
    run(&job(dir.path(), &reranker("bert-cls")), 1);
    let before = tensors(&golden("checkpoints/bert-cls/model.safetensors"));
    let after = initial(dir.path());
    assert_eq!(after.len(), before.len() + 2);
    for (name, tensor) in after {
        if let Some(name) = name.strip_prefix("bert.") {
            assert_eq!(tensor, before[name], "{name}");
        }
    }
}

#[test]
fn what_is_drawn_goes_by_the_seed_and_outlives_a_crash() {
    let [first, second, other] = [42, 42, 43].map(|seed| {
        let dir = tempfile::tempdir().unwrap();
        let mut more = reranker("xlmr-cls");
        more["seed"] = json!(seed);
        run(&job(dir.path(), &more), 2);
        dir
    });
    let drawn = |dir: &Path| fs::read(dir.join("out/initial/model.safetensors")).unwrap();
    assert!(drawn(first.path()) != drawn(other.path()));
    assert!(weights(first.path()) == weights(second.path()));

    let (crashed, job) = killed(&reranker("xlmr-cls"), &[(0, 1), (1, 3)]);
    run(&job, 2);
    assert!(weights(crashed.path()) == weights(first.path()), "the weights differ");
}

#[test]
fn bge_m3s_heads_are_drawn_where_they_are_not_there() {
    let more = |model: &Path| json!({"model": model, "unified_finetuning": true, "max_steps": 2, "gradient_accumulation_steps": 1});
    let dir = tempfile::tempdir().unwrap();
    run(&job(dir.path(), &more(&golden("checkpoints/xlmr-cls"))), 2);
    let trained = tensors(&dir.path().join("out/model/model.safetensors"));
    let body = tensors(&dir.path().join("out/initial/model.safetensors"));
    assert!(trained.len() == body.len() + 4, "{:?}", trained.keys());
    // One step of Adam moves a number by its rate, 1e-3, and two by twice that.
    let bound = 1.0 / 32_f64.sqrt();
    for (head, numbers) in [("colbert_linear", 32 * 32), ("sparse_linear", 32)] {
        assert!(dir.path().join("out/model").join(format!("{head}.pt")).is_file());
        let weight = &trained[&format!("{head}.weight")];
        assert_eq!(weight.numel(), numbers);
        let largest = weight.abs().max().double_value(&[]);
        assert!(largest > 0.9 * bound && largest < bound + 3e-3, "{head}: {largest}");
    }

    // The one that is there stays.
    let part = tempfile::tempdir().unwrap();
    let model = part.path().join("model");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "sparse_linear.pt"] {
        fs::copy(dir.path().join("out/model").join(file), model.join(file)).unwrap();
    }
    fs::copy(golden("checkpoints/xlmr-cls/model.safetensors"), model.join("model.safetensors")).unwrap();
    run(&job(part.path(), &more(&model)), 1);
    let linked = |head: &str| part.path().join("out/initial").join(head).is_symlink();
    assert!(linked("sparse_linear.pt") && !linked("colbert_linear.pt") && linked("tokenizer.json"));
}

#[test]
fn heads_that_adapters_would_leave_as_drawn_are_refused() {
    let mut more = reranker("xlmr-cls");
    more["use_lora"] = json!(true);
    check_refused(&more, &["use_lora", "lacks classifier"]);
}
