//! The binary, as an operator meets it when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_beige-worker")).args(arguments).output().unwrap()
}

#[track_caller]
fn check(arguments: &[&str], code: i32, part: &str) {
    let output = run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(part), "{said}");
    assert!(output.stdout.is_empty(), "no socket was opened");
}

#[test]
fn bad_settings_end_it_with_64_and_the_name_of_the_field() {
    check(&[], 64, "model: at least one is needed");
    check(&["--model", "a", "--cluster", "a/b"], 64, "cluster: ");
    check(&["--model", "a", "--etcd", "https://x y"], 64, "etcd: ");
    check(&["--model", "a", "--no-such-flag"], 64, "--no-such-flag");
    check(&["--model", "a", "--log", "worker=loud"], 64, "telemetry: ");
}

#[test]
fn a_directory_without_a_checkpoint_ends_it_with_65() {
    let directory = tempfile::tempdir().unwrap();
    let model = format!("odd={}", directory.path().display());
    check(&["--model", &model, "--device", "cpu"], 65, "model odd: ");
}

#[test]
fn help_is_no_failure() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("--max-queued-tokens"));
}
