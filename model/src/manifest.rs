//! What a checkpoint is made of, and the digest that names it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::LoadError;

/// Bytes read at a time while hashing: weights are not mapped for it, so they take no resident memory.
const CHUNK: usize = 1 << 20;

/// All that determines a checkpoint's answers. Two directories with equal manifests are the same checkpoint.
///
/// Fields are in alphabetical order, so that the serialised form is canonical.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Numbers per vector; 0 for a cross-encoder.
    pub dimensions: usize,
    /// Every file that is read, ascending by path.
    pub files: Vec<ManifestFile>,
    /// Longest input in tokens.
    pub max_tokens: usize,
    /// Whether vectors are normalised unless the caller says otherwise.
    pub normalize: bool,
    /// `cls`, `mean`, `last`; absent for a cross-encoder.
    pub pooling: Option<String>,
    /// Version of this format.
    pub v: u32,
}

/// One file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ManifestFile {
    /// Relative to the checkpoint, with `/`.
    pub path: String,
    /// Of its bytes, lower-case hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

impl Manifest {
    /// SHA-256 of the canonical form, 64 lower-case hexadecimal digits.
    ///
    /// # Panics
    /// Never: the manifest holds nothing that JSON cannot.
    #[must_use]
    pub fn digest(&self) -> String {
        let canonical = serde_json::to_vec(self).expect("strings and numbers serialise");
        hex(&Sha256::digest(canonical))
    }
}

/// Hashes `files`, given relative to `dir`.
pub(crate) fn hash(dir: &Path, mut files: Vec<PathBuf>) -> Result<Vec<ManifestFile>, LoadError> {
    files.sort();
    files.dedup();
    files
        .into_iter()
        .map(|file| {
            let path = dir.join(&file);
            let (size, sha256) = hash_file(&path).map_err(|source| LoadError::Read { path, source })?;
            let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
            Ok(ManifestFile { path: parts.join("/"), sha256, size })
        })
        .collect()
}

fn hash_file(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    let (mut hasher, mut size) = (Sha256::new(), 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, hex(&hasher.finalize()))),
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        for half in [byte >> 4, byte & 15] {
            text.push(char::from_digit(half.into(), 16).unwrap_or('0'));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_have_equal_digests() {
        let manifest = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("b"), text).unwrap();
            std::fs::write(dir.path().join("a"), "same").unwrap();
            let files = hash(dir.path(), vec!["b".into(), "a".into(), "b".into()]).unwrap();
            assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["a", "b"]);
            Manifest { dimensions: 4, files, max_tokens: 8, normalize: true, pooling: None, v: 1 }.digest()
        };
        assert_eq!(manifest("one"), manifest("one"));
        assert_ne!(manifest("one"), manifest("two"));
    }
}
