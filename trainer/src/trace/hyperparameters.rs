//! `hyperparameters.json`: what the recorded run was told.
//!
//! A setting that this replayer does not know, or a value that it does not do, is refused by its name: a replay that
//! ignored one would compare two different things. Passed over are settings that are off, and those that are known to
//! change no number. What is missing is as `transformers` and the reference have it when nothing is said.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::Pooling;
use serde::Deserialize;
use serde_json::Value;

use crate::error::TrainError;
use crate::loss::{Contrast, Distillation, Negatives, Sifting};
use crate::optimizer;
use crate::schedule::{Schedule, Shape};

/// The whole file, as far as a replay needs it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Hyperparameters {
    /// What was trained.
    pub(super) kind: RunKind,
    /// Ranks.
    pub(super) world_size: usize,
    /// Command line.
    #[serde(default)]
    pub(super) argv: Vec<String>,
    /// Directory of the initial model, relative to the folder around the trace's.
    pub(super) initial_model: PathBuf,
    /// Of its `model.safetensors`; where it is not told, they are what lies there.
    pub(super) initial_model_sha256: Option<String>,
    /// How samples were made.
    pub(super) data: Data,
    /// The loop.
    pub(super) training: Training,
    /// The loss of embedders.
    #[serde(default)]
    pub(super) embedder: Embedder,
    /// What bge-m3 adds.
    #[serde(default)]
    pub(super) m3: M3,
    /// Warm-up in optimiser steps.
    warmup_steps_resolved: Option<u64>,
    /// Names that weight decay takes of, where they are told.
    pub(super) weight_decay_tensors: Option<Vec<String>>,
    /// Names that were not trained.
    pub(super) frozen: Option<Vec<String>>,
}

/// Settings that are not known, by name.
type Others = BTreeMap<String, Value>;

/// What is said of rates beside the name of their schedule: they are taken from the record then.
const RATES: &str = "lr_scheduler_kwargs";

/// Settings that change no number of a run on a processor.
const IDLE: [&str; 40] = [
    "average_tokens_across_devices",
    "cache_path",
    "dataloader_in_order",
    "dataloader_pin_memory",
    "ddp_backend",
    "ddp_find_unused_parameters",
    "ddp_timeout",
    "disable_tqdm",
    "do_train",
    "eval_do_concat_batches",
    "eval_strategy",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "hub_strategy",
    "hub_token",
    "include_num_input_tokens_seen",
    "length_column_name",
    "local_rank",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_first_step",
    "logging_nan_inf_filter",
    "logging_steps",
    "logging_strategy",
    "max_len",
    "num_train_epochs",
    "output_dir",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "project",
    "remove_unused_columns",
    "report_to",
    "run_name",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "sep_token",
    "skip_memory_metrics",
    "use_cpu",
];

/// Which of the reference's trainers ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RunKind {
    /// One vector per text.
    Embedder,
    /// Bge-m3.
    M3,
    /// A cross-encoder.
    Reranker,
}

/// Sampling and collation.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_field_names)] // The reference's names; TRAINING.md, section 1.3.
pub(super) struct Data {
    pub(super) train_data: Vec<PathBuf>,
    pub(super) train_group_size: usize,
    pub(super) query_max_len: usize,
    pub(super) passage_max_len: usize,
    pub(super) pad_to_multiple_of: Option<usize>,
    pub(super) max_example_num_per_dataset: usize,
    #[serde(alias = "query_instruction_for_rerank")]
    pub(super) query_instruction_for_retrieval: Option<String>,
    pub(super) query_instruction_format: String,
    pub(super) knowledge_distillation: bool,
    #[serde(alias = "passage_instruction_for_rerank")]
    pub(super) passage_instruction_for_retrieval: Option<String>,
    pub(super) passage_instruction_format: String,
    pub(super) shuffle_ratio: f64,
    pub(super) same_dataset_within_batch: bool,
    pub(super) small_threshold: usize,
    pub(super) drop_threshold: usize,
    #[serde(flatten)]
    others: Others,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train_data: Vec::new(),
            train_group_size: 8,
            query_max_len: 32,
            passage_max_len: 128,
            pad_to_multiple_of: None,
            max_example_num_per_dataset: 100_000_000,
            query_instruction_for_retrieval: None,
            query_instruction_format: "{}{}".to_owned(),
            knowledge_distillation: false,
            passage_instruction_for_retrieval: None,
            passage_instruction_format: "{}{}".to_owned(),
            shuffle_ratio: 0.0,
            same_dataset_within_batch: false,
            small_threshold: 0,
            drop_threshold: 0,
            others: Others::new(),
        }
    }
}

