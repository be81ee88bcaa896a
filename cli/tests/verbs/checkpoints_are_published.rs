//! `beige models publish`: what is sent, what is not, and what comes after an interruption.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::fake::Fake;
use crate::names_are_changed::swap;
use crate::{Ran, beige};
use proto::v1::SwapState;

/// A directory with a checkpoint of two and a half chunks, and with other things.
fn checkpoint() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let weights: Vec<u8> = (0..2_500_000_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    for (path, data) in [
        ("config.json", b"{}".as_slice()),
        ("model.safetensors", &weights),
        ("modules.json", b"[]"),
        ("1_Pooling/config.json", b"{ }"),
        ("tokenizer.json", b"{  }"),
        ("vocab.txt", b"{}"), // The same bytes as the configuration.
        ("README.md", b"notes"),
        ("optimizer.pt", b"a pickle"),
    ] {
        fs::write(dir.path().join(path), data).unwrap();
    }
    dir
}

fn publish(fake: &Fake, dir: &Path, more: &[&str]) -> Ran {
    let args = ["models", "publish", dir.to_str().unwrap(), "--alias", "mini"];
    beige(fake, &[&args, more].concat())
}

#[test]
fn the_files_that_loaders_read_are_sent_once() {
    let (fake, dir) = (Fake::start(), checkpoint());
    let more = ["--parent", "1111", "--metric", "ndcg_at_10=0.61", "--pooling", "mean", "--json"];
    let object = publish(&fake, dir.path(), &more).json().remove(0);
    let paths: Vec<_> =
        object["version"]["files"].as_array().unwrap().iter().map(|file| file["path"].clone()).collect();
    let expected = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
        "vocab.txt",
    ];
    assert_eq!(paths, expected);
    assert_eq!((&object["version"]["parent"], &object["swap"]), (&json!("1111"), &json!(null)));
    assert_eq!(object["version"]["evaluation"], json!({ "ndcg_at_10": 0.61 }));
    {
        let state = fake.state();
        assert!(state.control.asked[0].contains("pooling: \"mean\""), "{:?}", state.control.asked);
        let sizes: Vec<_> = state.control.blobs.values().map(Vec::len).collect();
        assert_eq!(sizes.len(), 5, "files of equal bytes are sent once");
        let weights = fs::read(dir.path().join("model.safetensors")).unwrap();
        assert!(state.control.blobs.values().any(|blob| *blob == weights));
        assert_eq!(state.control.received, 2_500_000 + 2 + 2 + 3 + 4);
    }
    let again = publish(&fake, dir.path(), &[]);
    assert_eq!(again.code, Some(0), "{again:?}");
    let digest = object["version"]["digest"].as_str().unwrap();
    assert!(again.stdout.starts_with(&format!("mini@{digest} is published")), "{again:?}");
    assert!(again.stderr.contains("on trial: worker-0 loading"), "{again:?}");
    assert_eq!(fake.state().control.received, 2_500_000 + 2 + 2 + 3 + 4, "nothing was sent again");
}

#[test]
fn what_was_cut_off_goes_on() {
    let (fake, dir) = (Fake::start(), checkpoint());
    fake.state().control.cut = Some(1_100_000);
    assert_eq!(publish(&fake, dir.path(), &[]).code, Some(0));
    assert_eq!(fake.state().control.received, 2_500_000 + 2 + 2 + 3 + 4);
    let other = Fake::start();
    other.state().control.cut = Some(1_100_000);
    publish(&other, dir.path(), &["--patience", "0"]).failed(1, "the gateway leaves");
    assert_eq!(publish(&other, dir.path(), &[]).code, Some(0));
    assert_eq!(other.state().control.received, 2_500_000 + 2 + 2 + 3 + 4);
}

#[test]
fn what_the_worker_finds_is_told() {
    let (fake, dir) = (Fake::start(), checkpoint());
    fake.state().control.refusal = Some("model.safetensors has no tensor embeddings.weight".to_owned());
    publish(&fake, dir.path(), &[]).failed(1, "error: model.safetensors has no tensor embeddings.weight");
    assert!(fake.state().control.versions.is_empty());
}

