//! Whole runs, in processes of their own: killed and resumed they end where undisturbed ones end, to the bit.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use model::{Checkpoint, Device, Model, Overrides, Pooling, Precision, Truncation};
use serde_json::{Value, json};

/// Far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name).canonicalize().unwrap()
}

/// A job below `dir`, with dropout, as its checkpoint has it.
fn job(dir: &Path, more: &Value) -> PathBuf {
    let mut job = json!({
        "kind": "embedder",
        "model": golden("checkpoints/xlmr-cls"),
        "output_dir": dir.join("out"),
        "train_data": [golden("traces/data/questions.jsonl")],
        "train_group_size": 3,
        "query_max_len": 16,
        "passage_max_len": 32,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_cache_chunk": 3,
        "negatives_cross_device": true,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "max_steps": 8,
        "save_steps": 2,
        "query_instruction_for_retrieval": "Ask: ",
        "shuffle_ratio": 0.5,
    });
    for (field, value) in more.as_object().unwrap() {
        job[field] = value.clone();
    }
    let path = dir.join("job.json");
    fs::write(&path, job.to_string()).unwrap();
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(job: &Path, rank: usize, ranks: usize, port: u16) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beige-trainer"));
    command.arg("rank").arg(job).args(["--rank", &rank.to_string(), "--ranks", &ranks.to_string()]);
    command.args(["--store-port", &port.to_string(), "--timeout-seconds", "60"]);
    command.env("TORCH_CPP_LOG_LEVEL", "FATAL").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What becomes of a child, within the test's patience.
#[track_caller]
fn end(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it does not end: {:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// Runs all ranks to the end; what rank 0 printed.
#[track_caller]
fn run(job: &Path, ranks: usize) -> Vec<Value> {
    let port = free_port();
    let children: Vec<Child> = (0..ranks).map(|rank| spawn(job, rank, ranks, port)).collect();
    let outputs: Vec<Output> = children.into_iter().map(end).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let lines = String::from_utf8_lossy(&outputs[0].stdout).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Of what was told, the lines of one kind.
fn only(told: Vec<Value>, kind: &str) -> Vec<Value> {
    told.into_iter().filter(|line| line["kind"] == kind).collect()
}

/// Runs two ranks and kills one when rank 0 has told of step `step`. The other ends with an error.
#[track_caller]
fn run_and_kill(job: &Path, victim: usize, step: u64) {
    let port = free_port();
    let mut children: Vec<Child> = (0..2).map(|rank| spawn(job, rank, 2, port)).collect();
    let mut lines = BufReader::new(children[0].stdout.take().unwrap()).lines();
    let is_step = |line: &Value| line["kind"] == "step" && line["step"] == step;
    let reached = lines.any(|line| is_step(&serde_json::from_str(&line.unwrap()).unwrap()));
    assert!(reached, "it ended before step {step}");
    children[victim].kill().unwrap();
    let outputs: Vec<Output> = children.into_iter().map(end).collect();
    let other = &outputs[1 - victim];
    assert!(!other.status.success(), "rank {} did not notice", 1 - victim);
}

fn weights(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("out/model/model.safetensors")).unwrap()
}

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

    let killed = tempfile::tempdir().unwrap();
    let job = job(killed.path(), &json!({}));
    run_and_kill(&job, 1, 1);
    run_and_kill(&job, 1, 3);
    run_and_kill(&job, 0, 5);
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

fn metric(line: &Value) -> f64 {
    line["metrics"]["ndcg_at_10"].as_f64().unwrap()
}

#[test]
fn the_best_model_is_kept_and_the_same_however_many_ranks_evaluate() {
    let more = json!({"evaluation": {"split": 0.3}, "eval_steps": 2, "max_steps": 6, "save_steps": 100,
        "save_total_limit": 1, "load_best_model_at_end": true, "negatives_cross_device": false,
        "learning_rate": 2e-2});
    let dir = tempfile::tempdir().unwrap();
    let told = run(&job(dir.path(), &more), 1);
    let evaluated = only(told.clone(), "evaluation");
    let steps: Vec<_> = evaluated.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [0, 2, 4, 6]);
    let best = evaluated.iter().rev().find(|line| line["best"] == true).unwrap();
    assert!(evaluated.iter().all(|line| metric(line) <= metric(best)), "{evaluated:?}");
    let finished = told.last().unwrap();
    assert_eq!((&finished["kind"], &finished["step"]), (&json!("finished"), &best["step"]));
    assert!(Path::new(finished["model"].as_str().unwrap()).join("model.safetensors").is_file());

    // Before the first step all ranks have the same model.
    let apart = tempfile::tempdir().unwrap();
    let by_two = only(run(&job(apart.path(), &more), 2), "evaluation");
    assert!((metric(&by_two[0]) - metric(&evaluated[0])).abs() < 1e-9, "{by_two:?}");
}

/// The questions as files of a data set below `dir`, each with its own passages judged. Characters that the vocabulary lacks
/// are left out: in training pairs are spelled out again, which puts other tokens in their place.
fn judged(dir: &Path) -> [PathBuf; 3] {
    let lines = fs::read_to_string(golden("traces/data/questions.jsonl")).unwrap();
    let words = |text: &Value| text.as_str().unwrap().replace(|c: char| "0123456789J".contains(c), "");
    let [mut corpus, mut queries, mut qrels] = [const { Vec::new() }; 3];
    for (at, line) in lines.lines().enumerate() {
        let row: Value = serde_json::from_str(line).unwrap();
        queries.push(json!({"id": format!("q{at}"), "text": words(&row["query"])}).to_string());
        for (side, grade) in [("pos", 2), ("neg", 0)] {
            for (place, text) in row[side].as_array().unwrap().iter().enumerate() {
                let id = format!("{at}-{side}-{place}");
                corpus.push(json!({"id": id, "text": words(text)}).to_string());
                qrels.push(format!("q{at}\t{id}\t{grade}"));
            }
        }
    }
    [("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels.tsv", qrels)].map(|(name, lines)| {
        fs::write(dir.join(name), lines.join("\n")).unwrap();
        dir.join(name)
    })
}

/// What `beige-trainer evaluate` prints of a checkpoint.
#[track_caller]
fn evaluate(model: &Path, [corpus, queries, qrels]: &[PathBuf; 3]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beige-trainer"));
    command.arg("evaluate").arg(model);
    command.arg("--corpus").arg(corpus).arg("--queries").arg(queries).arg("--qrels").arg(qrels);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
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
    let tensors = tch::Tensor::read_safetensors(trained.join("model.safetensors")).unwrap();
    let body: Vec<_> = tensors.into_iter().filter(|(name, _)| !name.contains("_linear.")).collect();
    tch::Tensor::write_safetensors(&body, model.join("model.safetensors")).unwrap();
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

    let tensors = |path: &Path| -> std::collections::BTreeMap<String, tch::Tensor> {
        tch::Tensor::read_safetensors(path).unwrap().into_iter().collect()
    };
    let initial = tensors(&golden("checkpoints/xlmr-cls").join("model.safetensors"));
    let trained = tensors(&dir.path().join("out/model/model.safetensors"));
    assert!(initial.keys().eq(trained.keys()));
    for (name, tensor) in &initial {
        let adapted = ["query.weight", "key.weight", "value.weight"].iter().any(|end| name.ends_with(end));
        let same = tensor.to_kind(tch::Kind::Float) == trained[name].to_kind(tch::Kind::Float);
        assert_eq!(same, !adapted, "{name}");
    }
    check_refused(&json!({"use_lora": true, "target_modules": ["q_proj"]}), &["q_proj"]);
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

#[track_caller]
fn check_refused(more: &Value, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let output = end(spawn(&job(dir.path(), more), 0, 1, 0));
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for part in parts {
        assert!(sentence.contains(part), "no {part:?} in {sentence}");
    }
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