/// Of `transformers.TrainingArguments`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct Training {
    pub(super) seed: u64,
    pub(super) data_seed: Option<u64>,
    pub(super) max_steps: i64,
    pub(super) learning_rate: f64,
    pub(super) warmup_steps: f64,
    pub(super) lr_scheduler_type: String,
    pub(super) weight_decay: f64,
    pub(super) adam_beta1: f64,
    pub(super) adam_beta2: f64,
    pub(super) adam_epsilon: f64,
    pub(super) optim: String,
    pub(super) max_grad_norm: Option<f64>,
    pub(super) per_device_train_batch_size: usize,
    pub(super) gradient_accumulation_steps: usize,
    pub(super) dataloader_drop_last: bool,
    pub(super) dataloader_num_workers: usize,
    pub(super) fp16: bool,
    pub(super) bf16: bool,
    #[serde(flatten)]
    others: Others,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            seed: 42,
            data_seed: None,
            max_steps: -1,
            learning_rate: 5e-5,
            warmup_steps: 0.0,
            lr_scheduler_type: "linear".to_owned(),
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            optim: "adamw_torch_fused".to_owned(),
            max_grad_norm: Some(1.0),
            per_device_train_batch_size: USUAL_BATCH,
            gradient_accumulation_steps: 1,
            dataloader_drop_last: false,
            dataloader_num_workers: 0,
            fp16: false,
            bf16: false,
            others: Others::new(),
        }
    }
}

/// Queries per rank and step where nothing is said.
const USUAL_BATCH: usize = 8;

/// The loss of embedders.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
// The reference's names; TRAINING.md, section 1.3.
pub(super) struct Embedder {
    pub(super) negatives_cross_device: bool,
    pub(super) temperature: Option<f64>,
    pub(super) sentence_pooling_method: Option<String>,
    pub(super) normalize_embeddings: Option<bool>,
    pub(super) sub_batch_size: Option<i64>,
    pub(super) kd_loss_type: Option<String>,
    pub(super) use_mrl: bool,
    pub(super) mrl_dims: Vec<i64>,
    pub(super) fix_position_embedding: bool,
    #[serde(flatten)]
    others: Others,
}

/// What bge-m3 adds.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
// The reference's names; TRAINING.md, section 1.3.
pub(super) struct M3 {
    pub(super) unified_finetuning: bool,
    pub(super) use_self_distill: bool,
    pub(super) self_distill_start_step: i64,
    pub(super) fix_encoder: bool,
    /// The heads' weights say it.
    #[serde(rename = "colbert_dim")]
    _colbert_dim: Option<i64>,
    #[serde(flatten)]
    others: Others,
}

impl Hyperparameters {
    /// Reads and checks the file of a trace folder.
    ///
    /// # Errors
    /// [`TrainError::Format`] names an unknown setting; [`TrainError::Unsupported`] a value that is not replayed.
    pub(super) fn load(dir: &Path) -> Result<Self, TrainError> {
        let path = dir.join("hyperparameters.json");
        let read: Self = super::read_json(&path)?;
        read.check()?;
        Ok(read)
    }

    fn check(&self) -> Result<(), TrainError> {
        let others = [&self.data.others, &self.training.others, &self.embedder.others, &self.m3.others];
        let is_known =
            |name: &str, value: &Value| IDLE.contains(&name) || name == RATES || is_usual(name, value);
        let unknown = |(name, value): &(&String, &Value)| !is_known(name, value) && !is_off(value);
        if let Some((name, value)) = others.into_iter().flatten().find(unknown) {
            let what = format!("setting {name} is not known, and it is not off: {value}");
            return Err(TrainError::Unsupported(what));
        }
        let Training { fp16, bf16, optim, .. } = &self.training;
        let m3 = self.kind == RunKind::M3 && self.m3.unified_finetuning;
        let sub_batches = self.embedder.sub_batch_size.is_some_and(|size| size > 0);
        let refused = [
            (*fp16, "fp16 true".to_owned()),
            (*bf16, "bf16 true".to_owned()),
            (!matches!(optim.as_str(), "adamw_torch" | "adamw_torch_fused"), format!("optim {optim}")),
            (m3 && self.embedder.use_mrl, "use_mrl with unified_finetuning".to_owned()),
            (m3 && sub_batches, "sub_batch_size with unified_finetuning".to_owned()),
            (self.world_size == 0, "world_size 0".to_owned()),
            (
                self.embedder.use_mrl && self.embedder.mrl_dims.iter().any(|&dims| dims < 1),
                "mrl_dims below 1".to_owned(),
            ),
        ];
        match refused.into_iter().find(|(refused, _)| *refused) {
            Some((_, setting)) => {
                Err(TrainError::Unsupported(format!("a run with {setting} is not replayed")))
            }
            None => Ok(()),
        }
    }

    /// How rows are compared, as far as the settings decide it.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`].
    pub(super) fn contrast(&self) -> Result<Contrast, TrainError> {
        let kd = self.embedder.kd_loss_type.as_deref().unwrap_or("kl_div");
        Ok(Contrast {
            temperature: self.embedder.temperature.unwrap_or(0.02),
            negatives: if self.embedder.negatives_cross_device {
                Negatives::AllRanks
            } else {
                Negatives::InBatch
            },
            distillation: match kd {
                "kl_div" => Distillation::Group,
                "m3_kd_loss" => Distillation::Weighted,
                other => return Err(unknown("kd_loss_type", other)),
            },
            sifting: Sifting::default(),
        })
    }

