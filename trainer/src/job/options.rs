//! What a job says beyond the reference's settings.

use model::{Lora, Manner, Products};

use super::{DistillationName, Job, Kind, only_for};
use crate::loss::Sifting;

impl Job {
    /// Which negatives count, and how much.
    #[must_use]
    pub fn sifting(&self) -> Sifting {
        Sifting {
            false_negative_margin: self.false_negative_margin,
            guide_margin: self.guide_margin,
            hardness_weight: self.hardness_weight,
        }
    }

    /// What is wrong with its choice of negatives.
    pub(super) fn sifting_faults(&self) -> Vec<String> {
        let dense = self.kind == Kind::Embedder && !self.unified_finetuning;
        // There, each of a group is a positive in its turn.
        let weighted = self.knowledge_distillation && self.kd_loss_type == DistillationName::M3KdLoss;
        let contrasts = dense && !weighted;
        let wanted = "dense embedders without m3_kd_loss";
        let guide = self.guide_model.is_some();
        let finite = |field: &str, value: f64, least: f64| {
            (!(value.is_finite() && value >= least))
                .then(|| format!("{field} is {value}, wanted is a number from {least}"))
        };
        [
            only_for("false_negative_margin", self.false_negative_margin.is_some(), wanted, contrasts),
            only_for("mask_duplicates", self.mask_duplicates, wanted, contrasts),
            only_for("guide_model", guide, wanted, contrasts),
            only_for("guide_margin", self.guide_margin != 0.0, "jobs with a guide_model", guide),
            only_for("hardness_weight", self.hardness_weight != 0.0, wanted, contrasts),
            self.false_negative_margin.and_then(|margin| finite("false_negative_margin", margin, 0.0)),
            finite("guide_margin", self.guide_margin, -2.0),
            finite("hardness_weight", self.hardness_weight, 0.0),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// How its model is trained.
    #[must_use]
    pub fn manner(&self) -> Manner {
        let lora = Lora {
            rank: self.lora_rank,
            alpha: self.lora_alpha,
            dropout: self.lora_dropout,
            targets: self.target_modules.clone(),
        };
        let products = match (self.bf16, self.fp16) {
            (true, _) => Products::Bf16,
            (false, true) => Products::F16,
            (false, false) => Products::F32,
        };
        Manner {
            lora: self.use_lora.then_some(lora),
            products,
            recompute: self.gradient_checkpointing,
            as_pytorch: false,
        }
    }

    /// What is wrong with its adapters.
    pub(super) fn lora_faults(&self) -> Vec<String> {
        let Self { lora_rank: rank, lora_alpha: alpha, lora_dropout: dropout, .. } = *self;
        let fixes = self.fix_encoder || self.fix_position_embedding;
        [
            // No layer is wider.
            (!(1..=4_096).contains(&rank))
                .then(|| format!("lora_rank is {rank}, wanted is a number from 1 to 4096")),
            (!alpha.is_finite() || alpha <= 0.0)
                .then(|| format!("lora_alpha is {alpha}, wanted is a number above 0")),
            (!(0.0..1.0).contains(&dropout))
                .then(|| format!("lora_dropout is {dropout}, wanted is a number from 0 below 1")),
            self.target_modules.is_empty().then(|| "target_modules names no layer".to_owned()),
            only_for("use_lora", self.use_lora, "jobs that fix nothing else", !fixes),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    pub(super) fn lora_rank() -> i64 {
        32
    }

    pub(super) fn lora_alpha() -> f64 {
        64.0
    }

    pub(super) fn lora_dropout() -> f64 {
        0.1
    }

    pub(super) fn target_modules() -> Vec<String> {
        ["query", "key", "value"].map(str::to_owned).to_vec()
    }
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
        assert_eq!(faults.len(), fields.len(), "{faults:?}");
        for field in fields {
            assert!(faults.iter().any(|fault| fault.starts_with(field)), "{field}: {faults:?}");
        }
    }

    #[test]
    fn choices_of_negatives_are_for_those_who_have_some() {
        let good = r#""false_negative_margin": 0.1, "mask_duplicates": true, "guide_model": "g", "guide_margin": 0.05,
            "hardness_weight": 9"#;
        check(good, &[]);
        let all = ["false_negative_margin", "mask_duplicates", "guide_model", "hardness_weight"];
        check(&format!(r#"{good}, "unified_finetuning": true"#), &all);
        check(&format!(r#"{good}, "knowledge_distillation": true, "kd_loss_type": "m3_kd_loss""#), &all);
        check(&format!(r#"{good}, "knowledge_distillation": true"#), &[]);
        check(r#""guide_margin": 0.1"#, &["guide_margin"]);
        check(
            r#""hardness_weight": -1, "false_negative_margin": -0.1"#,
            &["hardness_weight", "false_negative_margin"],
        );
    }

    #[test]
    fn adapters_have_a_size_and_products_a_kind() {
        check(r#""bf16": true, "fp16": true"#, &["fp16"]);
        check(r#""use_lora": true, "fp16": true"#, &[]);
        let bad =
            r#""use_lora": true, "lora_rank": 0, "lora_alpha": 0, "lora_dropout": 1, "target_modules": []"#;
        check(bad, &["lora_rank", "lora_alpha", "lora_dropout", "target_modules"]);
        check(r#""use_lora": true, "fix_position_embedding": true"#, &["use_lora"]);
    }
}
