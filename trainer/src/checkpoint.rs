//! A run's state on disk, whole or not at all.
//!
//! A checkpoint is a directory `step-N` that holds weights, or adapters where they are what is trained, the optimiser's moments, and where every rank's data stands.
//! It is written beside its place, synced, its manifest last, and then renamed: what is there by its name is complete.
//! Dropout needs no state: its seeds are those of the step.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use manifest::ManifestFile;
use model::Trainee;
use serde::{Deserialize, Serialize};

use crate::data::Position;
use crate::error::TrainError;
use crate::evaluate::Metrics;
use crate::optimizer::Optimizer;
use crate::scaler::Scaler;

const WEIGHTS: &str = "model.safetensors";
const ADAPTERS: &str = "adapters.safetensors";
const MOMENTS: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";

/// The best model so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After how many optimiser steps.
    pub step: u64,
    /// By the job's metric.
    pub metric: f64,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    /// After how many optimiser steps.
    pub step: u64,
    /// How good the model is.
    pub metrics: Metrics,
    /// Whether it is the best so far.
    pub best: bool,
    /// How long it took.
    pub seconds: f64,
}

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimiser steps taken.
    pub step: u64,
    /// Micro steps taken.
    pub micro_step: u64,
    /// Of each rank's data.
    pub positions: Vec<Position>,
    /// The best of the models that were evaluated.
    #[serde(default)]
    pub best: Option<Best>,
    /// All evaluations so far: whoever was told of them may have died.
    #[serde(default)]
    pub evaluations: Vec<Evaluated>,
    /// What the loss is multiplied by, where products are of half precision.
    #[serde(default)]
    pub scaler: Option<Scaler>,
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    kept: usize,
}

impl Checkpoints {
    /// Those below `dir`, of which the newest `kept` are kept, and the best.
    #[must_use]
    pub fn below(dir: &Path, kept: usize) -> Self {
        Self { dir: dir.to_owned(), kept: kept.max(1) }
    }

    /// The newest step of which there is a checkpoint with all its bytes.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn newest(&self) -> Result<Option<u64>, TrainError> {
        let mut steps = self.steps()?;
        steps.reverse();
        for step in steps {
            match self.check(step) {
                Ok(()) => return Ok(Some(step)),
                Err(error) => {
                    tracing::warn!(step, %error, "a checkpoint is damaged, the one before it is taken");
                }
            }
        }
        Ok(None)
    }

    /// Directory with the weights of a step.
    #[must_use]
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// Writes a checkpoint. On any error the ones before it are as they were.
    ///
    /// # Errors
    /// [`TrainError::Io`] names the file that could not be written.
    pub fn write(&self, state: &State, model: &Trainee, optimizer: &Optimizer) -> Result<(), TrainError> {
        let staged = self.dir.join(format!(".staged-{:08}", state.step));
        clear(&staged)?;
        fs::create_dir_all(&staged).map_err(|source| TrainError::io(&staged, source))?;
        let weights = if model.is_adapted() { ADAPTERS } else { WEIGHTS };
        if model.is_adapted() {
            model.save_adapters(&staged.join(ADAPTERS))?;
        } else {
            model.save(&staged.join(WEIGHTS))?;
        }
        optimizer.save(&staged.join(MOMENTS))?;
        write(&staged.join(STATE), &json(state))?;
        let files = [weights, MOMENTS, STATE];
        for file in files {
            sync(&staged.join(file))?;
        }
        let hashed = manifest::hash(&staged, files.map(PathBuf::from).to_vec());
        let hashed = hashed.map_err(|(path, source)| TrainError::io(&path, source))?;
        write(&staged.join(MANIFEST), &json(&hashed))?;
        place(&staged, &self.path(state.step))?;
        self.forget_old(state.best.map(|best| best.step))
    }

    /// Reads the adapters of a step into a model that has some.
    ///
    /// # Errors
    /// [`TrainError::Model`] names the file.
    pub fn read_adapters(&self, step: u64, model: &Trainee) -> Result<(), TrainError> {
        Ok(model.read_adapters(&self.path(step).join(ADAPTERS))?)
    }

    /// Reads the state of a step, and the optimiser's moments into `optimizer`.
    ///
    /// # Errors
    /// [`TrainError::Io`], [`TrainError::Format`].
    pub fn read(&self, step: u64, optimizer: &mut Optimizer) -> Result<State, TrainError> {
        let dir = self.path(step);
        optimizer.load(&dir.join(MOMENTS))?;
        read_json(&dir.join(STATE))
    }

    fn check(&self, step: u64) -> Result<(), TrainError> {
        let dir = self.path(step);
        let recorded: Vec<ManifestFile> = read_json(&dir.join(MANIFEST))?;
        let files = recorded.iter().map(|file| PathBuf::from(&file.path)).collect();
        let found = manifest::hash(&dir, files).map_err(|(path, source)| TrainError::io(&path, source))?;
        if found == recorded {
            Ok(())
        } else {
            Err(TrainError::format(&dir, "its files are not those it was written with"))
        }
    }

    fn steps(&self) -> Result<Vec<u64>, TrainError> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let failed = |source| TrainError::io(&self.dir, source);
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            steps.extend(name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    fn forget_old(&self, best: Option<u64>) -> Result<(), TrainError> {
        let steps = self.steps()?;
        let old = &steps[..steps.len().saturating_sub(self.kept)];
        old.iter().filter(|step| Some(**step) != best).try_for_each(|step| clear(&self.path(*step)))
    }
}

/// Puts a directory that was written aside into its place, its contents on disk before its name.
///
/// # Errors
/// [`TrainError::Io`].
pub fn place(staged: &Path, to: &Path) -> Result<(), TrainError> {
    let around = to.parent().unwrap_or(to);
    sync(staged)?;
    clear(to)?;
    fs::rename(staged, to).map_err(|source| TrainError::io(to, source))?;
    sync(around)
}

/// Writes a file, and sees it on disk.
///
/// # Errors
/// [`TrainError::Io`].
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    fs::write(path, bytes).map_err(|source| TrainError::io(path, source))?;
    sync(path)
}

/// Sees a file, or the names in a directory, on disk.
///
/// # Errors
/// [`TrainError::Io`].
pub fn sync(path: &Path) -> Result<(), TrainError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|source| TrainError::io(path, source))
}

/// Removes a directory that may be there.
///
/// # Errors
/// [`TrainError::Io`].
pub fn clear(dir: &Path) -> Result<(), TrainError> {
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(TrainError::io(dir, source)),
        _ => Ok(()),
    }
}

/// JSON for people.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("our own types are JSON");
    text.push(b'\n');
    text
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, TrainError> {
    let text = fs::read(path).map_err(|source| TrainError::io(path, source))?;
    serde_json::from_slice(&text).map_err(|error| TrainError::format(path, error))
}
