//! What is trained is what is served: the same rows, and the files that come back are those that went in.

#![allow(clippy::unwrap_used)] // Tests, helpers included.

use std::path::{Path, PathBuf};

use model::{
    Checkpoint, Device, Dropout, Laying, LoadError, Lora, Manner, Model, Overrides, Pooling, Precision,
    Products, Sequence, Task, Trainee,
};
use tch::{Kind, Tensor};

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name)
}

fn load(dir: &Path, task: Task) -> Result<Trainee, LoadError> {
    Trainee::load(&dir.join("config.json"), dir, task, Device::Cpu)
}

/// Only BERT tells a pair's parts apart.
fn batch(name: &str) -> Vec<Sequence> {
    let ids = [vec![3, 9, 17, 4], vec![3, 4], vec![3, 30, 31, 32, 33, 4], vec![3, 8, 12, 4]];
    let mut batch = ids.map(Sequence::single).to_vec();
    if name.starts_with("bert") {
        batch[2].second = 3;
    }
    batch
}

fn rows(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().view([-1])).unwrap()
}

#[track_caller]
fn check_close(found: &[f32], expected: &[f32]) {
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == expected.len() && worst < 1e-5, "worst difference {worst:e}");
}

#[track_caller]
fn check(name: &str, task: Task) {
    let sequences = batch(name);
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let served = Checkpoint::open(&checkpoint(name), &Overrides::default()).unwrap();
    let model = Model::load(&served, Device::Cpu, Precision::F32).unwrap();
    let expected: Vec<f32> = model.run(&batch).unwrap().iter().flatten().copied().collect();
    let trainee = load(&checkpoint(name), task).unwrap();
    for laying in [Laying::EndToEnd, Laying::Padded { width: 7 }] {
        let hidden = trainee.hidden(&batch, laying, &Dropout::NONE).unwrap();
        let found = match served.card().pooling {
            Some(pooling) => trainee.pooled(&hidden, pooling).unwrap(),
            None => trainee.logits(&hidden, &Dropout::NONE).unwrap(),
        };
        check_close(&rows(&found), &expected);
    }
}

#[test]
fn rows_are_those_that_serving_makes() {
    for name in ["bert-cls", "bert-mean", "xlmr-cls", "xlmr-bpe"] {
        check(name, Task::Dense);
    }
    for name in ["bert-cross", "xlmr-cross"] {
        check(name, Task::Score);
    }
}

#[test]
fn every_parameter_has_a_gradient_and_padding_has_none() {
    for (name, task) in [("bert-mean", Task::Dense), ("xlmr-cross", Task::Score)] {
        let sequences = batch(name);
        let batch: Vec<&Sequence> = sequences.iter().collect();
        let gradients = |laying| {
            let trainee = load(&checkpoint(name), task).unwrap();
            let hidden = trainee.hidden(&batch, laying, &Dropout::NONE).unwrap();
            let rows = match task {
                Task::Dense | Task::Unified => trainee.pooled(&hidden, Pooling::Mean).unwrap(),
                Task::Score => trainee.logits(&hidden, &Dropout::NONE).unwrap(),
            };
            (rows * 0.5).sin().sum(Kind::Float).backward();
            let gradients = trainee.parameters().iter().map(|p| (p.name().to_owned(), p.tensor().grad()));
            gradients.collect::<Vec<_>>()
        };
        let pairs = gradients(Laying::EndToEnd).into_iter().zip(gradients(Laying::Padded { width: 9 }));
        for ((name, end_to_end), (_, padded)) in pairs {
            assert!(end_to_end.defined(), "{name}");
            assert!(end_to_end.allclose(&padded, 1e-4, 1e-5, false), "{name}: {end_to_end} {padded}");
        }
    }
}

#[test]
fn the_same_seed_drops_the_same_numbers() {
    let trainee = load(&checkpoint("xlmr-cross"), Task::Score).unwrap();
    let sequences = batch("xlmr-cross");
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let dropout = Dropout { hidden: 0.1, attention: 0.1, classifier: 0.1, adapters: 0.0 };
    let logits = |seed| {
        model::seed(seed);
        let hidden = trainee.hidden(&batch, Laying::EndToEnd, &dropout).unwrap();
        rows(&trainee.logits(&hidden, &dropout).unwrap())
    };
    assert_eq!(logits(5), logits(5));
    assert_ne!(logits(5), logits(6));
}

