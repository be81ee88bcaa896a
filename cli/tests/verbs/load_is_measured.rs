//! `beige bench`, as far as the binary goes; the generator has tests of its own.

use std::fs;

use serde_json::json;

use crate::beige;
use crate::fake::{DIGEST, Fake};

#[test]
fn a_report_is_printed() {
    let (fake, directory) = (Fake::start(), tempfile::tempdir().unwrap());
    let corpus = directory.path().join("corpus.jsonl");
    fs::write(&corpus, "{\"text\":\"one\"}\n{\"text\":\"one two\"}\n").unwrap();
    let base = ["bench", "--corpus", corpus.to_str().unwrap(), "--warmup", "0.1", "--seconds", "2"];
    let closed = beige(&fake, &[&base[..], &["--concurrency", "3", "--batch", "2", "--json"]].concat());
    let report = closed.json().remove(0);
    assert_eq!((&report["mode"], &report["concurrency"]), (&json!("closed"), &json!(3)));
    assert_eq!((&report["model"], &report["digest"]), (&json!("mini"), &json!(DIGEST)));
    assert_eq!(report["texts"].as_u64().unwrap(), 2 * report["calls"].as_u64().unwrap());
    assert!(["p50", "p90", "p99", "p999", "max"].iter().all(|name| report["latency_ms"][name].is_number()));
    assert_eq!(report["errors"], json!({}));
    let open = beige(&fake, &[&base[..], &["--mode", "open", "--rate", "50"]].concat());
    assert!(
        open.stdout.contains("open loop, 50 calls/s asked for") && open.stdout.contains("p99.9"),
        "{open:?}"
    );
}

#[test]
fn a_run_without_answers_is_a_failure() {
    let (fake, directory) = (Fake::start(), tempfile::tempdir().unwrap());
    let corpus = directory.path().join("corpus.jsonl");
    fs::write(&corpus, "{\"text\":\"poison\"}\n").unwrap();
    let args = ["bench", "--corpus", corpus.to_str().unwrap(), "--warmup", "0", "--seconds", "0.2", "--json"];
    let ran = beige(&fake, &args);
    ran.failed(1, "inputs[0] is not to be had");
    assert!(ran.stdout.contains("\"INVALID_ARGUMENT\":"), "{ran:?}");
    beige(&fake, &["bench", "--corpus", "/nowhere"]).failed(2, "cannot read the corpus /nowhere");
}
