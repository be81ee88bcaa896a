//! `beige models`, `status`, `tokens` and `rerank`: for people and as JSON.

use serde_json::json;

use crate::fake::{DIGEST, Fake};
use crate::{beige, beige_with};

#[test]
fn models_are_listed() {
    let fake = Fake::with_models(&["mini", "reranker"]);
    let lines = beige(&fake, &["models"]).stdout;
    let rows: Vec<Vec<&str>> = lines.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["mini", "embedder", "111111111111", "1", "8", "512", "mean", "f32", "2"]);
    assert_eq!(rows[2], ["reranker", "cross-encoder", "111111111111", "1", "-", "512", "-", "f32", "2"]);
    let object = beige(&fake, &["models", "--json"]).json().remove(0);
    assert_eq!(
        (&object["models"][0]["name"], &object["models"][0]["digest"]),
        (&json!("mini"), &json!(DIGEST))
    );
    let one = beige(&fake, &["models", "get", "mini", "--json"]).json().remove(0);
    assert_eq!((&one["dimensions"], &one["others"]), (&json!(8), &json!([])));
    assert!(beige(&fake, &["models", "get", "mini"]).stdout.contains(DIGEST));
}

#[test]
fn workers_are_listed() {
    let fake = Fake::start();
    let lines = beige(&fake, &["status"]).stdout;
    let row = lines.lines().nth(1).unwrap();
    for part in ["worker-0", "127.0.0.1:7000", "serving", "cpu (fake)", "mini@111111111111 (f32)"] {
        assert!(row.contains(part), "{row}");
    }
    for part in ["12", "3,457", "89,012", "200 MiB"] {
        assert!(row.contains(part), "{row}");
    }
    let object = beige(&fake, &["status", "--json"]).json().remove(0);
    let worker = &object["workers"][1];
    assert_eq!((&worker["id"], &worker["models"][0]["digest"]), (&json!("worker-1"), &json!(DIGEST)));
}

#[test]
fn tokens_are_shown_or_counted() {
    let fake = Fake::start();
    assert_eq!(beige(&fake, &["tokens", "two words"]).stdout, "2  two:0 words:1\n");
    assert_eq!(beige_with(&fake, &["tokens", "--count"], "a b\nc\n").stdout, "4\n3\n");
    let object = beige(&fake, &["tokens", "--json", "a"]).json().remove(0);
    assert_eq!((&object["digest"], &object["sequences"][0][0]["text"]), (&json!(DIGEST), &json!("a")));
}

#[test]
fn documents_are_put_in_order() {
    let fake = Fake::with_models(&["mini", "reranker"]);
    let documents = "nothing of it\nthe red fox\na red car\n";
    let object =
        beige_with(&fake, &["rerank", "--query", "red fox", "--top-n", "2", "--json"], documents).json();
    let expected = json!([
        { "index": 1, "score": 2.0, "text": "the red fox" },
        { "index": 2, "score": 1.0, "text": "a red car" },
    ]);
    assert_eq!(object[0]["results"], expected);
    assert_eq!((&object[0]["model"], &object[0]["score_form"]), (&json!("reranker"), &json!("sigmoid")));
    let raw = beige(&fake, &["rerank", "--query", "red", "--raw", "--json", "a"]).json().remove(0);
    assert_eq!(raw["score_form"], json!("raw"));
    let table = beige(&fake, &["rerank", "--query", "red fox", "blue", "red \u{1b}[31mfox"]);
    let best: Vec<&str> = table.stdout.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(best[..3], ["1", "1.0000", "1"]);
    assert!(
        !table.stdout.contains('\u{1b}') && table.stderr.contains("cross-encoder by reranker@111111111111")
    );
}