fn adapted(name: &str, targets: &[&str]) -> Result<Trainee, LoadError> {
    let targets = targets.iter().map(|&target| target.to_owned()).collect();
    let manner =
        Manner { lora: Some(Lora { rank: 4, alpha: 8.0, dropout: 0.2, targets }), ..Manner::default() };
    let dir = checkpoint(name);
    let task = if name.ends_with("cross") { Task::Score } else { Task::Dense };
    Trainee::load_for(&dir.join("config.json"), &dir, (task, &manner), Device::Cpu)
}

fn outputs(trainee: &Trainee, name: &str) -> Tensor {
    let sequences = batch(name);
    let hidden =
        trainee.hidden(&sequences.iter().collect::<Vec<_>>(), Laying::EndToEnd, &Dropout::NONE).unwrap();
    if name.ends_with("cross") {
        trainee.logits(&hidden, &Dropout::NONE).unwrap()
    } else {
        trainee.pooled(&hidden, Pooling::Mean).unwrap()
    }
}

#[test]
fn adapters_add_nothing_at_first_and_are_merged_when_they_do() {
    for (name, targets, layers) in [
        ("bert-mean", vec!["query", "key", "value"], 3),
        ("xlmr-cross", vec!["query", "intermediate.dense", "classifier.dense"], 2),
    ] {
        let dir = checkpoint(name);
        let task = if name.ends_with("cross") { Task::Score } else { Task::Dense };
        let plain = rows(&outputs(&load(&dir, task).unwrap(), name));
        let trainee = adapted(name, &targets).unwrap();
        let adapters = || trainee.parameters().iter().filter(|p| p.name().contains(".lora_"));
        assert!(adapters().count() % 2 == 0 && adapters().count() >= 2 * layers, "{}", adapters().count());
        assert_eq!(rows(&outputs(&trainee, name)), plain);

        outputs(&trainee, name).square().sum(Kind::Float).backward();
        for parameter in trainee.parameters() {
            let (adapts, has) = (parameter.name().contains(".lora_"), parameter.tensor().grad().defined());
            assert_eq!(adapts, has, "{}", parameter.name());
        }

        for parameter in adapters().filter(|p| p.name().contains(".lora_B.")) {
            let _ = tch::no_grad(|| parameter.tensor().normal_(0.0, 0.1));
        }
        let moved = rows(&outputs(&trainee, name));
        assert!(moved.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-3));
        let out = tempfile::tempdir().unwrap();
        trainee.save(&out.path().join("model.safetensors")).unwrap();
        std::fs::copy(dir.join("config.json"), out.path().join("config.json")).unwrap();
        check_close(&rows(&outputs(&load(out.path(), task).unwrap(), name)), &moved);

        let file = out.path().join("adapters.safetensors");
        trainee.save_adapters(&file).unwrap();
        let again = adapted(name, &targets).unwrap();
        again.read_adapters(&file).unwrap();
        assert_eq!(rows(&outputs(&again, name)), moved);
        assert!(adapted(name, &["key"]).unwrap().read_adapters(&file).is_ok() == targets.contains(&"key"));
    }
    let error = adapted("bert-mean", &["query", "q_proj"]).unwrap_err();
    assert!(matches!(&error, LoadError::Unsupported { what, .. } if what.contains("q_proj")), "{error}");
}

/// Rows, and the gradients of a number made of them.
fn learnt(products: Products) -> (Tensor, Vec<Tensor>) {
    let dir = checkpoint("bert-mean");
    let manner = Manner { products, ..Manner::default() };
    let trainee =
        Trainee::load_for(&dir.join("config.json"), &dir, (Task::Dense, &manner), Device::Cpu).unwrap();
    let rows = outputs(&trainee, "bert-mean");
    (&rows * 0.5).sin().sum(Kind::Float).backward();
    (rows.detach(), trainee.parameters().iter().map(|parameter| parameter.tensor().grad()).collect())
}

