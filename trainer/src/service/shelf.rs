//! What a job names, as files: those of its objects are fetched, and lie in a directory of their own.
//!
//! A job that has begun keeps what it fetched, and a record of it: whichever attempt goes on with it reads the same bytes,
//! or none.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store::{Object, ObjectError, Place, Source};
use tokio::runtime::Handle;
use uuid::Uuid;

use super::root::{Found, Roots};
use crate::checkpoint;

/// The record of what was fetched.
const RECORD: &str = "objects.json";
/// Ends of names of what a checkpoint consists of; other formats of the same weights are left where they are.
const OF_A_MODEL: [&str; 5] = ["json", "txt", "model", "safetensors", "pt"];

/// What a field may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A file of examples, or a directory with some.
    Examples,
    /// A file.
    File,
    /// The directory of a checkpoint.
    Model,
}

/// How long what is fetched stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    /// As long as this.
    Short,
    /// As long as the job.
    Long,
}

/// What was fetched for one place.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fetched {
    /// The file, or the directory with the files, below the shelf.
    path: PathBuf,
    files: Vec<File>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct File {
    object: Object,
    /// Below the shelf.
    path: PathBuf,
    sha256: String,
}

/// A job's files. Blocks: not for a thread of the runtime.
#[derive(Debug)]
pub struct Shelf<'a> {
    roots: &'a Roots,
    dir: PathBuf,
    stay: Stay,
    /// By URL; of a job that goes on, those of before.
    fetched: BTreeMap<String, Fetched>,
    runtime: Handle,
}

impl<'a> Shelf<'a> {
    /// The files of a job that begins or goes on, below its directory.
    ///
    /// # Errors
    /// A sentence, where the record of what was fetched cannot be read.
    pub fn of_job(roots: &'a Roots, job: &Path) -> Result<Self, String> {
        let dir = Self::below(job);
        let record = dir.join(RECORD);
        let fetched = match fs::read(&record) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", record.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(format!("{}: {error}", record.display())),
        };
        Ok(Self { roots, dir, stay: Stay::Long, fetched, runtime: Handle::current() })
    }

    /// Files to be looked at for a moment, in a directory of their own below `around`.
    #[must_use]
    pub fn to_look(roots: &'a Roots, around: &Path) -> Self {
        let dir = around.join(Uuid::new_v4().to_string());
        Self { roots, dir, stay: Stay::Short, fetched: BTreeMap::new(), runtime: Handle::current() }
    }

    /// Where the files of a job lie that has `job` for its directory.
    #[must_use]
    pub fn below(job: &Path) -> PathBuf {
        job.join("data")
    }

    /// The file or directory that `named` means, fetched if it is not here.
    ///
    /// # Errors
    /// A sentence.
    pub fn find(&mut self, named: &Path, wanted: Wanted) -> Result<PathBuf, String> {
        let place = match self.roots.find(named)? {
            Found::Here(path) => return Ok(path),
            Found::Away(place) => place,
        };
        let fetched = self.fetch(&place, wanted).map_err(|error| {
            let whole: &dyn Error = &error;
            tracing::warn!(error = whole, url = place.url(), "data are not fetched");
            error.to_string()
        })?;
        let path = self.dir.join(&fetched.path);
        self.fetched.insert(place.url(), fetched);
        Ok(path)
    }

    /// What was fetched, by where it lies; of a job that has begun, it is written down.
    ///
    /// # Errors
    /// A sentence.
    pub fn finish(&self) -> Result<BTreeMap<PathBuf, String>, String> {
        if self.stay == Stay::Long && !self.fetched.is_empty() {
            let staged = self.dir.join(".staged");
            checkpoint::write(&staged, &checkpoint::json(&self.fetched))
                .map_err(|error| error.to_string())?;
            let record = self.dir.join(RECORD);
            fs::rename(&staged, &record).map_err(|error| format!("{}: {error}", record.display()))?;
        }
        let mut names = BTreeMap::new();
        for (url, Fetched { path, files }) in &self.fetched {
            names.insert(self.dir.join(path), url.clone());
            names.extend(files.iter().map(|file| (self.dir.join(&file.path), file.object.url.clone())));
        }
        Ok(names)
    }

    fn fetch(&self, place: &Place, wanted: Wanted) -> Result<Fetched, Unfetched> {
        if let Some(before) = self.fetched.get(&place.url()) {
            before.files.iter().try_for_each(|file| self.have(file))?;
            return Ok(before.clone());
        }
        let name = if place.name().is_empty() { "all" } else { place.name() };
        let path = Path::new(&self.fetched.len().to_string()).join(name);
        let objects = self.runtime.block_on(objects(place, wanted))?;
        let fetch = |(below, object): (Option<PathBuf>, Object)| {
            let path = below.map_or_else(|| path.clone(), |below| path.join(below));
            let sha256 = self.copy(place.source(), &object, &self.dir.join(&path))?;
            Ok(File { object, path, sha256 })
        };
        let files = objects.into_iter().map(fetch).collect::<Result<Vec<_>, Unfetched>>()?;
        Ok(Fetched { path, files })
    }

    /// Has the very bytes that a job began with.
    fn have(&self, file: &File) -> Result<(), Unfetched> {
        let (path, url) = (self.dir.join(&file.path), file.object.url.clone());
        if manifest::hash_file(&path).is_ok_and(|(_, sha256)| sha256 == file.sha256) {
            return Ok(());
        }
        let source = self.roots.source_of(&url).ok_or_else(|| Unfetched::Outside(url.clone()))?;
        match self.copy(source, &file.object, &path) {
            Ok(sha256) if sha256 == file.sha256 => Ok(()),
            Ok(_) | Err(Unfetched::Store(ObjectError::Changed(_))) => Err(Unfetched::Changed(url)),
            Err(error) => Err(error),
        }
    }

    fn copy(&self, source: &Source, object: &Object, to: &Path) -> Result<String, Unfetched> {
        let copies = self.roots.copies.as_ref().ok_or_else(|| Unfetched::Outside(object.url.clone()))?;
        Ok(self.runtime.block_on(copies.copy(source, object, to))?)
    }
}

