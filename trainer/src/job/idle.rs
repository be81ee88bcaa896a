//! Settings that would change nothing beside the others: whoever gave one expects something of it.

use super::{DistillationName, Job, Kind, only_for};
use crate::data::Wording;
use crate::loss::GradientScale;
use crate::schedule::Shape;

impl Job {
    /// What is given and has no effect.
    pub(super) fn idle_faults(&self) -> Vec<String> {
        let embeds = self.kind == Kind::Embedder;
        let (by_file, distils) = (self.same_dataset_within_batch, self.knowledge_distillation);
        let own_temperature = differs(self.temperature, Self::temperature());
        let weighted = self.kd_loss_type == DistillationName::M3KdLoss;
        let scaled = self.gradient_scale == GradientScale::FlagEmbedding;
        let (across, small) = (self.negatives_cross_device, self.small_threshold > 0);
        let late = self.self_distill_start_step != Self::from_the_first();
        let (warms, rises) = (self.warmup_steps > 0.0, self.lr_scheduler_type != Shape::Constant);
        [
            only_for("temperature", own_temperature, "embedders", embeds),
            only_for(
                "sentence_pooling_method",
                self.sentence_pooling_method != Self::cls(),
                "embedders",
                embeds,
            ),
            only_for("normalize_embeddings", !self.normalize_embeddings, "embedders", embeds),
            only_for("kd_loss_type", weighted, "embedders with knowledge_distillation", embeds && distils),
            only_for("gradient_scale", scaled, "jobs with negatives_cross_device", across),
            only_for("small_threshold", small, "jobs with same_dataset_within_batch", by_file),
            only_for("drop_threshold", self.drop_threshold > 0, "jobs with a small_threshold", small),
            only_for(
                "dataloader_drop_last",
                self.dataloader_drop_last,
                "batches of all files: with same_dataset_within_batch it is always so",
                !by_file,
            ),
            only_for("self_distill_start_step", late, "jobs with use_self_distill", self.use_self_distill),
            only_for("warmup_steps", warms, "rates that rise: constant_with_warmup", rises),
        ]
        .into_iter()
        .flatten()
        .chain(self.idle_lora())
        .chain(self.idle_groups())
        .chain(self.idle_formats())
        .collect()
    }

    fn idle_lora(&self) -> impl Iterator<Item = String> {
        [
            ("lora_rank", self.lora_rank != Self::lora_rank()),
            ("lora_alpha", differs(self.lora_alpha, Self::lora_alpha())),
            ("lora_dropout", differs(self.lora_dropout, Self::lora_dropout())),
            ("target_modules", self.target_modules != Self::target_modules()),
        ]
        .into_iter()
        .filter_map(|(field, given)| only_for(field, given, "jobs with use_lora", self.use_lora))
    }

    /// A passage that stands alone is told from nothing.
    fn idle_groups(&self) -> Option<String> {
        if self.train_group_size != 1 {
            return None;
        }
        let alone = self.per_device_train_batch_size == 1 && !self.negatives_cross_device;
        let why = match self.kind {
            Kind::Reranker => "a reranker learns from a positive beside at least one negative",
            Kind::Embedder if alone && !self.same_dataset_within_batch => {
                "in batches of one query a positive stands beside nothing"
            }
            Kind::Embedder => return None,
        };
        Some(format!("train_group_size is 1, and {why}"))
    }

    /// Formats that leave out what they are to put together.
    fn idle_formats(&self) -> impl Iterator<Item = String> {
        let sides = [
            (
                "query_instruction_format",
                &self.query_instruction_format,
                &self.query_instruction_for_retrieval,
            ),
            (
                "passage_instruction_format",
                &self.passage_instruction_format,
                &self.passage_instruction_for_retrieval,
            ),
        ];
        sides.into_iter().filter_map(|(field, format, instruction)| {
            let around = |instruction: &str| {
                Wording { instruction: Some(instruction.to_owned()), format: format.clone() }.around()
            };
            if around("").is_none() {
                return Some(format!("{field} is {format:?}, which has no place for the text: {{}}{{}} has"));
            }
            let lost =
                instruction.as_ref().is_some_and(|text| !text.is_empty() && around("") == around(text));
            lost.then(|| format!("{field} is {format:?}, which has no place for the instruction"))
        })
    }
}

