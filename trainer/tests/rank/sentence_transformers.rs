//! What was trained is read by sentence-transformers as it is: the same pooling, window and prompts, the same vectors.
//!
//! The library is large, so `make test` leaves this out; `make test-reference` gets it.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use model::{Checkpoint, Device, Model, Overrides, Precision, Truncation};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{golden, job, run};

const TEXTS: [&str; 4] = [
    "Where does the fern grow?",
    "A harbour.",
    "In the shade of old walls, where the stones are damp and nobody walks, ferns grow from every joint between them.",
    "",
];

fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference").join(name)
}

/// What sentence-transformers makes of `input`.
fn asked<T: DeserializeOwned>(arguments: &[&OsStr], input: &Value) -> T {
    let made = Command::new(reference("environment")).arg("flagembedding").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut command = Command::new(String::from_utf8(made.stdout).unwrap().trim());
    command.arg(reference("sentence_vectors.py")).args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The vectors that sentence-transformers makes, behind a prompt of the directory's if it is named.
fn theirs(model: &Path, prompt: Option<&str>) -> Vec<Vec<f64>> {
    let arguments: Vec<&OsStr> = std::iter::once(model.as_os_str()).chain(prompt.map(OsStr::new)).collect();
    asked(&arguments, &json!(TEXTS))
}

/// Those that a worker makes.
fn ours(model: &Path, prompt: &str) -> Vec<Vec<f64>> {
    let checkpoint = Checkpoint::open(model, &Overrides::default()).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let model = Model::load(&checkpoint, Device::Cpu, Precision::F32).unwrap();
    let row = |text: &&str| {
        let sequence = tokenizer.encode(&format!("{prompt}{text}"), Truncation::End).unwrap();
        let rows = model.run(&[&sequence]).unwrap();
        let row = rows.iter().next().unwrap();
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        row.iter().map(|x| f64::from(*x) / length).collect()
    };
    TEXTS.iter().map(row).collect()
}

#[track_caller]
fn check_same(found: &[Vec<f64>], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len());
    for ((found, expected), text) in found.iter().zip(expected).zip(TEXTS) {
        assert_eq!(found.len(), expected.len());
        let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{worst} of {text:?}");
    }
}

#[test]
#[ignore = "it wants sentence-transformers: make test-reference"]
fn sentence_transformers_makes_the_same_vectors() {
    for (checkpoint, pooling) in
        [("xlmr-cls", "cls"), ("xlmr-cls", "mean"), ("xlmr-cls", "last_token"), ("bert-mean", "mean")]
    {
        let dir = tempfile::tempdir().unwrap();
        let more = json!({"model": golden(&format!("checkpoints/{checkpoint}")), "max_steps": 2,
            "sentence_pooling_method": pooling, "negatives_cross_device": false});
        run(&job(dir.path(), &more), 1);
        let model = dir.path().join("out/model");
        check_same(&theirs(&model, None), &ours(&model, ""));
        check_same(&theirs(&model, Some("query")), &ours(&model, "Ask: "));
        check_same(&theirs(&model, Some("document")), &ours(&model, ""));
    }
}

#[test]
#[ignore = "it wants sentence-transformers: make test-reference"]
fn sentence_transformers_gives_the_same_scores() {
    for name in ["xlmr-cross", "bert-cross", "xlmr-cls", "bert-cls", "bert-mean"] {
        let dir = tempfile::tempdir().unwrap();
        let more = json!({"kind": "reranker", "model": golden(&format!("checkpoints/{name}")),
            "max_steps": 2, "negatives_cross_device": false, "query_instruction_for_retrieval": null});
        run(&job(dir.path(), &more), 1);
        let model = dir.path().join("out/model");

        let pairs: Vec<[&str; 2]> = TEXTS[1..3].iter().map(|text| [TEXTS[0], text]).collect();
        let theirs: Vec<f64> = asked(&[OsStr::new("--scores"), model.as_os_str()], &json!(pairs));
        let checkpoint = Checkpoint::open(&model, &Overrides::default()).unwrap();
        let (tokenizer, loaded) =
            (checkpoint.tokenizer().unwrap(), Model::load(&checkpoint, Device::Cpu, Precision::F32).unwrap());
        for ([query, document], expected) in pairs.iter().zip(&theirs) {
            let sequence = tokenizer.encode_pair(query, document, Truncation::End).unwrap();
            let rows = loaded.run(&[&sequence]).unwrap();
            let found = f64::from(rows.iter().next().unwrap()[0]);
            assert!((found - expected).abs() < 1e-5, "{name}: {found} {expected}");
        }
        assert_eq!(theirs.len(), 2);
    }
}