impl Drop for Shelf<'_> {
    fn drop(&mut self) {
        if self.stay == Stay::Short
            && let Err(error) = checkpoint::clear(&self.dir)
        {
            tracing::warn!(%error, "links to fetched objects stay");
        }
    }
}

/// Why something was not fetched.
#[derive(Debug, thiserror::Error)]
enum Unfetched {
    #[error(transparent)]
    Store(#[from] ObjectError),
    #[error("{0} has changed since the job began, and what was fetched of it then is gone")]
    Changed(String),
    #[error("{0} is not below a data URI of the trainer")]
    Outside(String),
    #[error("{0} has no file below it that ends in .jsonl or .json")]
    NoExamples(String),
}

/// The objects that `place` stands for, each with its name below it, if it is not the object itself.
async fn objects(place: &Place, wanted: Wanted) -> Result<Vec<(Option<PathBuf>, Object)>, Unfetched> {
    let ends_in = |path: &Path, ends: &[&str]| {
        path.extension().and_then(|end| end.to_str()).is_some_and(|end| ends.contains(&end))
    };
    let examples = ["jsonl", "json"];
    let is_object = match wanted {
        Wanted::File => true,
        Wanted::Examples => ends_in(Path::new(place.name()), &examples),
        Wanted::Model => false,
    };
    if is_object {
        return Ok(vec![(None, place.object().await?)]);
    }
    let mut found = place.below().await?;
    if wanted == Wanted::Model {
        found.retain(|(below, _)| ends_in(below, &OF_A_MODEL));
    } else {
        // As of a directory: its own files, and not those of directories in it.
        found.retain(|(below, _)| below.components().count() == 1 && ends_in(below, &examples));
        if found.is_empty() {
            return Err(Unfetched::NoExamples(place.url()));
        }
    }
    Ok(found.into_iter().map(|(below, object)| (Some(below), object)).collect())
}
