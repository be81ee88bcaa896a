//! A service that cannot do its work does not start, and says why.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::process::Command;

use tests::{checkpoint, program};

/// Exit status, and what was said.
#[track_caller]
fn check(binary: &str, arguments: &[&str], status: i32, parts: &[&str]) {
    let output = Command::new(program(binary)).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{said}");
    for part in parts {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn bad_settings_end_a_service_with_64() {
    check("beige-gateway", &[], 64, &["etcd"]);
    check("beige-gateway", &["--etcd", "127.0.0.1:1", "--grace", "soon"], 64, &["grace"]);
    check("beige-gateway", &["--etcd", "127.0.0.1:1", "--listen", "everywhere"], 64, &["listen"]);
    check("beige-worker", &["--etcd", "127.0.0.1:1"], 64, &["model"]);
    let model = checkpoint("bert-cls");
    check(
        "beige-worker",
        &["--etcd", "127.0.0.1:1", "--model", &model, "--device", "tpu"],
        64,
        &["device", "tpu"],
    );
    check("beige-worker", &["--etcd", "127.0.0.1:1", "--model", &model, "--threads", "0"], 64, &["threads"]);
}

#[test]
fn devices_that_no_rank_can_have_end_a_trainer_with_64() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let check = |devices: &str, part: &str| {
        let output = format!("{dir}/jobs");
        let arguments =
            ["serve", "--etcd", "127.0.0.1:1", "--data-root", dir, "--output", &output, "--devices", devices];
        check("beige-trainer", &arguments, 64, &["devices", part]);
    };
    check("tpu", "\"tpu\"");
    check("cpu,cuda:0", "the one or the other");
    check("cuda:99", "cuda:99 cannot be used");
}

#[test]
fn a_checkpoint_that_does_not_load_ends_a_worker_with_65() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(checkpoint("bert-cross")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let weights = dir.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let arguments = |model| {
        [
            "--etcd",
            "127.0.0.1:1",
            "--device",
            "cpu",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--model",
            model,
        ]
    };
    let model = dir.path().to_str().unwrap();
    check("beige-worker", &arguments(model), 65, &["model.safetensors"]);
    check("beige-worker", &arguments("/nowhere/at/all"), 65, &["/nowhere/at/all"]);
}
