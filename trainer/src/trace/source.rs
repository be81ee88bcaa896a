//! Where the initial model of a trace lies.

use std::fs;
use std::path::{Path, PathBuf};

use super::hyperparameters::Hyperparameters;
use crate::error::TrainError;

const WEIGHTS: &str = "model.safetensors";
/// Where initial models lie beside traces.
const MODELS: &str = "models";

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
        let model = model(&root, &settings.initial_model);
        let mut candidates = vec![model.clone()];
        candidates.extend(places.checkpoints.as_deref().map(directories).unwrap_or_default());
        candidates.extend(directories(&root.join(MODELS)));
        for weights in candidates {
            let path = weights.join(WEIGHTS);
            let is_it = match &settings.initial_model_sha256 {
                Some(wanted) => manifest::hash_file(&path).is_ok_and(|(_, found)| found == *wanted),
                None => weights == model && path.exists(),
            };
            if is_it {
                let has_tokenizer = |dir: &PathBuf| {
                    ["tokenizer.json", "vocab.txt"].iter().any(|name| dir.join(name).exists())
                };
                let tokenizer = [&model, &weights].into_iter().find(|dir| has_tokenizer(dir)).cloned();
                let config = [&model, &weights].map(|dir| dir.join("config.json"));
                let config = config.iter().find(|path| path.exists()).unwrap_or(&config[0]).clone();
                return Ok(Self { config, weights, tokenizer, root });
            }
        }
        let wanted = settings.initial_model_sha256.as_deref().map(|sha256| format!(" of sha256 {sha256}"));
        let wanted = wanted.unwrap_or_default();
        let reason = format!("weights{wanted} are neither here nor among the checkpoints");
        Err(TrainError::format(&model.join(WEIGHTS), reason))
    }
}

/// The directory of the initial model: where the record says, or, where that is a place of another machine, the one of
/// that name here.
fn model(root: &Path, said: &Path) -> PathBuf {
    let there = root.join(said);
    let name = said.file_name().unwrap_or_default();
    let here = [root.join(MODELS).join(name), root.join(name)];
    let all = std::iter::once(there.clone()).chain(here);
    all.into_iter().find(|dir| dir.join("config.json").exists()).unwrap_or(there)
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(of) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
}
