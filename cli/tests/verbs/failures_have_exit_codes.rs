//! Exit codes, sentences, and which refusals are waited out.

use std::fs;
use std::process::Stdio;

use crate::fake::Fake;
use crate::{Ran, beige, beige_with, command};

#[test]
fn who_is_not_there_gives_69() {
    let fake = Fake::start();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for verb in [&["models"][..], &["status"], &["embed", "a"], &["tokens", "a"], &["rerank", "-q", "a", "b"]]
    {
        let ran = beige(&fake, &[verb, &["--target", &gone]].concat());
        ran.failed(69, &format!("cannot reach http://{gone}: Connection refused"));
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
}

#[test]
fn a_refusal_gives_1_and_names_the_text() {
    let fake = Fake::start();
    let args = ["embed", "--batch-texts", "2"];
    beige_with(&fake, &args, "a\nb\nc\npoison\n")
        .failed(1, "inputs[1] is not to be had: it is text 4 of the input");
    beige(&fake, &["embed", "--model", "other", "a"]).failed(1, "error: there is no model other");
    beige(&fake, &["models", "get", "other"]).failed(1, "error: there is no model other");
    beige(&fake, &["rerank", "--query", "q", "a", "poison"]).failed(1, "documents[1] is not to be had");
}

#[test]
fn wrong_usage_gives_2() {
    let fake = Fake::with_models(&["base", "mini"]);
    let several = "the server has several models, say which with --model: base, mini";
    beige(&fake, &["embed", "a"]).failed(2, several);
    beige(&fake, &["embed", "--model", "mini", "--output", "x.parquet", "a"])
        .failed(2, ".jsonl, .npy or .safetensors");
    beige(&fake, &["embed", "--model", "mini", "--resume", "a"]).failed(2, "--output");
    beige(&fake, &["embed", "--model", "mini", "--input", "/nowhere/x", "--json"])
        .failed(2, "cannot read /nowhere/x");
    beige(&fake, &["embed", "--model", "mini", "--input", "x", "a"])
        .failed(2, "both as arguments and with --input");
    beige(&fake, &["embed", "--model", "mini", ""]).failed(2, "text 1 of the arguments is empty");
    beige(&fake, &["embed", "--model", "mini"]).failed(2, "there are no texts");
    beige(&fake, &["bench", "--corpus", "x", "--mode", "open"]).failed(2, "--rate");
    beige(&fake, &["status", "--target", "ftp://example.test"]).failed(2, "http:// and https:// are spoken");
}

#[test]
fn a_first_call_that_fails_leaves_no_file() {
    let (fake, directory) = (Fake::start(), tempfile::tempdir().unwrap());
    let output = directory.path().join("out.npy");
    beige(&fake, &["embed", "--output", output.to_str().unwrap(), "poison"]).failed(1, "text 1 of the input");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_busy_server_is_waited_for() {
    let fake = Fake::start();
    fake.state().refusals = 3;
    assert_eq!(beige(&fake, &["embed", "a"]).json().len(), 1);
    fake.state().refusals = 1;
    assert_eq!(beige(&fake, &["rerank", "--query", "q", "a", "--json"]).json().len(), 1);
    fake.state().refusals = usize::MAX;
    beige(&fake, &["embed", "--patience", "0", "a"]).failed(1, "the cluster is busy");
}

#[test]
fn a_trace_is_carried_on() {
    let fake = Fake::start();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    assert!(command(&fake, &["embed", "a"]).env("TRACEPARENT", trace).output().unwrap().status.success());
    assert_eq!(fake.state().traceparent.as_deref(), Some(trace));
    assert!(command(&fake, &["embed", "a"]).env("TRACEPARENT", "junk").output().unwrap().status.success());
    assert_eq!(fake.state().traceparent, None);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let fake = Fake::start();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command(&fake, &["embed", "a", "b"]).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}