#[test]
fn a_directory_that_holds_no_checkpoint_is_refused_before_anything_is_sent() {
    let fake = Fake::start();
    let empty = tempfile::tempdir().unwrap();
    publish(&fake, empty.path(), &[]).failed(2, "holds no checkpoint");
    publish(&fake, Path::new("/nowhere/x"), &[]).failed(2, "there is no directory /nowhere/x");
    let pickled = checkpoint();
    let weights = pickled.path().join("model.safetensors");
    fs::rename(weights, pickled.path().join("pytorch_model.bin")).unwrap();
    publish(&fake, pickled.path(), &[]).failed(2, "run code when it is read");
    publish(&fake, checkpoint().path(), &["--canary", "5"]).failed(2, "--promote is not");
    assert_eq!(fake.state().control.received, 0);
}

#[test]
fn what_the_publisher_computed_goes_with_it() {
    let (fake, dir) = (Fake::start(), checkpoint());
    let file = dir.path().join("golden.jsonl");
    let line = |text: &str, numbers: &[f32]| json!({ "text": text, "embedding": numbers }).to_string();
    fs::write(&file, [line("a text", &[0.6, 0.8]), line("another", &[1.0, 0.0])].join("\n")).unwrap();
    let golden = ["--golden", file.to_str().unwrap()];
    let object = publish(&fake, dir.path(), &[&golden[..], &["--json"]].concat()).json().remove(0);
    assert_eq!(object["version"]["golden_from"], json!("publisher"));
    let asked = fake.state().control.asked.remove(0);
    assert!(asked.contains("text: \"a text\"") && asked.contains("text: \"another\""), "{asked}");
    let digest = object["version"]["digest"].as_str().unwrap();
    let shown = beige(&fake, &["models", "show", &format!("mini@{digest}")]);
    assert!(shown.stdout.contains("golden inputs  3, from the publisher\n"), "{shown:?}");

    let (fake, received) = (Fake::start(), |fake: &Fake| fake.state().control.received);
    fs::write(&file, [line("a text", &[0.6, 0.8]), line("another", &[1.0])].join("\n")).unwrap();
    let sentence = format!("{}, line 2: its embedding has 1 numbers, and the first 2", file.display());
    publish(&fake, dir.path(), &golden).failed(2, &sentence);
    publish(&fake, dir.path(), &["--golden", "/nowhere/x"]).failed(1, "cannot read /nowhere/x");
    fs::write(&file, line("a text", &[0.6, 0.8])).unwrap();
    let config = json!({ "architectures": ["BertModel"], "hidden_size": 384 });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let why = "line 1: its embedding has 2 numbers, and those of the checkpoint 384";
    publish(&fake, dir.path(), &golden).failed(2, &format!("{}, {why}", file.display()));
    assert_eq!(received(&fake), 0, "nothing was sent");
}

#[test]
fn it_may_be_promoted_at_once() {
    let (fake, dir) = (Fake::start(), checkpoint());
    fake.state().control.script = vec![swap(SwapState::Requested), swap(SwapState::Committed)];
    let ran = publish(&fake, dir.path(), &["--promote", "--canary", "2.5", "--deadline", "30"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.ends_with("mini means 222222222222 from epoch 2 on\n"), "{ran:?}");
    let asked = fake.state().control.asked.join("\n");
    assert!(asked.contains("per_mille: 25") && asked.contains("deadline_seconds: Some(30)"), "{asked}");
    fake.state().control.script = vec![swap(SwapState::Requested), swap(SwapState::Aborted)];
    let ran = publish(&fake, dir.path(), &["--promote", "--json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let object: serde_json::Value = serde_json::from_str(ran.stdout.trim()).unwrap();
    assert_eq!((&object["swap"]["state"], &object["version"]["model"]), (&json!("aborted"), &json!("mini")));
    assert!(ran.stderr.contains("worker-1: memory: 2 GiB are missing"), "{ran:?}");
}
