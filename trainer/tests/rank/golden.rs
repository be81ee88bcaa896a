//! A finished model comes with what its trainer makes of the golden inputs, for others to be held to.

use std::path::Path;

use cluster::{Golden, ModelKind};
use model::{Checkpoint, Device, Model, Overrides, Precision, Sequence, Truncation, normalize};
use proto::v1::GoldenSample;
use serde_json::{Value, json};

use crate::support::{golden, job, run};

fn numbers(sample: &GoldenSample) -> Vec<f32> {
    sample.embedding.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// What a worker makes of an input, but for the sigmoid of a logit.
fn served(model: &Model, sequence: &Sequence) -> Vec<f32> {
    model.run(&[sequence]).unwrap().iter().flatten().copied().collect()
}

/// Trains in a way of its own; the finished model as it is served, and the samples beside it.
fn train(more: &Value) -> (Checkpoint, Vec<GoldenSample>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    run(&job(dir.path(), more), 1);
    let model = dir.path().join("out/model");
    let samples = publisher::golden(&dir.path().join("out/golden.jsonl"), &model).unwrap();
    (Checkpoint::open(&model, &Overrides::default()).unwrap(), samples, dir)
}

#[track_caller]
fn check_embedder(more: &Value, is_normalized: bool) {
    let (trained, samples, _dir) = train(more);
    let expected: Vec<&str> = Golden::inputs(ModelKind::Embedder).map(|(_, text)| text).collect();
    assert_eq!(samples.iter().map(|sample| sample.text.as_str()).collect::<Vec<_>>(), expected);
    assert_eq!(trained.card().normalize, is_normalized);
    let (model, tokenizer) =
        (Model::load(&trained, Device::Cpu, Precision::F32).unwrap(), trained.tokenizer().unwrap());
    for sample in &samples {
        let mut vector = served(&model, &tokenizer.encode(&sample.text, Truncation::End).unwrap());
        if is_normalized {
            normalize(&mut vector);
        }
        let found = numbers(sample);
        assert_eq!(found.len(), vector.len());
        let apart = found.iter().zip(&vector).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 1e-4, "{apart}: {}", sample.text);
    }
}

#[test]
fn an_embedders_are_those_that_are_served() {
    let brief = json!({"max_steps": 2, "save_steps": 100, "negatives_cross_device": false});
    let with = |more: Value| {
        let mut brief = brief.clone();
        brief.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        brief
    };
    check_embedder(&with(json!({"sentence_pooling_method": "mean"})), true);
    check_embedder(&with(json!({"normalize_embeddings": false})), false);
    // In single precision all the same, and with the adapters merged.
    check_embedder(
        &with(json!({"use_lora": true, "lora_rank": 4, "learning_rate": 1e-2, "bf16": true})),
        true,
    );
    let unified = golden("traces/models/xlmr-m3");
    check_embedder(&with(json!({"model": unified, "unified_finetuning": true})), true);
}

#[test]
fn a_rerankers_are_scores_of_pairs() {
    let more = json!({"kind": "reranker", "model": golden("checkpoints/xlmr-cross"), "max_steps": 2,
        "negatives_cross_device": false});
    let (trained, samples, dir) = train(&more);
    assert!(!Path::new(&dir.path().join("out/model/golden.jsonl")).exists(), "it is no part of the model");
    assert_eq!(samples.len(), 8);
    let (model, tokenizer) =
        (Model::load(&trained, Device::Cpu, Precision::F32).unwrap(), trained.tokenizer().unwrap());
    for GoldenSample { text, query, score, embedding } in samples {
        let pair = tokenizer.encode_pair(&query.unwrap(), &text, Truncation::End).unwrap();
        let expected = 1.0 / (1.0 + (-served(&model, &pair)[0]).exp());
        assert!((score.unwrap() - expected).abs() < 1e-5, "{score:?} {expected}");
        assert!(embedding.is_empty());
    }
}
