//! Where the initial model of a trace lies.

use std::fs;
use std::path::{Path, PathBuf};

use super::hyperparameters::Hyperparameters;
use crate::error::TrainError;

const WEIGHTS: &str = "model.safetensors";

/// Where to look for what a trace refers to.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Directory that `initial_model` and `train_data` are relative to; the one around the trace's if not given.
    pub root: Option<PathBuf>,
    /// Directory of checkpoints, one a directory, among which weights are known by their SHA-256.
    pub checkpoints: Option<PathBuf>,
}

/// The files that a replay starts from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// `config.json` of the trace's model.
    pub(super) config: PathBuf,
    /// Directory with the weights.
    pub(super) weights: PathBuf,
    /// Directory with the tokenizer, where there is one.
    pub(super) tokenizer: Option<PathBuf>,
    /// What data files are relative to.
    pub(super) root: PathBuf,
}

impl Source {
    /// Finds the weights by their hash: in the trace's own model directory, else among the checkpoints.
    pub(super) fn find(dir: &Path, settings: &Hyperparameters, places: &Places) -> Result<Self, TrainError> {
        let around = dir.canonicalize().map_err(|source| TrainError::io(dir, source))?;
        let around = around.parent().unwrap_or(&around).to_owned();
        let root = places.root.clone().unwrap_or(around);
        let model = root.join(&settings.initial_model);
        let mut candidates = vec![model.clone()];
        candidates.extend(places.checkpoints.as_deref().map(directories).unwrap_or_default());
        for weights in candidates {
            let hash = manifest::hash_file(&weights.join(WEIGHTS));
            if hash.is_ok_and(|(_, found)| found == settings.initial_model_sha256) {
                let has_tokenizer = |dir: &PathBuf| {
                    ["tokenizer.json", "vocab.txt"].iter().any(|name| dir.join(name).exists())
                };
                let tokenizer = [&model, &weights].into_iter().find(|dir| has_tokenizer(dir)).cloned();
                let config = [&model, &weights].map(|dir| dir.join("config.json"));
                let config = config.iter().find(|path| path.exists()).unwrap_or(&config[0]).clone();
                return Ok(Self { config, weights, tokenizer, root });
            }
        }
        let sha256 = &settings.initial_model_sha256;
        let path = model.join(WEIGHTS);
        Err(TrainError::format(
            &path,
            format!("weights of sha256 {sha256} are neither here nor among the checkpoints"),
        ))
    }
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(of) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
}
