//! What a rank is told to do, by `FlagEmbedding`'s names and with its defaults.

mod evaluation;
mod fetched;
mod idle;
mod options;
mod sentences;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::Pooling;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::loss::{Contrast, Distillation, GradientScale, Negatives};
use crate::optimizer;
use crate::schedule::Shape;

use sentences::{count, only_for, positive};

pub use evaluation::EvaluationData;

/// A fine-tuning job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // The reference's settings.
pub struct Job {
    /// What is trained.
    pub kind: Kind,
    /// Directory of the initial checkpoint, in the Hugging Face layout.
    pub model: PathBuf,
    /// Directory that checkpoints and the trained model are written below; made where it is not there.
    pub output_dir: PathBuf,
    /// Files of examples, or directories of them.
    pub train_data: Vec<PathBuf>,
    /// URLs of what was fetched, by where it lies: errors name these. The job service's alone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fetched: BTreeMap<PathBuf, String>,
    /// Passages of a query, the positive first.
    #[serde(default = "Job::group")]
    pub train_group_size: usize,
    /// Tokens of a query, special ones included.
    #[serde(default = "Job::query")]
    pub query_max_len: usize,
    /// Tokens of a passage, special ones included.
    #[serde(default = "Job::passage")]
    pub passage_max_len: usize,
    /// Examples of a file that take part at most.
    #[serde(default = "Job::all")]
    pub max_example_num_per_dataset: usize,
    /// In front of queries.
    #[serde(default, alias = "query_instruction_for_rerank")]
    pub query_instruction_for_retrieval: Option<String>,
    /// `{}` stands for the instruction, then for the query.
    #[serde(default = "Job::format")]
    pub query_instruction_format: String,
    /// In front of passages.
    #[serde(default, alias = "passage_instruction_for_rerank")]
    pub passage_instruction_for_retrieval: Option<String>,
    /// `{}` stands for the instruction, then for the passage.
    #[serde(default = "Job::format")]
    pub passage_instruction_format: String,
    /// Whether the teacher's scores are learnt too.
    #[serde(default)]
    pub knowledge_distillation: bool,
    /// How: beside the contrastive loss, or in its place.
    #[serde(default)]
    pub kd_loss_type: DistillationName,
    /// Share of long positives whose three parts are shuffled.
    #[serde(default)]
    pub shuffle_ratio: f64,
    /// Whether batches are of one file each.
    #[serde(default)]
    pub same_dataset_within_batch: bool,
    /// Files of a directory below so many examples are put together, where batches are of one file.
    #[serde(default)]
    pub small_threshold: usize,
    /// And left out where they are fewer together.
    #[serde(default)]
    pub drop_threshold: usize,
    /// Whether queries stand against all ranks' passages.
    #[serde(default)]
    pub negatives_cross_device: bool,
    /// How ranks' gradients become one: exactly, or as the reference does it.
    #[serde(default)]
    pub gradient_scale: GradientScale,
    /// What inner products are divided by.
    #[serde(default = "Job::temperature")]
    pub temperature: f64,
    /// Negatives are left out whose inner product is more than this above the positive's: they are answers too. The
    /// paper's is 0.1 (Zhang et al. 2025, arXiv:2506.05176, section 3).
    #[serde(default)]
    pub false_negative_margin: Option<f64>,
    /// Whether a text counts once among a query's passages, and a text like its positive not at all.
    #[serde(default)]
    pub mask_duplicates: bool,
    /// Directory of an embedder that stays as it is: negatives are left out that it puts above the positive. It reads
    /// texts behind the job's instructions, not behind its own. Source: Solatorio 2024, arXiv:2402.16829.
    #[serde(default)]
    pub guide_model: Option<PathBuf>,
    /// How far below the positive's cosine the guide's cut is.
    #[serde(default)]
    pub guide_margin: f64,
    /// What a negative's inner product is multiplied by and added to its logit with, as a number without gradient; 0
    /// adds nothing. The paper's is 9 (Lan et al. 2025, arXiv:2503.04812, section 3.2).
    #[serde(default)]
    pub hardness_weight: f64,
    /// How tokens' vectors become a text's: cls, mean or `last_token`.
    #[serde(default = "Job::cls")]
    pub sentence_pooling_method: String,
    /// Whether vectors have length 1.
    #[serde(default = "Job::yes")]
    pub normalize_embeddings: bool,
    /// First so many dimensions that are trained to do alone.
    #[serde(default)]
    pub mrl_dims: Vec<i64>,
    /// Whether bge-m3's three ways are trained together.
    #[serde(default)]
    pub unified_finetuning: bool,
    /// Whether each learns from their sum.
    #[serde(default)]
    pub use_self_distill: bool,
    /// Behind which forward pass, from 0; -1 for all.
    #[serde(default = "Job::from_the_first")]
    pub self_distill_start_step: i64,
    /// Whether bge-m3's heads alone are trained.
    #[serde(default)]
    pub fix_encoder: bool,
    /// Whether position embeddings stay as they are.
    #[serde(default)]
    pub fix_position_embedding: bool,
    /// Whether linear layers and attention compute in bfloat16; weights and scores stay in single precision.
    #[serde(default)]
    pub bf16: bool,
    /// The same in half precision. The loss is multiplied up, and a step whose gradients are not finite is left out,
    /// as `torch.amp.GradScaler` does it; the learning rate goes on.
    #[serde(default)]
    pub fp16: bool,
    /// Whether layers are run again for their gradients, and of each only what it reads is kept until then.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Whether low-rank adapters are trained, and nothing else; the finished model has them merged into its weights.
    /// Source: Hu et al. 2021, arXiv:2106.09685.
    #[serde(default)]
    pub use_lora: bool,
    /// Numbers between an adapter's two matrices.
    #[serde(default = "Job::lora_rank")]
    pub lora_rank: i64,
    /// What adapters' outputs are multiplied by, times their rank.
    #[serde(default = "Job::lora_alpha")]
    pub lora_alpha: f64,
    /// Share of adapters' inputs that are zeroed.
    #[serde(default = "Job::lora_dropout")]
    pub lora_dropout: f64,
    /// Ends of the names of linear layers that have adapters, such as `query` or `attention.output.dense`.
    #[serde(default = "Job::target_modules")]
    pub target_modules: Vec<String>,
    /// Queries of a rank and micro step.
    #[serde(default = "Job::batch")]
    pub per_device_train_batch_size: usize,
    /// Micro steps of an optimiser step.
    #[serde(default = "Job::one")]
    pub gradient_accumulation_steps: usize,
    /// Sequences whose graph is held at a time; `None` holds those of the whole batch.
    #[serde(default)]
    pub gradient_cache_chunk: Option<usize>,
    /// Whether a last batch that is not full is left out.
    #[serde(default)]
    pub dataloader_drop_last: bool,
    /// The highest rate.
    #[serde(default = "Job::rate")]
    pub learning_rate: f64,
    /// How it falls.
    #[serde(default)]
    pub lr_scheduler_type: Shape,
    /// Steps over which it rises; below 1 a share of all.
    #[serde(default)]
    pub warmup_steps: f64,
    /// Times that the data are read, where `max_steps` does not say.
    #[serde(default = "Job::epochs")]
    pub num_train_epochs: u64,
    /// Optimiser steps.
    #[serde(default)]
    pub max_steps: Option<u64>,
    /// Share taken off weights per unit of learning rate.
    #[serde(default)]
    pub weight_decay: f64,
    /// Decay of the running mean of gradients.
    #[serde(default = "Job::beta1")]
    pub adam_beta1: f64,
    /// Decay of the running mean of their squares.
    #[serde(default = "Job::beta2")]
    pub adam_beta2: f64,
    /// Added to the root of the second moment.
    #[serde(default = "Job::epsilon")]
    pub adam_epsilon: f64,
    /// The norm that all gradients together are cut down to; 0 leaves them.
    #[serde(default = "Job::norm")]
    pub max_grad_norm: f64,
    /// Of everything that is drawn.
    #[serde(default = "Job::seed")]
    pub seed: u64,
    /// Optimiser steps between checkpoints.
    #[serde(default = "Job::save")]
    pub save_steps: u64,
    /// Checkpoints that are kept, beside the best one.
    #[serde(default = "Job::kept")]
    pub save_total_limit: usize,
    /// What the model is evaluated on, before the first step and after the last; bge-m3 by its dense rows alone.
    #[serde(default)]
    pub evaluation: Option<EvaluationData>,
    /// Optimiser steps between evaluations; without it there are the first and the last.
    #[serde(default)]
    pub eval_steps: Option<u64>,
    /// The metric by which one model is better than another: `ndcg_at_10`, `mrr_at_10`, `recall_at_10`, `recall_at_100`,
    /// `map_at_100` or `spearman`.
    #[serde(default = "Job::metric")]
    pub metric_for_best_model: String,
    /// Whether the finished model is the best that was evaluated, and not the last.
    #[serde(default)]
    pub load_best_model_at_end: bool,
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Texts to vectors.
    Embedder,
    /// Pairs to logits.
    Reranker,
}