/// Whether a number is another one than the default.
fn differs(value: f64, usual: f64) -> bool {
    value.to_bits() != usual.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(more: &str, fields: &[&str]) {
        let text = format!(
            r#"{{"kind": "embedder", "model": "m", "output_dir": "o", "train_data": ["d.jsonl"], {more}}}"#
        );
        let faults = serde_json::from_str::<Job>(&text).unwrap().faults();
        assert_eq!(faults.len(), fields.len(), "{more}: {faults:?}");
        for field in fields {
            assert!(faults.iter().any(|fault| fault.starts_with(field)), "{field}: {faults:?}");
        }
    }

    #[test]
    fn what_has_no_effect_is_told() {
        let dense = r#""temperature": 0.1, "sentence_pooling_method": "mean", "normalize_embeddings": false,
            "gradient_scale": "flagembedding", "negatives_cross_device": true, "kd_loss_type": "m3_kd_loss",
            "knowledge_distillation": true"#;
        check(dense, &[]);
        for (more, field) in [
            (r#""kd_loss_type": "m3_kd_loss""#, "kd_loss_type"),
            (r#""gradient_scale": "flagembedding""#, "gradient_scale"),
            (r#""small_threshold": 9"#, "small_threshold"),
            (r#""same_dataset_within_batch": true, "drop_threshold": 9"#, "drop_threshold"),
            (r#""same_dataset_within_batch": true, "dataloader_drop_last": true"#, "dataloader_drop_last"),
            (r#""unified_finetuning": true, "self_distill_start_step": 3"#, "self_distill_start_step"),
            (r#""lr_scheduler_type": "constant", "warmup_steps": 0.1"#, "warmup_steps"),
            (r#""lora_rank": 8"#, "lora_rank"),
            (r#""lora_alpha": 8"#, "lora_alpha"),
            (r#""lora_dropout": 0"#, "lora_dropout"),
            (r#""target_modules": ["dense"]"#, "target_modules"),
            (r#""train_group_size": 1, "per_device_train_batch_size": 1"#, "train_group_size"),
        ] {
            check(more, &[field]);
        }
        check(
            r#""use_lora": true, "lora_rank": 8, "lora_alpha": 8, "lora_dropout": 0, "target_modules": ["dense"]"#,
            &[],
        );
        check(r#""train_group_size": 1"#, &[]);
    }

    #[test]
    fn a_reranker_has_neither_vectors_nor_a_temperature() {
        let more = r#""temperature": 0.1, "sentence_pooling_method": "mean", "normalize_embeddings": false,
            "kd_loss_type": "m3_kd_loss", "knowledge_distillation": true, "train_group_size": 1"#;
        let text = format!(
            r#"{{"kind": "reranker", "model": "m", "output_dir": "o", "train_data": ["d"], {more}}}"#
        );
        let faults = serde_json::from_str::<Job>(&text).unwrap().faults();
        let mut fields: Vec<&str> = faults.iter().filter_map(|fault| fault.split(' ').next()).collect();
        fields.sort_unstable();
        let wrong = [
            "kd_loss_type",
            "normalize_embeddings",
            "sentence_pooling_method",
            "temperature",
            "train_group_size",
        ];
        assert_eq!(fields, wrong, "{faults:?}");
    }

    #[test]
    fn a_format_has_a_place_for_what_it_puts_together() {
        check(r#""query_instruction_format": "Query: {1}""#, &[]);
        check(r#""query_instruction_format": "Query: ""#, &["query_instruction_format"]);
        check(r#""passage_instruction_format": "{{}} {0}""#, &["passage_instruction_format"]);
        let asked = r#""query_instruction_for_retrieval": "Ask: ", "query_instruction_format": "#;
        check(&format!(r#"{asked}"{{1}} ({{0}})""#), &[]);
        check(&format!(r#"{asked}"Query: {{1}}""#), &["query_instruction_format"]);
    }
}
