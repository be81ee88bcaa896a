//! Heads that a task needs and a checkpoint lacks, drawn anew: a reranker begins as an encoder, bge-m3 as XLM-RoBERTa.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Kind as Numbers, TchError, Tensor};

use crate::config::{Config, Family, Kind, read_json};
use crate::error::LoadError;
use crate::saved::{self, Saved};
use crate::trainee::Task;
use crate::weights::{self, HEADS, SINGLE, Weights};

/// The standard deviation of new weights where `config.json` names none, as in `transformers`.
const USUAL_RANGE: f64 = 0.02;
const CONFIG: &str = "config.json";

/// What `dir` lacks for `task`, for people; nothing where it has all.
///
/// # Errors
/// A [`LoadError`] where the files cannot be read.
pub fn lacking_heads(dir: &Path, task: Task) -> Result<Vec<&'static str>, LoadError> {
    Ok(match task {
        Task::Dense => Vec::new(),
        Task::Score => match Config::load(&dir.join(CONFIG))?.kind {
            Kind::Embedder => vec!["classifier"],
            Kind::CrossEncoder => Vec::new(),
        },
        Task::Unified => {
            let weights = Weights::open_for(dir, task)?;
            HEADS.into_iter().filter(|head| !weights.has(&format!("{head}.weight"))).collect()
        }
    })
}

/// Makes of the checkpoint `from` one with all heads of `task` in the directory `to`, which is empty. What changes is
/// written, what does not is linked to; answers the files written. Drawn is from libtorch's generator.
///
/// A classifier's weights have the deviation `initializer_range` and biases of 0, as `AutoModelForSequenceClassification`
/// of `transformers` draws them; bge-m3's heads lie within the root of their width, as `torch.nn.Linear` draws them.
///
/// # Errors
/// A [`LoadError`] that names the file.
pub fn complete_heads(from: &Path, task: Task, to: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let config = Config::load(&from.join(CONFIG))?;
    let lacking = lacking_heads(from, task)?;
    let has_all = lacking.is_empty();
    let written = match task {
        Task::Score if !has_all => classifier(from, &config, to)?.into(),
        Task::Unified => {
            lacking.into_iter().map(|head| unified(&config, head, to)).collect::<Result<_, _>>()?
        }
        Task::Dense | Task::Score => Vec::new(),
    };
    let replaced = if task == Task::Score && !has_all { weights::files(from)? } else { Vec::new() };
    let replaced: BTreeSet<_> = replaced.iter().map(|file| file.as_os_str()).collect();
    let failed = |source| LoadError::Read { path: from.to_owned(), source };
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (name, path) = (entry.file_name(), entry.path());
        if !replaced.contains(name.as_os_str()) && !to.join(&name).exists() {
            let real = path.canonicalize().and_then(|real| symlink(real, to.join(&name)));
            real.map_err(|source| LoadError::Read { path, source })?;
        }
    }
    Ok(written)
}

/// Writes weights and configuration of a cross-encoder.
fn classifier(from: &Path, config: &Config, to: &Path) -> Result<[PathBuf; 2], LoadError> {
    let mut file: Value = read_json(&from.join(CONFIG))?;
    let range = file["initializer_range"].as_f64().unwrap_or(USUAL_RANGE);
    let weights = Weights::open(from)?;
    let (prefix, parts): (_, &[&str]) = match config.family {
        Family::Bert => ("bert.", &["embeddings.", "encoder.", "pooler."]),
        // Its classifier has a layer of its own in the pooler's place.
        Family::XlmRoberta => ("roberta.", &["embeddings.", "encoder."]),
    };
    let is_kept = |name: &&str| parts.iter().any(|part| name.starts_with(part));
    let kept = weights.stored().into_iter().filter_map(|(name, stored)| {
        let name = weights.within_body(name).filter(is_kept)?;
        Some((format!("{prefix}{name}"), Saved::stored(stored)))
    });
    let mut tensors: Vec<(String, Saved<'_>)> = kept.collect();
    let hidden = config.hidden;
    let layers = match config.family {
        Family::Bert => [("bert.pooler.dense", [hidden, hidden]), ("classifier", [1, hidden])],
        Family::XlmRoberta => [("classifier.dense", [hidden, hidden]), ("classifier.out_proj", [1, hidden])],
    };
    for (layer, shape) in layers {
        if tensors.iter().all(|(name, _)| !name.starts_with(layer)) {
            let weight = normal(&shape, range)?;
            let bias = Tensor::f_zeros([shape[0]], (Numbers::Float, tch::Device::Cpu))?;
            tensors.push((format!("{layer}.weight"), Saved::of(&weight)?));
            tensors.push((format!("{layer}.bias"), Saved::of(&bias)?));
        }
    }
    let written = [to.join(SINGLE), to.join(CONFIG)];
    saved::write(&written[0], tensors)?;

    let model = config.architecture.split_once("Model").or_else(|| config.architecture.split_once("For"));
    let family = model.map_or(config.architecture.as_str(), |(family, _)| family);
    file["architectures"] = json!([format!("{family}ForSequenceClassification")]);
    file["id2label"] = json!({"0": "LABEL_0"});
    file["label2id"] = json!({"LABEL_0": 0});
    let saved = fs::write(&written[1], file.to_string());
    saved.map_err(|source| LoadError::Read { path: written[1].clone(), source })?;
    Ok(written)
}

fn unified(config: &Config, head: &str, to: &Path) -> Result<PathBuf, LoadError> {
    let hidden = config.hidden;
    let rows = if head == HEADS[0] { hidden } else { 1 };
    #[allow(clippy::cast_precision_loss)] // Small.
    let bound = 1.0 / (hidden as f64).sqrt();
    let weight = uniform(&[rows, hidden], bound)?;
    saved::write_head(to, head, &weight, &uniform(&[rows], bound)?)
}

fn normal(shape: &[i64], deviation: f64) -> Result<Tensor, TchError> {
    Tensor::f_randn(shape, (Numbers::Float, tch::Device::Cpu))?.f_mul_scalar(deviation)
}

fn uniform(shape: &[i64], bound: f64) -> Result<Tensor, TchError> {
    let unit = Tensor::f_rand(shape, (Numbers::Float, tch::Device::Cpu))?;
    unit.f_mul_scalar(2.0 * bound)?.f_sub_scalar(bound)
}
