//! Runs of whole jobs, in processes of their own.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tch::Tensor;
use tempfile::TempDir;
use torch_ext::Store;

/// Far beyond what a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name).canonicalize().unwrap()
}

/// A job below `dir`, with dropout, as its checkpoint has it.
pub(crate) fn job(dir: &Path, more: &Value) -> PathBuf {
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

pub(crate) fn spawn(job: &Path, rank: usize, ranks: usize, port: u16) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beige-trainer"));
    command.arg("rank").arg(job).args(["--rank", &rank.to_string(), "--ranks", &ranks.to_string()]);
    command.args(["--store-port", &port.to_string(), "--timeout-seconds", "60"]);
    command.env("TORCH_CPP_LOG_LEVEL", "FATAL").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What becomes of a child, within the test's patience.
#[track_caller]
pub(crate) fn end(mut child: Child) -> Output {
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
pub(crate) fn run(job: &Path, ranks: usize) -> Vec<Value> {
    let port = Store::reserve_port().unwrap();
    let children: Vec<Child> = (0..ranks).map(|rank| spawn(job, rank, ranks, port)).collect();
    let outputs: Vec<Output> = children.into_iter().map(end).collect();
    for output in &outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let lines = String::from_utf8_lossy(&outputs[0].stdout).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Of what was told, the lines of one kind.
pub(crate) fn only(told: Vec<Value>, kind: &str) -> Vec<Value> {
    told.into_iter().filter(|line| line["kind"] == kind).collect()
}

/// A job below a directory of its own that two ranks were at, again and again: for each of `kills`, a rank and a step, that
/// rank was killed when rank 0 had told of the step. A process that falls asleep may kill too late; then all of it is done
/// anew.
#[track_caller]
pub(crate) fn killed(more: &Value, kills: &[(usize, u64)]) -> (TempDir, PathBuf) {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let job = job(dir.path(), more);
        if kills.iter().all(|&(victim, step)| is_killed_in_time(&job, victim, step)) {
            return (dir, job);
        }
    }
    panic!("ranks are always quicker than {kills:?}");
}

/// Runs two ranks and kills one when rank 0 has told of step `step`; the other ends with an error. False where the kill, or
/// the one before, came so late that the run was over, or beyond that step.
#[track_caller]
fn is_killed_in_time(job: &Path, victim: usize, step: u64) -> bool {
    let port = Store::reserve_port().unwrap();
    let mut children: Vec<Child> = (0..2).map(|rank| spawn(job, rank, 2, port)).collect();
    let lines = BufReader::new(children[0].stdout.take().unwrap()).lines().map_while(Result::ok);
    // The last line of a rank that was killed may be a part of one.
    let told = lines.filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    let mut steps = told.filter(|line| line["kind"] == "step");
    let found = steps.find(|line| line["step"].as_u64() >= Some(step));
    children[victim].kill().unwrap();
    let is_over = steps.last().or(found.clone()).is_none_or(|last| last["step"] == last["steps"]);
    let outputs: Vec<Output> = children.into_iter().map(end).collect();
    let noticed = !outputs[1 - victim].status.success();
    assert!(noticed || is_over, "rank {} did not notice", 1 - victim);
    noticed && found.is_some_and(|found| found["step"] == step)
}

pub(crate) fn weights(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("out/model/model.safetensors")).unwrap()
}

pub(crate) fn metric(line: &Value) -> f64 {
    line["metrics"]["ndcg_at_10"].as_f64().unwrap()
}

/// The questions as files of a data set below `dir`, each with its own passages judged. Characters that the vocabulary lacks
/// are left out: in training pairs are spelled out again, which puts other tokens in their place.
pub(crate) fn judged(dir: &Path) -> [PathBuf; 3] {
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
pub(crate) fn evaluate(model: &Path, [corpus, queries, qrels]: &[PathBuf; 3]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beige-trainer"));
    command.arg("evaluate").arg(model);
    command.arg("--corpus").arg(corpus).arg("--queries").arg(queries).arg("--qrels").arg(qrels);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
pub(crate) fn check_refused(more: &Value, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let output = end(spawn(&job(dir.path(), more), 0, 1, 0));
    let sentence = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for part in parts {
        assert!(sentence.contains(part), "no {part:?} in {sentence}");
    }
}

/// The tensors of a file, by name.
pub(crate) fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}
