//! What a rank computes on.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::process::{Command, Output};

/// What becomes of a rank that is alone on `device`.
fn run(job: &Path, device: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beige-trainer"));
    command.arg("rank").arg(job).args(["--device", device]).output().unwrap()
}

#[test]
fn a_device_that_is_not_there_is_named() {
    for (device, code, part) in
        [("cuda:99", 65, "cuda:99 cannot be used"), ("tpu", 2, "device is auto, cpu, cuda or cuda:N")]
    {
        // It is looked for before the job is read.
        let output = run(Path::new("/nowhere/job.json"), device);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(part), "{said}");
    }
}

#[cfg(feature = "cuda-tests")]
#[test]
fn a_run_on_cuda_goes_on_from_its_checkpoint() {
    use serde_json::{Value, json};

    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").canonicalize().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let steps = |max: u64| -> Vec<u64> {
        let path = dir.path().join("job.json");
        let job = json!({
            "kind": "embedder", "model": golden.join("checkpoints/xlmr-cls"), "output_dir": dir.path().join("out"),
            "train_data": [golden.join("traces/data/questions.jsonl")], "train_group_size": 3,
            "query_max_len": 16, "passage_max_len": 32, "per_device_train_batch_size": 2,
            "gradient_cache_chunk": 3, "learning_rate": 1e-3, "max_steps": max, "save_steps": 2,
        });
        std::fs::write(&path, job.to_string()).unwrap();
        let output = run(&path, "cuda:0");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        let told = told.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let step = |line: Value| {
            assert!(line["loss"].as_f64().is_some_and(f64::is_finite), "{line}");
            line["step"].as_u64().unwrap()
        };
        told.filter(|line| line["kind"] == "step").map(step).collect()
    };
    assert_eq!(steps(3), [1, 2, 3]);
    assert_eq!(steps(6), [3, 4, 5, 6]);
}
