//! What a job says beyond the reference's settings.

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
}