#[test]
fn products_are_coarse_and_weights_and_their_gradients_are_not() {
    let (exact, exact_gradients) = learnt(Products::F32);
    let off = |found: &Tensor, exact: &Tensor| {
        ((found - exact).norm().double_value(&[])) / exact.norm().double_value(&[])
    };
    for (products, near, far) in [(Products::Bf16, 1e-4, 2e-2), (Products::F16, 1e-5, 3e-3)] {
        let (rows, gradients) = learnt(products);
        assert_eq!(rows.kind(), Kind::Float);
        let error = off(&rows, &exact);
        assert!((near..far).contains(&error), "{products:?}: {error}");
        assert!(gradients.iter().all(|gradient| gradient.kind() == Kind::Float));
        let flat = |all: &[Tensor]| Tensor::cat(&all.iter().map(|g| g.reshape([-1])).collect::<Vec<_>>(), 0);
        let error = off(&flat(&gradients), &flat(&exact_gradients));
        assert!((near..2.0 * far).contains(&error), "{products:?}: gradients {error}");
    }
}

#[test]
fn layers_that_are_run_again_have_the_same_gradients() {
    for (name, task) in [("bert-mean", Task::Dense), ("xlmr-cross", Task::Score)] {
        let (dir, sequences) = (checkpoint(name), batch(name));
        let batch: Vec<&Sequence> = sequences.iter().collect();
        let learnt = |manner: &Manner| {
            let config = dir.join("config.json");
            let trainee = Trainee::load_for(&config, &dir, (task, manner), Device::Cpu).unwrap();
            let hidden = trainee.hidden(&batch, Laying::EndToEnd, &Dropout::NONE).unwrap();
            let rows = match task {
                Task::Dense | Task::Unified => trainee.pooled(&hidden, Pooling::Mean).unwrap(),
                Task::Score => trainee.logits(&hidden, &Dropout::NONE).unwrap(),
            };
            (&rows * 0.5).sin().sum(Kind::Float).backward();
            let early = trainee.parameters().iter().filter(|p| p.tensor().grad().defined()).count();
            trainee.send_down(&hidden).unwrap();
            let gradients = trainee.parameters().iter().map(|p| (p.name().to_owned(), p.tensor().grad()));
            (rows.detach(), early, gradients.collect::<Vec<_>>())
        };
        let (rows, _, expected) = learnt(&Manner::default());
        let (same, early, found) = learnt(&Manner { recompute: true, ..Manner::default() });
        // Until then no gradient has gone further than the heads.
        assert!(same == rows && early <= 4, "{early}");
        for ((name, found), (_, expected)) in found.iter().zip(&expected) {
            assert!(found.allclose(expected, 1e-5, 1e-7, false), "{name}: {found} {expected}");
        }
    }
}

#[test]
fn what_is_saved_is_what_was_loaded_and_what_was_trained() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(checkpoint("bert-mean").join(name), dir.path().join(name)).unwrap_or_default();
    }
    let trainee = load(&checkpoint("bert-mean"), Task::Dense).unwrap();
    let moved =
        trainee.parameters().iter().find(|p| p.name().ends_with("layer.1.output.dense.bias")).unwrap();
    let _ = tch::no_grad(|| moved.tensor().fill_(0.25));
    trainee.save(&dir.path().join("model.safetensors")).unwrap();

    let again = load(dir.path(), Task::Dense).unwrap();
    for (before, after) in trainee.parameters().iter().zip(again.parameters()) {
        assert_eq!(before.name(), after.name());
        assert_eq!(rows(&before.tensor()), rows(&after.tensor()), "{}", before.name());
    }
    let stored = |dir: &Path| {
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
        let mut names: Vec<String> =
            files.flat_map(|path| Tensor::read_safetensors(path).unwrap()).map(|(name, _)| name).collect();
        names.sort();
        names
    };
    assert_eq!(stored(dir.path()), stored(&checkpoint("bert-mean")));
}
