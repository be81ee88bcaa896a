//! How far an output has come: what `--resume` starts from.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

use super::args::Job;
use super::calls::Answer;

/// A point up to which an output is complete. Kept as JSON beside it, and written only after the bytes it
/// vouches for are on the disk.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Mark {
    /// Format of this record.
    v: u32,
    /// What the vectors depend on besides the texts; see [`Job::settings`].
    pub(crate) settings: String,
    /// SHA-256 of the texts up to here.
    pub(crate) input_sha256: String,
    /// Texts whose vectors are complete.
    pub(crate) count: u64,
    /// Tokens of those texts.
    pub(crate) tokens: u64,
    /// Length of the output up to here, bytes.
    pub(crate) bytes: u64,
    /// Bytes of input read up to here.
    pub(crate) bytes_read: u64,
    /// The checkpoint that all vectors are of.
    pub(crate) provenance: Origin,
}

/// The checkpoint that made an output.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Origin {
    pub(crate) model: String,
    pub(crate) digest: String,
    pub(crate) epoch: u64,
    pub(crate) index_space: String,
    pub(crate) dimensions: usize,
}

impl Mark {
    /// The beginning of an output whose first answer has come.
    pub(crate) fn new(job: &Job, first: &Answer) -> Self {
        let from = first.provenance.clone();
        Self {
            v: 1,
            settings: job.settings.clone(),
            input_sha256: String::new(),
            count: 0,
            tokens: 0,
            bytes: 0,
            bytes_read: 0,
            provenance: Origin {
                model: from.model,
                digest: from.digest,
                epoch: from.epoch,
                index_space: from.index_space,
                dimensions: first.rows.shape.dimensions,
            },
        }
    }

    /// Moves past an answer.
    pub(crate) fn advance(&mut self, answer: &Answer) {
        self.count += answer.batch.texts.len() as u64;
        self.tokens += answer.tokens;
        self.input_sha256.clone_from(&answer.batch.input_sha256);
        self.bytes_read = answer.batch.bytes_read;
    }

    /// Reads a mark; nothing where there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Failure> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::Usage(format!("cannot read {}: {error}", path.display()))),
        };
        let broken = |fault: String| {
            let name = path.display();
            Failure::Usage(format!(
                "{name} is not a record of an interrupted output: {fault}; --overwrite begins anew"
            ))
        };
        let mark: Self = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if mark.v == 1 { Ok(Some(mark)) } else { Err(broken(format!("its version is {}", mark.v))) }
    }

    /// Replaces the mark at `path`, all or nothing, and waits until it is on the disk.
    pub(crate) fn save(&self, path: &Path) -> io::Result<()> {
        let fresh = PathBuf::from(format!("{}.new", path.display()));
        let mut file = File::create(&fresh)?;
        file.write_all(serde_json::to_string(self)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        sync_directory(path)
    }
}

/// Makes renames in the directory of `path` last.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn mark() -> Mark {
        let provenance = Origin {
            model: "mini".to_owned(),
            digest: "ab".to_owned(),
            epoch: 1,
            index_space: "ab".to_owned(),
            dimensions: 4,
        };
        let (settings, input_sha256) = ("s".to_owned(), "i".to_owned());
        Mark { v: 1, settings, input_sha256, count: 3, tokens: 12, bytes: 48, bytes_read: 9, provenance }
    }

    #[test]
    fn a_mark_is_read_back_as_it_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.npy.partial.json");
        assert_eq!(Mark::load(&path).unwrap(), None);
        mark().save(&path).unwrap();
        assert_eq!(Mark::load(&path).unwrap(), Some(mark()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_record_that_is_none_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        for text in ["", "{}", "{\"v\":1}"] {
            fs::write(&path, text).unwrap();
            assert!(Mark::load(&path).unwrap_err().to_string().contains("--overwrite begins anew"), "{text}");
        }
        Mark { v: 2, ..mark() }.save(&path).unwrap();
        assert!(Mark::load(&path).unwrap_err().to_string().contains("its version is 2"));
    }
}
