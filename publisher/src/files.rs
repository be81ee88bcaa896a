//! Which files of a directory make up a checkpoint, and their hashes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use manifest::ManifestFile;

use crate::Failure;

/// Files that loaders look for by name, in the checkpoint and in the directories of its modules.
const NAMES: [&str; 16] = [
    "added_tokens.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors.index.json",
    "modules.json",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.txt",
];
/// The only form that weights have.
const WEIGHTS: &str = "safetensors";
/// Files that hold weights in a form that runs code when it is read.
const PICKLES: [&str; 5] = ["bin", "ckpt", "pkl", "pt", "pth"];
/// Any of these is a tokenizer.
const TOKENIZERS: [&str; 5] =
    ["sentencepiece.bpe.model", "spiece.model", "tokenizer.json", "tokenizer.model", "vocab.txt"];

/// The files of the checkpoint in `dir`, relative to it, ascending.
///
/// What no loader reads stays at home: notes, training state, other formats; pickles whatever they hold.
///
/// # Errors
/// [`Failure::NoCheckpoint`] where there is no checkpoint, and why.
pub fn find(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let shown = dir.display();
    if !dir.is_dir() {
        return Err(Failure::NoCheckpoint(format!("there is no directory {shown}")));
    }
    let mut found = BTreeSet::new();
    let mut pickle = None;
    for (name, path) in entries(dir)? {
        if path.is_dir() {
            // Modules of sentence-transformers have directories of their own, one below the checkpoint.
            let inside = entries(&path)?.into_iter().filter(|(name, path)| belongs(name) && path.is_file());
            found.extend(inside.map(|(inner, _)| PathBuf::from(&name).join(inner)));
        } else if belongs(&name) {
            found.insert(PathBuf::from(name));
        } else if extension_is(&name, &PICKLES) {
            pickle = Some(name);
        }
    }
    check(&found, pickle.as_deref()).map_err(|why| Failure::NoCheckpoint(format!("{shown} {why}")))?;
    Ok(found.into_iter().collect())
}

/// Names and paths in a directory, hidden ones aside; links are followed.
fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    let listed = || -> io::Result<Vec<_>> { fs::read_dir(dir)?.collect() };
    let entries = listed().with_context(|| format!("cannot read {}", dir.display()))?;
    let named = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, entry.path()));
    Ok(entries.into_iter().filter_map(named).filter(|(name, _)| !name.starts_with('.')).collect())
}

fn belongs(name: &str) -> bool {
    NAMES.contains(&name) || extension_is(name, &[WEIGHTS])
}

fn extension_is(name: &str, any: &[&str]) -> bool {
    Path::new(name).extension().is_some_and(|extension| any.iter().any(|it| extension == *it))
}

/// Says what a checkpoint lacks, to be read behind the directory's name.
fn check(found: &BTreeSet<PathBuf>, pickle: Option<&str>) -> Result<(), String> {
    let has = |name: &str| found.contains(Path::new(name));
    let weights = found.iter().any(|path| path.extension().is_some_and(|extension| extension == WEIGHTS));
    match pickle {
        _ if found.is_empty() && pickle.is_none() => {
            Err("holds no checkpoint: it has none of its files".to_owned())
        }
        _ if !has("config.json") => Err("has no config.json, so it holds no checkpoint".to_owned()),
        Some(pickle) if !weights => Err(format!(
            "has its weights in {pickle}, which may run code when it is read: save them as model.safetensors"
        )),
        None if !weights => Err("has no weights: no *.safetensors".to_owned()),
        _ if !TOKENIZERS.iter().any(|name| has(name)) => {
            Err("has no tokenizer: neither tokenizer.json nor vocab.txt".to_owned())
        }
        _ => Ok(()),
    }
}

/// Hashes `files` of `dir` one by one; `told` hears how many bytes are read so far. Blocks.
///
/// # Errors
/// [`Failure::Local`] where one cannot be read; [`Failure::NoCheckpoint`] where they make up none.
pub fn hash(dir: &Path, files: &[PathBuf], told: &impl Fn(u64)) -> Result<Vec<ManifestFile>, Failure> {
    let mut before = 0;
    let mut hashed = Vec::with_capacity(files.len());
    for file in files {
        let path = dir.join(file);
        let read = |bytes| {
            told(before + bytes);
            Ok(())
        };
        let (size, sha256) = fs::File::open(&path)
            .and_then(|open| manifest::hash_read(open, read))
            .with_context(|| format!("cannot read {}", path.display()))?;
        before += size;
        let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
        hashed.push(ManifestFile { path: parts.join("/"), sha256, size });
    }
    hashed.sort_by(|a, b| a.path.cmp(&b.path));
    manifest::check(&hashed).map_err(|error| Failure::NoCheckpoint(error.to_string()))?;
    Ok(hashed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    #[test]
    fn what_a_loader_reads_is_taken_and_nothing_else() {
        let dir = directory(&[
            "config.json",
            "model.safetensors",
            "modules.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "tokenizer.json",
            "README.md",
            "optimizer.pt",
            "pytorch_model.bin",
            "train.json",
            "onnx/model.onnx",
            ".git/config.json",
            ".hidden.safetensors",
            "checkpoint-500/global_step/config.json",
        ]);
        let taken = find(dir.path()).unwrap();
        let expected = [
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "config.json",
            "model.safetensors",
            "modules.json",
            "tokenizer.json",
        ];
        assert_eq!(taken, expected.map(PathBuf::from));
        let hashed = hash(dir.path(), &taken, &|_| ()).unwrap();
        assert_eq!(hashed, manifest::hash(dir.path(), taken).unwrap());
    }

    #[test]
    fn a_directory_without_a_checkpoint_is_refused_with_the_reason() {
        #[track_caller]
        fn check(files: &[&str], expected: &str) {
            let dir = directory(files);
            let refused = find(dir.path()).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        check(&[], "holds no checkpoint");
        check(&["README.md", "other/notes.txt"], "holds no checkpoint");
        check(&["model.safetensors", "tokenizer.json"], "no config.json");
        check(&["config.json", "tokenizer.json"], "no weights");
        check(
            &["config.json", "tokenizer.json", "pytorch_model.bin"],
            "pytorch_model.bin, which may run code",
        );
        check(&["config.json", "model.safetensors"], "no tokenizer");
        assert!(find(Path::new("/nowhere/at-all")).unwrap_err().to_string().contains("no directory"));
    }
}
