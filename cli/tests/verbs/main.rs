//! The binary `beige` against a whole fake, and `beige up` over a real etcd and fake services.

#![allow(clippy::unwrap_used)] // A test file: clippy knows only functions marked `#[test]`.

mod a_cluster_can_be_looked_at;
mod a_local_cluster_is_supervised;
mod a_swap_is_seen_as_a_table;
mod an_interrupted_embed_resumes;
mod callers_show_who_they_are;
mod checkpoints_are_published;
mod documents_are_true;
mod failures_have_exit_codes;
mod jobs_are_submitted_and_watched;
mod load_is_measured;
mod names_are_changed;
mod terminal;
mod vectors_go_to_files;

#[path = "../../../bench/tests/fake/mod.rs"]
#[allow(dead_code, unused_imports)] // Other tests use the rest.
mod fake;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use fake::Fake;
use serde_json::Value;

/// A command with nothing of the caller's environment that `beige` would heed.
fn command(fake: &Fake, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beige"));
    command
        .args(args)
        .env("BEIGE_TARGET", fake.url())
        .env_remove("TRACEPARENT")
        .env_remove("BEIGE_KEY")
        .stdin(Stdio::null());
    command
}

/// What came of a run.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    /// The object or objects on standard output of a run that succeeded.
    #[track_caller]
    fn json(&self) -> Vec<Value> {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Checks a failure: its code, and a part of the one sentence.
    #[track_caller]
    fn failed(&self, code: i32, part: &str) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.starts_with("error: ") || self.stderr.contains("\nerror: "), "{self:?}");
        assert!(self.stderr.contains(part), "{self:?}");
    }
}

fn beige(fake: &Fake, args: &[&str]) -> Ran {
    command(fake, args).output().unwrap().into()
}

/// Runs with `input` on standard input.
fn beige_with(fake: &Fake, args: &[&str], input: &str) -> Ran {
    let mut command = command(fake, args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}