/// The reference's names of distillations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DistillationName {
    /// The own group's distribution comes close to the teacher's.
    #[default]
    KlDiv,
    /// Each of the group stands against all others, weighted by the teacher.
    M3KdLoss,
}

impl Job {
    /// Reads and checks a job.
    ///
    /// # Errors
    /// [`TrainError::Format`] names every field at fault.
    pub fn load(path: &Path) -> Result<Self, TrainError> {
        let text = std::fs::read(path).map_err(|source| TrainError::io(path, source))?;
        let job: Self = serde_json::from_slice(&text).map_err(|error| TrainError::format(path, error))?;
        let faults = job.faults();
        if faults.is_empty() { Ok(job) } else { Err(TrainError::format(path, faults.join("; "))) }
    }

    /// Everything that is wrong with it, a sentence each that begins with the field.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let within = |field: &str, value: f64, range: std::ops::Range<f64>| {
            let wanted =
                format!("{field} is {value}, wanted is a number from {} below {}", range.start, range.end);
            (!range.contains(&value)).then_some(wanted)
        };
        let embeds = self.kind == Kind::Embedder;
        let unified = self.unified_finetuning;
        let big = 1e9;
        [
            self.train_data.is_empty().then(|| "train_data names no file".to_owned()),
            count("train_group_size", self.train_group_size),
            positive("query_max_len", self.query_max_len),
            positive("passage_max_len", self.passage_max_len),
            count("per_device_train_batch_size", self.per_device_train_batch_size),
            positive("max_example_num_per_dataset", self.max_example_num_per_dataset),
            positive("gradient_accumulation_steps", self.gradient_accumulation_steps),
            self.gradient_cache_chunk.and_then(|chunk| positive("gradient_cache_chunk", chunk)),
            positive("num_train_epochs", usize::try_from(self.num_train_epochs).unwrap_or(1)),
            self.max_steps.and_then(|steps| positive("max_steps", usize::try_from(steps).unwrap_or(1))),
            positive("save_steps", usize::try_from(self.save_steps).unwrap_or(1)),
            positive("save_total_limit", self.save_total_limit),
            (self.bf16 && self.fp16).then(|| "fp16 is in place of bf16".to_owned()),
            within("temperature", self.temperature, f64::MIN_POSITIVE..big),
            within("learning_rate", self.learning_rate, 0.0..big),
            within("warmup_steps", self.warmup_steps, 0.0..big),
            within("weight_decay", self.weight_decay, 0.0..big),
            within("max_grad_norm", self.max_grad_norm, 0.0..big),
            within("adam_beta1", self.adam_beta1, 0.0..1.0),
            within("adam_beta2", self.adam_beta2, 0.0..1.0),
            within("adam_epsilon", self.adam_epsilon, f64::MIN_POSITIVE..big),
            within("shuffle_ratio", self.shuffle_ratio, 0.0..1.0 + f64::EPSILON),
            self.pooling().err(),
            self.mrl_dims.iter().any(|&dims| dims < 1).then(|| "mrl_dims are not all at least 1".to_owned()),
            only_for("negatives_cross_device", self.negatives_cross_device, "embedders", embeds),
            only_for("unified_finetuning", unified, "embedders", embeds),
            only_for("mrl_dims", !self.mrl_dims.is_empty(), "dense embedders", embeds && !unified),
            only_for("use_self_distill", self.use_self_distill, "unified_finetuning", unified),
            only_for("fix_encoder", self.fix_encoder, "unified_finetuning", unified),
            only_for("gradient_checkpointing", self.gradient_checkpointing, "encoders", !self.fix_encoder),
            only_for("same_dataset_within_batch", self.same_dataset_within_batch, "embedders", embeds),
        ]
        .into_iter()
        .flatten()
        .chain(self.evaluation_faults())
        .chain(self.sifting_faults())
        .chain(self.lora_faults())
        .chain(self.idle_faults())
        .collect()
    }

    /// How tokens' vectors become a text's.
    ///
    /// # Errors
    /// A sentence that names the field.
    pub fn pooling(&self) -> Result<Pooling, String> {
        match self.sentence_pooling_method.as_str() {
            "last_token" => Ok(Pooling::Last),
            name => name
                .parse()
                .map_err(|_| format!("sentence_pooling_method is {name}, wanted is cls, mean or last_token")),
        }
    }

    /// How rows are compared.
    #[must_use]
    pub fn contrast(&self) -> Contrast {
        Contrast {
            temperature: self.temperature,
            negatives: if self.negatives_cross_device { Negatives::AllRanks } else { Negatives::InBatch },
            distillation: match self.kd_loss_type {
                DistillationName::KlDiv => Distillation::Group,
                DistillationName::M3KdLoss => Distillation::Weighted,
            },
            sifting: self.sifting(),
        }
    }

    /// The optimiser's settings.
    #[must_use]
    pub fn optimizer(&self) -> optimizer::Settings {
        optimizer::Settings {
            betas: [self.adam_beta1, self.adam_beta2],
            epsilon: self.adam_epsilon,
            weight_decay: self.weight_decay,
            max_norm: Some(self.max_grad_norm).filter(|max| *max > 0.0),
        }
    }

    /// Whether a parameter is trained.
    #[must_use]
    pub fn trains(&self, name: &str) -> bool {
        let head = name.starts_with("colbert_linear.") || name.starts_with("sparse_linear.");
        let fixed = self.fix_position_embedding && name.contains("position_embeddings");
        !fixed && (!self.fix_encoder || head)
    }

    fn group() -> usize {
        8
    }

    fn query() -> usize {
        32
    }

    fn passage() -> usize {
        128
    }

    fn all() -> usize {
        100_000_000
    }

    fn format() -> String {
        "{}{}".to_owned()
    }

    fn temperature() -> f64 {
        0.02
    }

    fn cls() -> String {
        "cls".to_owned()
    }

    fn yes() -> bool {
        true
    }

    fn from_the_first() -> i64 {
        -1
    }

    fn batch() -> usize {
        8
    }

    fn one() -> usize {
        1
    }

    fn rate() -> f64 {
        5e-5
    }

    fn epochs() -> u64 {
        3
    }

    fn beta1() -> f64 {
        0.9
    }

    fn beta2() -> f64 {
        0.999
    }

    fn epsilon() -> f64 {
        1e-8
    }

    fn norm() -> f64 {
        1.0
    }

    fn seed() -> u64 {
        42
    }

    /// What models are compared by where nothing is said.
    pub(crate) fn metric() -> String {
        "ndcg_at_10".to_owned()
    }

    fn save() -> u64 {
        500
    }

    fn kept() -> usize {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(more: &str) -> Result<Job, serde_json::Error> {
        let text = format!(
            r#"{{"kind": "embedder", "model": "m", "output_dir": "o", "train_data": ["d.jsonl"]{more}}}"#
        );
        serde_json::from_str(&text)
    }

    #[test]
    fn defaults_are_the_references() {
        let job = job("").unwrap();
        assert!(job.faults().is_empty(), "{:?}", job.faults());
        assert_eq!((job.train_group_size, job.query_max_len, job.passage_max_len), (8, 32, 128));
        assert_eq!((job.max_steps, job.num_train_epochs, job.save_steps), (None, 3, 500));
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let more = r#", "temperature": 0, "train_group_size": 0, "sentence_pooling_method": "max",
            "use_self_distill": true, "adam_beta2": 1.0"#;
        let faults = job(more).unwrap().faults();
        for field in
            ["temperature", "train_group_size", "sentence_pooling_method", "use_self_distill", "adam_beta2"]
        {
            assert!(faults.iter().any(|fault| fault.starts_with(field)), "{field}: {faults:?}");
        }
        assert_eq!(faults.len(), 5);
        // Numbers that nothing could be made of in any memory or time.
        let more = r#", "train_group_size": 1000000000000, "per_device_train_batch_size": 18446744073709551615,
            "use_lora": true, "lora_rank": 1000000000, "num_train_epochs": 0, "max_example_num_per_dataset": 0"#;
        let faults = job(more).unwrap().faults();
        for (field, bound) in [
            ("train_group_size", "at most 1048576"),
            ("per_device_train_batch_size", "at most 1048576"),
            ("lora_rank", "from 1 to 4096"),
            ("num_train_epochs", "at least 1"),
            ("max_example_num_per_dataset", "at least 1"),
        ] {
            let told = faults.iter().any(|fault| fault.starts_with(field) && fault.contains(bound));
            assert!(told, "{field}: {faults:?}");
        }
        assert!(job(r#", "temprature": 1"#).unwrap_err().to_string().contains("temprature"));
    }
}