    /// How tokens' vectors become a text's.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`].
    pub(super) fn pooling(&self) -> Result<Pooling, TrainError> {
        match self.embedder.sentence_pooling_method.as_deref().unwrap_or("cls") {
            "cls" => Ok(Pooling::Cls),
            "mean" => Ok(Pooling::Mean),
            "last_token" => Ok(Pooling::Last),
            other => Err(unknown("sentence_pooling_method", other)),
        }
    }

    /// The optimiser's settings.
    pub(super) fn optimizer(&self) -> optimizer::Settings {
        let Training { adam_beta1, adam_beta2, adam_epsilon, weight_decay, max_grad_norm, .. } =
            self.training;
        optimizer::Settings {
            betas: [adam_beta1, adam_beta2],
            epsilon: adam_epsilon,
            weight_decay,
            max_norm: max_grad_norm.filter(|max| *max > 0.0),
        }
    }

    /// The rates that a run of so many optimiser steps has; `None` for a schedule that we do not have.
    pub(super) fn schedule(&self, steps: u64) -> Option<Schedule> {
        if self.has_more_of_rates() {
            return None;
        }
        let shape = match self.training.lr_scheduler_type.as_str() {
            "linear" => Shape::Linear,
            "cosine" => Shape::Cosine,
            "cosine_with_restarts" => Shape::CosineWithRestarts,
            "polynomial" => Shape::Polynomial,
            "constant" => Shape::Constant,
            "constant_with_warmup" => Shape::ConstantWithWarmup,
            "inverse_sqrt" => Shape::InverseSqrt,
            _ => return None,
        };
        let limit = u64::try_from(self.training.max_steps).ok().filter(|&max| max > 0);
        let steps = limit.unwrap_or(steps);
        // What was resolved without a number of steps is not what the run had.
        let resolved = self.warmup_steps_resolved.filter(|_| limit.is_some());
        let warmup = resolved.unwrap_or_else(|| Schedule::warmup_steps(self.training.warmup_steps, steps));
        Some(Schedule { peak: self.training.learning_rate, warmup, steps, shape })
    }

    /// Whether a schedule was told more than we know of it, such as cycles or a lowest rate.
    fn has_more_of_rates(&self) -> bool {
        let flag = format!("--{RATES}");
        let said = self.training.others.get(RATES).is_some_and(|value| !is_off(value));
        said || self.argv.iter().any(|word| word.split('=').next() == Some(&flag))
    }

    /// Whether a parameter was trained, by our name.
    pub(super) fn trains(&self, name: &str) -> bool {
        let head = name.starts_with("colbert_linear.") || name.starts_with("sparse_linear.");
        let fixed_positions = self.embedder.fix_position_embedding && name.contains("position_embeddings");
        let fixed_encoder = self.m3.unified_finetuning && self.m3.fix_encoder && !head;
        !fixed_positions && !fixed_encoder
    }

    /// Queries per rank and step, as the command line has it: same-dataset runs overwrite the setting with 1.
    pub(super) fn batch_size(&self) -> usize {
        const FLAG: &str = "--per_device_train_batch_size";
        let joined = || self.argv.iter().find_map(|word| word.strip_prefix(FLAG)?.strip_prefix('='));
        let flag = self.argv.iter().position(|word| word == FLAG);
        let said = flag.and_then(|at| self.argv.get(at + 1)).map(String::as_str).or_else(joined);
        let unsaid =
            if self.is_overwritten() { USUAL_BATCH } else { self.training.per_device_train_batch_size };
        said.and_then(|said| said.parse().ok()).unwrap_or(unsaid)
    }

    /// Whether [`Hyperparameters::batch_size`] can be known.
    pub(super) fn tells_batch_size(&self) -> bool {
        !self.is_overwritten() || !self.argv.is_empty()
    }

    fn is_overwritten(&self) -> bool {
        self.data.same_dataset_within_batch && self.training.per_device_train_batch_size == 1
    }
}

/// Whether a setting that is never off has the value that runs are replayed with.
fn is_usual(name: &str, value: &Value) -> bool {
    match name {
        "train_sampling_strategy" => value == "random",
        "accelerator_config" => {
            let asked = ["split_batches", "dispatch_batches", "gradient_accumulation_kwargs"];
            asked.iter().all(|part| is_off(&value[part])) && value["even_batches"] != false
        }
        _ => false,
    }
}

/// Whether a setting's value is one that asks for nothing.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(is_on) => !is_on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
    }
}

fn unknown(setting: &str, value: &str) -> TrainError {
    TrainError::Unsupported(format!("{setting} {value} is not known"))
}

/// A tensor's name without what it is wrapped in: the reference wraps the model, and checkpoints with more than an encoder
/// wrap that. In a record it is the same as in a checkpoint then.
pub(super) fn our_name(name: &str) -> &str {
    let name = name.strip_prefix("model.").unwrap_or(name);
    ["bert.", "roberta."].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}
