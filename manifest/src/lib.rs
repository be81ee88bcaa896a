//! What a checkpoint is made of, and the digest that names it.
//!
//! A [`Manifest`] lists every file that determines a checkpoint's answers, with its size and SHA-256, and what an
//! operator may have said in place of the files. Its [canonical form](Manifest::canonical) is JSON with its fields in
//! alphabetical order and no white space; the SHA-256 of that is the checkpoint's digest. What is learnt of a
//! checkpoint later (its evaluation, its golden vectors, its index space) is deliberately not part of it: two
//! directories with the same bytes are the same checkpoint, whoever looks at them.
//!
//! What comes from elsewhere is [parsed](Manifest::parse), never trusted: a path cannot leave its directory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes read at a time while hashing: weights are not mapped for it, so they take no resident memory.
const CHUNK: usize = 1 << 20;
/// The version of the format that this release writes and reads.
const VERSION: u32 = 1;
/// Hexadecimal digits of a SHA-256.
const HEX_DIGITS: usize = 64;
/// Files that a checkpoint may have: the largest models have some hundred shards.
const MOST_FILES: usize = 4096;
/// Bytes of a path.
const LONGEST_PATH: usize = 512;

/// All that determines a checkpoint's answers. Two directories with equal manifests are the same checkpoint.
///
/// Fields are in alphabetical order, so that the serialised form is canonical.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Relative to the checkpoint, with `/`.
    pub path: String,
    /// Of its bytes, lower-case hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// Why a manifest is not taken.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// It is not the JSON object it should be.
    #[error("the manifest is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It is of a release that this one does not know.
    #[error("the manifest is of version {0}, and this release reads version {VERSION}")]
    Version(u32),
    /// There is nothing, or too much.
    #[error("the manifest lists {0} files; a checkpoint has from 1 to {MOST_FILES}")]
    Count(usize),
    /// A path leads out of the checkpoint, or is not of the one form it should have.
    #[error("the path {0:?} is not a plain path below the checkpoint")]
    Path(String),
    /// Files are not in order, or one is there twice.
    #[error("the path {0:?} is not behind the one before it")]
    Order(String),
    /// A hash is not one.
    #[error("the hash {sha256:?} of {path:?} is not 64 lower-case hexadecimal digits")]
    Hash {
        /// The file.
        path: String,
        /// What is given.
        sha256: String,
    },
}

impl Manifest {
    /// A manifest of `files`, already in order.
    #[must_use]
    pub fn new(
        files: Vec<ManifestFile>,
        dimensions: usize,
        max_tokens: usize,
        pooling: Option<String>,
        normalize: bool,
    ) -> Self {
        Self { dimensions, files, max_tokens, normalize, pooling, v: VERSION }
    }

    /// The form that is hashed: JSON without white space.
    ///
    /// # Panics
    /// Never: the manifest holds nothing that JSON cannot.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers serialise")
    }

    /// SHA-256 of the canonical form, 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        hex(&Sha256::digest(self.canonical()))
    }

    /// Reads a manifest that somebody else wrote.
    ///
    /// # Errors
    /// [`InvalidManifest`] names what is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, InvalidManifest> {
        let manifest: Self = serde_json::from_slice(json)?;
        if manifest.v != VERSION {
            return Err(InvalidManifest::Version(manifest.v));
        }
        check(&manifest.files)?;
        Ok(manifest)
    }

    /// Whether it is made of `files` alone. They may be more: what no loader reads is part of no manifest.
    #[must_use]
    pub fn is_of(&self, files: &[ManifestFile]) -> bool {
        self.files.iter().all(|file| files.contains(file))
    }

    /// Bytes of all files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// Whether `files` can be those of a checkpoint: plain paths in order, and hashes that are hashes.
///
/// # Errors
/// [`InvalidManifest`] names the first that cannot.
pub fn check(files: &[ManifestFile]) -> Result<(), InvalidManifest> {
    if files.is_empty() || files.len() > MOST_FILES {
        return Err(InvalidManifest::Count(files.len()));
    }
    if let Some(file) = files.iter().find(|file| !is_plain(&file.path)) {
        return Err(InvalidManifest::Path(file.path.clone()));
    }
    if let Some(pair) = files.windows(2).find(|pair| pair[0].path >= pair[1].path) {
        return Err(InvalidManifest::Order(pair[1].path.clone()));
    }
    match files.iter().find(|file| !is_digest(&file.sha256)) {
        Some(ManifestFile { path, sha256, size: _ }) => {
            Err(InvalidManifest::Hash { path: path.clone(), sha256: sha256.clone() })
        }
        None => Ok(()),
    }
}

/// Whether `path` is relative, with `/` between parts that are neither empty nor `.` nor `..` and hold no backslash
/// and no control character: joined to a directory it stays below it, on any system.
#[must_use]
pub fn is_plain(path: &str) -> bool {
    let part_is_plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && !part.contains(|c: char| c == '\\' || c.is_control())
    };
    path.len() <= LONGEST_PATH && path.split('/').all(part_is_plain)
}

/// Whether `text` is a SHA-256 as it is written here: 64 lower-case hexadecimal digits.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    text.len() == HEX_DIGITS && text.as_bytes().iter().all(hex)
}

/// SHA-256 over the hashes of some of a manifest's files, in their order: equal exactly where all of these are.
#[must_use]
pub fn fingerprint<'a>(files: impl IntoIterator<Item = &'a ManifestFile>) -> String {
    let mut hasher = Sha256::new();
    for file in files {
        hasher.update(&file.sha256);
        hasher.update(b"\n");
    }
    hex(&hasher.finalize())
}

