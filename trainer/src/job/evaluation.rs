//! What a job says about evaluation.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Job, Kind, only_for, positive};

/// Names that `metric_for_best_model` may have.
const METRICS: [&str; 6] =
    ["ndcg_at_10", "mrr_at_10", "recall_at_10", "recall_at_100", "map_at_100", "spearman"];

/// Where the data of an evaluation are; a reranker orders, for each query, what was judged for it. The reference has none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationData {
    /// Texts that are searched, JSON Lines of `{"id", "text"}`; with `queries` and `qrels`.
    pub corpus: Option<PathBuf>,
    /// Texts that ask, likewise.
    pub queries: Option<PathBuf>,
    /// What answers what: query, document and grade, with tabs between. For a reranker also what does not, with grade 0.
    pub qrels: Option<PathBuf>,
    /// In place of these, the share of the training data that is held out. A row's own texts are judged for its query.
    pub split: Option<f64>,
    /// Pairs of texts with scores: score, text and text, with tabs between. Only for embedders.
    pub sts: Option<PathBuf>,
}

impl EvaluationData {
    /// Its files of questions with judged answers, where all three are given.
    #[must_use]
    pub fn judged(&self) -> Option<[&Path; 3]> {
        Some([self.corpus.as_deref()?, self.queries.as_deref()?, self.qrels.as_deref()?])
    }

    fn faults(&self, metric: &str, kind: Kind) -> Vec<String> {
        let given = [&self.corpus, &self.queries, &self.qrels].iter().filter(|path| path.is_some()).count();
        let ranks = given == 3 || self.split.is_some();
        let share = |share: f64| !(share > 0.0 && share < 1.0);
        [
            (given % 3 != 0)
                .then(|| "evaluation has some of corpus, queries and qrels, and not all".to_owned()),
            (given > 0 && self.split.is_some())
                .then(|| "evaluation.split is in place of corpus, queries and qrels".to_owned()),
            self.split
                .filter(|split| share(*split))
                .map(|split| format!("evaluation.split is {split}, wanted is a number between 0 and 1")),
            (!ranks && self.sts.is_none()).then(|| "evaluation names no data".to_owned()),
            match metric {
                "spearman" if kind == Kind::Reranker => {
                    let others = METRICS[..METRICS.len() - 1].join(", ");
                    Some(format!(
                        "metric_for_best_model is spearman, which is for embedders; of a reranker there are {others}"
                    ))
                }
                "spearman" if self.sts.is_none() => {
                    Some("metric_for_best_model is spearman, for which evaluation.sts is wanted".to_owned())
                }
                "ndcg_at_10" | "mrr_at_10" | "recall_at_10" | "recall_at_100" | "map_at_100" if !ranks => {
                    Some(format!("metric_for_best_model is {metric}, for which evaluation has no data"))
                }
                _ => None,
            },
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Job {
    /// What is wrong with its evaluation.
    pub(super) fn evaluation_faults(&self) -> Vec<String> {
        let embeds = self.kind == Kind::Embedder;
        let (data, metric) = (self.evaluation.as_ref(), &self.metric_for_best_model);
        let wanted = "jobs with an evaluation";
        [
            only_for("evaluation.sts", data.is_some_and(|data| data.sts.is_some()), "embedders", embeds),
            only_for("eval_steps", self.eval_steps.is_some(), wanted, data.is_some()),
            only_for("load_best_model_at_end", self.load_best_model_at_end, wanted, data.is_some()),
            self.eval_steps.and_then(|steps| positive("eval_steps", usize::try_from(steps).unwrap_or(1))),
            (!METRICS.contains(&metric.as_str())).then(|| {
                format!("metric_for_best_model is {metric}, wanted is one of {}", METRICS.join(", "))
            }),
        ]
        .into_iter()
        .flatten()
        .chain(data.into_iter().flat_map(|data| data.faults(metric, self.kind)))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(more: &str) -> Job {
        let text = format!(
            r#"{{"kind": "embedder", "model": "m", "output_dir": "o", "train_data": ["d.jsonl"]{more}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn an_evaluation_has_data_for_what_it_is_to_tell() {
        for (data, part) in [
            (r#"{"corpus": "c", "queries": "q"}"#, "and not all"),
            (r#"{"split": 1.5}"#, "evaluation.split is 1.5"),
            (r#"{"split": 0.1, "corpus": "c", "queries": "q", "qrels": "r"}"#, "in place of"),
            ("{}", "names no data"),
            (r#"{"sts": "p"}"#, "metric_for_best_model is ndcg_at_10"),
        ] {
            let faults = job(&format!(r#", "evaluation": {data}"#)).faults();
            assert!(faults.iter().any(|fault| fault.contains(part)), "{data}: {faults:?}");
        }
        let whole = r#", "evaluation": {"split": 0.1, "sts": "p"}, "metric_for_best_model": "spearman""#;
        assert!(job(whole).faults().is_empty());
        assert!(job(&format!(r#"{whole}, "unified_finetuning": true"#)).faults().is_empty());
        let faults = job(r#", "eval_steps": 3, "metric_for_best_model": "f1""#).faults();
        assert_eq!(faults.len(), 2, "{faults:?}");

        let reranker = |data| {
            let job =
                job(&format!(r#", "evaluation": {data}, "eval_steps": 3, "load_best_model_at_end": true"#));
            Job { kind: Kind::Reranker, ..job }.faults()
        };
        assert!(reranker(r#"{"split": 0.1}"#).is_empty());
        assert_eq!(reranker(r#"{"split": 0.1, "sts": "p"}"#), ["evaluation.sts is only for embedders"]);
        let by_pairs = r#", "evaluation": {"split": 0.1}, "metric_for_best_model": "spearman""#;
        let faults = Job { kind: Kind::Reranker, ..job(by_pairs) }.faults();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains("is for embedders; of a reranker there are ndcg_at_10"), "{faults:?}");
    }
}
