//! A directory that cannot be served is refused with a sentence that names the file, and the tensor.

#![allow(clippy::unwrap_used)] // Tests, helpers included.

use std::fs;
use std::path::{Path, PathBuf};

use model::{Checkpoint, Device, LoadError, ManifestFile, Model, Overrides, Pooling, Precision};
use tempfile::TempDir;

fn copy(name: &str) -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints").join(name);
    let to = tempfile::tempdir().unwrap();
    copy_dir(&from, to.path());
    to
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn load(dir: &Path, overrides: &Overrides) -> Result<Model, LoadError> {
    let checkpoint = Checkpoint::open(dir, overrides)?;
    checkpoint.tokenizer()?;
    Model::load(&checkpoint, Device::Cpu, Precision::F32)
}

#[track_caller]
fn check(name: &str, spoil: impl FnOnce(&Path), parts: &[&str]) {
    let dir = copy(name);
    spoil(dir.path());
    let sentence = load(dir.path(), &Overrides::default()).unwrap_err().to_string();
    for part in parts {
        assert!(sentence.contains(part), "no {part:?} in {sentence:?}");
    }
    assert!(!sentence.contains('\n'), "{sentence}");
}

/// Replaces text of a file.
fn edit(dir: &Path, file: &str, from: &str, to: &str) {
    let path = dir.join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// Replaces bytes of the weight file's header by as many others.
fn edit_header(dir: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let path = dir.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
    let at = at.unwrap_or_else(|| panic!("no {from}"));
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(path, bytes).unwrap();
}

fn resize(path: PathBuf, change: i64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let size = i64::try_from(file.metadata().unwrap().len()).unwrap() + change;
    file.set_len(u64::try_from(size).unwrap()).unwrap();
}

#[test]
fn files_that_were_hashed_before_make_the_same_checkpoint() {
    let dir = copy("bert-mean");
    let (first, plain) = (Checkpoint::open(dir.path(), &Overrides::default()).unwrap(), Overrides::default());
    let mut hashes = first.manifest().files.clone();
    hashes.push(ManifestFile { path: "README.md".into(), sha256: "0".repeat(64), size: 1 });
    let again = Checkpoint::open_verified(dir.path(), &plain, &hashes).unwrap();
    assert_eq!((again.digest(), again.manifest()), (first.digest(), first.manifest()));
    assert_eq!(again.tokenizer_sha256(), first.tokenizer_sha256());

    hashes.retain(|file| file.path != "config.json");
    let sentence = Checkpoint::open_verified(dir.path(), &plain, &hashes).unwrap_err().to_string();
    assert!(sentence.contains("config.json: it is not among"), "{sentence}");
}

#[test]
fn a_model_is_in_the_first_kind_of_number_that_its_judge_approves_of() {
    let dir = copy("bert-mean");
    let checkpoint = Checkpoint::open(dir.path(), &Overrides::default()).unwrap();
    let place = (Device::Cpu, Precision::Auto);
    let approved = Model::load_judged(&checkpoint, place, |model| match model.dtype() {
        "f32" => Ok(7),
        other => Err(format!("{other} will not do")),
    });
    assert_eq!(approved.unwrap().unwrap().1, 7);
    let refused = Model::load_judged(&checkpoint, place, |_| Err::<(), _>("never".to_owned()));
    assert_eq!(refused.unwrap().unwrap_err(), "never");
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let tensor = "encoder.layer.1.output.dense.weight";
    let renamed = "encoder.layer.1.output.dense.weighs";
    check("bert-cls", |dir| edit_header(dir, tensor, renamed), &["model.safetensors", tensor, "missing"]);
    check(
        "bert-cls",
        |dir| edit(dir, "config.json", "\"intermediate_size\": ", "\"intermediate_size\": 1"),
        &["model.safetensors", "encoder.layer.0.intermediate.dense", "shape", "wants"],
    );
    check("bert-cls", |dir| resize(dir.join("model.safetensors"), -4), &["model.safetensors"]);
    check("bert-cls", |dir| resize(dir.join("model.safetensors"), 4), &["model.safetensors"]);
    check("bert-cls", |dir| edit_header(dir, "{\"", "[\""), &["model.safetensors"]);
    check("bert-cls", |dir| fs::write(dir.join("model.safetensors"), b"PK").unwrap(), &["model.safetensors"]);
    check("bert-cls", |dir| fs::remove_file(dir.join("model.safetensors")).unwrap(), &["model.safetensors"]);
    check(
        "bert-mean",
        |dir| fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap(),
        &["model-00002-of-00002.safetensors"],
    );
    check(
        "bert-mean",
        |dir| edit(dir, "model.safetensors.index.json", "model-00002", "../model-00002"),
        &["model.safetensors.index.json", "not a file beside it"],
    );
}

#[test]
fn configurations_that_are_not_known_are_named() {
    check(
        "bert-cls",
        |dir| edit(dir, "config.json", "BertModel", "ElectraModel"),
        &["config.json", "ElectraModel", "not known"],
    );
    check("bert-cls", |dir| fs::write(dir.join("config.json"), "{").unwrap(), &["config.json"]);
    check("bert-cls", |dir| fs::remove_file(dir.join("config.json")).unwrap(), &["config.json"]);
    check(
        "bert-cls",
        |dir| edit(dir, "config.json", "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"swish\""),
        &["config.json", "swish"],
    );
    check(
        "bert-cls",
        |dir| edit(dir, "modules.json", "1_Pooling", "../1_Pooling"),
        &["modules.json", "leads out"],
    );
    check("bert-cross", |dir| edit(dir, "config.json", "\"0\": ", "\"1\": \"b\", \"0\": "), &["2 labels"]);
}

#[test]
fn a_directory_without_a_tokenizer_is_refused() {
    check(
        "bert-cls",
        |dir| fs::remove_file(dir.join("tokenizer.json")).unwrap(),
        &["no tokenizer", "vocab.txt"],
    );
    check("bert-cls", |dir| fs::write(dir.join("tokenizer.json"), "{}").unwrap(), &["tokenizer.json"]);
}

#[test]
fn pooling_is_never_guessed() {
    check("bert-cls", |dir| fs::remove_file(dir.join("modules.json")).unwrap(), &["modules.json", "pooling"]);

    let dir = copy("bert-cls");
    let digest = |overrides: &Overrides| {
        let checkpoint = Checkpoint::open(dir.path(), overrides).unwrap();
        (checkpoint.digest().to_owned(), checkpoint.card().pooling)
    };
    let (own, pooling) = digest(&Overrides::default());
    assert_eq!(pooling, Some(Pooling::Cls));
    let (other, pooling) = digest(&Overrides { pooling: Some(Pooling::Mean), ..Overrides::default() });
    assert_eq!(pooling, Some(Pooling::Mean));
    assert_ne!(own, other, "another pooling makes other vectors");
}

#[test]
fn a_window_beyond_the_positions_is_refused() {
    let dir = copy("xlmr-cls");
    let overrides = Overrides { max_tokens: Some(100_000), ..Overrides::default() };
    let sentence = Checkpoint::open(dir.path(), &overrides).unwrap_err().to_string();
    assert!(sentence.contains("max_tokens=100000") && sentence.contains("positions"), "{sentence}");
}