/// Hashes `files`, given relative to `dir`; answers them in order, each once. Blocks for as long as reading takes.
///
/// # Errors
/// The first file that cannot be read, and why.
pub fn hash(dir: &Path, mut files: Vec<PathBuf>) -> Result<Vec<ManifestFile>, (PathBuf, io::Error)> {
    files.sort();
    files.dedup();
    let mut hashed = files
        .into_iter()
        .map(|file| {
            let path = dir.join(&file);
            let (size, sha256) = hash_file(&path).map_err(|source| (path, source))?;
            let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
            Ok(ManifestFile { path: parts.join("/"), sha256, size })
        })
        .collect::<Result<Vec<_>, _>>()?;
    // Paths compare part by part, texts byte by byte.
    hashed.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(hashed)
}

/// Size and SHA-256 of a file. Blocks.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> io::Result<(u64, String)> {
    hash_read(File::open(path)?, |_| Ok(()))
}

/// Size and SHA-256 of all that `from` yields. `told` hears now and then how many bytes it was so far, and may end it.
/// Blocks.
///
/// # Errors
/// When it cannot be read, and whatever `told` says.
pub fn hash_read(
    mut from: impl io::Read,
    mut told: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<(u64, String)> {
    let mut buffer = vec![0; CHUNK];
    let (mut hasher, mut size) = (Sha256::new(), 0);
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok((size, hex(&hasher.finalize()))),
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
                told(size)?;
            }
        }
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
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
    use proptest::prelude::*;

    use super::*;

    fn manifest(files: Vec<ManifestFile>) -> Manifest {
        Manifest::new(files, 4, 8, None, true)
    }

    fn file(path: &str) -> ManifestFile {
        ManifestFile { path: path.into(), sha256: "0".repeat(64), size: 1 }
    }

    #[test]
    fn equal_bytes_have_equal_digests() {
        let digest = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("b"), text).unwrap();
            std::fs::write(dir.path().join("a"), "same").unwrap();
            let files = hash(dir.path(), vec!["b".into(), "a".into(), "b".into()]).unwrap();
            assert_eq!(files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["a", "b"]);
            manifest(files).digest()
        };
        assert_eq!(digest("one"), digest("one"));
        assert_ne!(digest("one"), digest("two"));
    }

    #[test]
    fn a_manifest_read_back_is_the_one_written() {
        let written = manifest(vec![file("1_Pooling/config.json"), file("config.json")]);
        let read = Manifest::parse(written.canonical().as_bytes()).unwrap();
        assert_eq!((read.digest(), &read), (written.digest(), &written));
    }

    #[test]
    fn a_manifest_may_leave_out_what_nobody_reads() {
        let manifest = manifest(vec![file("a"), file("b")]);
        assert!(manifest.is_of(&manifest.files));
        assert!(manifest.is_of(&[file("README.md"), file("a"), file("b")]));
        assert!(!manifest.is_of(&[file("a")]));
        assert!(!manifest.is_of(&[file("a"), ManifestFile { size: 2, ..file("b") }]));
    }

    #[test]
    fn the_canonical_form_is_in_alphabetical_order() {
        let json = manifest(vec![file("a")]).canonical();
        let zeros = "0".repeat(64);
        assert_eq!(
            json,
            format!(
                r#"{{"dimensions":4,"files":[{{"path":"a","sha256":"{zeros}","size":1}}],"max_tokens":8,"normalize":true,"pooling":null,"v":1}}"#
            )
        );
    }

    #[test]
    fn paths_stay_below_the_checkpoint() {
        for path in ["a", "a/b.json", "1_Pooling/config.json", "..a/b", "ä/b"] {
            assert!(is_plain(path), "{path}");
            assert!(check(&[file(path)]).is_ok(), "{path}");
        }
        let long = "a".repeat(LONGEST_PATH + 1);
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../../b",
            "a//b",
            "a/",
            "./a",
            "a\\..\\b",
            "a\0b",
            &long,
        ] {
            assert!(!is_plain(path), "{path}");
            assert!(matches!(check(&[file(path)]), Err(InvalidManifest::Path(_))), "{path}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_name() {
        #[track_caller]
        fn check(json: &str, expected: &str) {
            let refused = Manifest::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        }
        let with = |files: &[ManifestFile], v: u32| {
            let manifest = Manifest { v, ..manifest(files.to_vec()) };
            manifest.canonical()
        };
        check("", "malformed");
        check("{}", "malformed");
        check(&with(&[file("a")], 1).replace("\"v\":1", "\"v\":1,\"extra\":2"), "malformed");
        check(&with(&[file("a")], 2), "version 2");
        check(&with(&[], 1), "0 files");
        check(&with(&[file("b"), file("a")], 1), "\"a\"");
        check(&with(&[file("a"), file("a")], 1), "\"a\"");
        check(&with(&[ManifestFile { sha256: "A".repeat(64), ..file("a") }], 1), "hexadecimal");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&bytes);
        }

        #[test]
        fn a_plain_path_never_leaves_its_directory(path in "[a./\\\\]{0,12}") {
            if is_plain(&path) {
                let parts = Path::new(&path).components();
                prop_assert!(parts.into_iter().all(|part| matches!(part, std::path::Component::Normal(_))), "{path}");
            }
        }
    }
}
