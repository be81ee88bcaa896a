//! What is submitted: a YAML document of a job's fields and of what becomes of it, checked whole before anything starts.

use std::path::{Path, PathBuf};

use model::{Checkpoint, Overrides, Pooling};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fields::{Fault, Faults, each, fault};
use super::shelf::{Shelf, Wanted};
use crate::data::{Example, JsonLines, files};
use crate::error::TrainError;
use crate::job::{Job, Kind};
use crate::rank;

/// Every field with its default, as a document that people start from.
pub const EXAMPLE: &str = include_str!("../../job.yaml");

/// Lines of a file that are read before a job starts. Those behind are read when it is their turn.
const LINES: usize = 200_000;
/// Faults of a file that are told.
const TOLD: usize = 5;
/// Seconds. What waits longer overflows clocks.
const A_YEAR: u64 = 31_536_000;
/// Longest document.
const BYTES: usize = 64 << 10;

/// A job and what becomes of it.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Devices, one a rank.
    pub ranks: usize,
    /// How long ranks wait for one another, and how long nothing may happen before they are taken to hang.
    pub timeout_seconds: u64,
    /// Attempts in a row that may end without a step that was not taken before.
    pub max_restarts: u32,
    /// What becomes of the trained model; nothing where it stays in its directory.
    pub publish: Option<Publish>,
    /// What ranks do.
    pub job: Job,
}

/// What becomes of a trained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// The name it is a version of.
    pub alias: String,
    /// Whether the name is to mean it, if the gate lets it through.
    #[serde(default)]
    pub promote: bool,
    /// That its vectors are of another index space than those that were made before, so that indexes are made anew.
    #[serde(default)]
    pub new_space: bool,
    /// How much better than what is served it has to be; without it every model is promoted.
    #[serde(default)]
    pub gate: Option<Gate>,
}

/// How much better than what is served a model has to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    /// By which metric.
    #[serde(default = "Job::metric")]
    pub metric: String,
    /// By more than this.
    #[serde(default)]
    pub margin: f64,
}

/// What stands beside the job's own fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beside {
    #[serde(default = "one")]
    ranks: usize,
    #[serde(default = "ten_minutes")]
    timeout_seconds: u64,
    #[serde(default = "ten")]
    max_restarts: u32,
    #[serde(default)]
    publish: Option<Publish>,
}

/// Fields that say how a model is loaded to be trained, beside itself and its kind.
const LOADED_BY: [&str; 8] = [
    "sentence_pooling_method",
    "unified_finetuning",
    "use_lora",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bf16",
];

const BESIDE: [&str; 4] = ["ranks", "timeout_seconds", "max_restarts", "publish"];

fn one() -> usize {
    1
}

fn ten() -> u32 {
    10
}

fn ten_minutes() -> u64 {
    600
}

impl Spec {
    /// Reads `text`, a job whose output is to be in `output`, and looks at no file. What can be read of it is there even
    /// where something is wrong; fields that are have the value of one that was left out.
    pub fn read(text: &str, output: &Path, faults: &mut Faults) -> Option<Self> {
        if text.len() > BYTES {
            faults.note("spec", format!("it has {} bytes, at most {BYTES} are taken", text.len()));
            return None;
        }
        let value =
            serde_saphyr::from_str(text).map_err(|error| faults.note("spec", first_line(&error))).ok()?;
        let Value::Object(mut fields) = value else {
            faults.note("spec", "it is no mapping of fields");
            return None;
        };
        if fields.remove("output_dir").is_some() {
            faults.note("output_dir", "the trainer chooses it: leave it out");
        }
        if fields.remove("fetched").is_some() {
            faults.note("fetched", "there is no such field");
        }
        let (beside, own) =
            fields.into_iter().partition::<Map<_, _>, _>(|(key, _)| BESIDE.contains(&key.as_str()));
        let beside = each::<Beside>(&beside, &Map::new(), "", faults);
        let needed = json!({ "kind": "embedder", "model": ".", "train_data": [], "output_dir": output });
        let Value::Object(needed) = needed else { unreachable!("it is written as one") };
        for field in ["kind", "model", "train_data"] {
            if !own.contains_key(field) {
                faults.note(field, "it is missing");
            }
        }
        let job = each::<Job>(&own, &needed, "", faults);
        let Beside { ranks, timeout_seconds, max_restarts, publish } = beside?;
        let spec = Self { ranks, timeout_seconds, max_restarts, publish, job: job? };
        // What has no value of its own is looked at with a stand-in's, which may be wrong in another way, and in the way
        // of others.
        let is_known = |more: &Fault| !faults.concern(&[&more.field]) && !faults.is_why(more);
        let more: Vec<Fault> = spec.faults().into_iter().filter(is_known).collect();
        faults.0.extend(more);
        Some(spec)
    }

    /// What can be seen to be wrong without a look at any file.
    fn faults(&self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = self.job.faults().iter().map(|sentence| named(sentence)).collect();
        if self.ranks == 0 {
            faults.push(fault("ranks", "it is 0, at least 1 is wanted"));
        }
        if !(1..=A_YEAR).contains(&self.timeout_seconds) {
            let reason = format!("it is {}, wanted is a number from 1 to {A_YEAR}", self.timeout_seconds);
            faults.push(fault("timeout_seconds", reason));
        }
        let Some(publish) = &self.publish else { return faults };
        if let Err(error) = cluster::Name::parse(publish.alias.as_str()) {
            faults.push(fault("publish.alias", error.to_string()));
        }
        let embeds = self.job.kind == Kind::Embedder;
        if publish.promote && embeds && !publish.new_space {
            let reason = "a fine-tuned embedder begins a new index space, and vectors made before cannot be compared \
                          with its own: say new_space: true to promote it, and make indexes anew";
            faults.push(fault("publish.new_space", reason));
        }
        if let Some(gate) = &publish.gate {
            if self.job.evaluation.is_none() {
                faults.push(fault("publish.gate", "it is only for jobs with an evaluation"));
            }
            let known = Job { metric_for_best_model: gate.metric.clone(), ..self.job.clone() };
            if let Some(sentence) = known.faults().iter().find(|it| it.starts_with("metric_for_best_model")) {
                let reason = sentence.trim_start_matches("metric_for_best_model").trim_start();
                faults.push(fault("publish.gate.metric", format!("it {reason}")));
            }
            if !gate.margin.is_finite() {
                faults.push(fault("publish.gate.margin", "it is no number"));
            }
        }
        faults
    }

    /// Puts the files that are meant in the place of what was said, and fetches those that are not here.
    pub fn place(&mut self, files: &mut Shelf<'_>, faults: &mut Faults) {
        let mut put = |field: &str, path: &mut PathBuf, wanted| {
            if faults.concern(&[field]) {
                return;
            }
            match files.find(path, wanted) {
                Ok(found) => *path = found,
                Err(reason) => faults.note(field, reason),
            }
        };
        put("model", &mut self.job.model, Wanted::Model);
        if let Some(guide) = &mut self.job.guide_model {
            put("guide_model", guide, Wanted::Model);
        }
        for (at, path) in self.job.train_data.iter_mut().enumerate() {
            put(&format!("train_data[{at}]"), path, Wanted::Examples);
        }
        if let Some(data) = &mut self.job.evaluation {
            let parts = [
                ("evaluation.corpus", &mut data.corpus),
                ("evaluation.queries", &mut data.queries),
                ("evaluation.qrels", &mut data.qrels),
                ("evaluation.sts", &mut data.sts),
            ];
            for (field, path) in parts {
                if let Some(path) = path {
                    put(field, path, Wanted::File);
                }
            }
        }
        match files.finish() {
            Ok(fetched) => self.job.fetched = fetched,
            Err(reason) => faults.note("train_data", reason),
        }
    }

    /// Looks whether all that it names is what it should be, and whether a rank could begin with it. Of the training data
    /// the first lines of each file are read, which takes a while.
    pub fn look(&self, faults: &mut Faults) {
        let told = |error: TrainError| error.named(&self.job.fetched).to_string();
        self.look_at_model(faults);
        if !faults.concern(&["guide_model"])
            && let Err(error) = rank::Trial(&self.job).guide()
        {
            faults.note("guide_model", self.job.retold(&error.to_string()));
        }
        for (at, path) in self.job.train_data.iter().enumerate() {
            let field = format!("train_data[{at}]");
            if !faults.concern(&[&field]) {
                let group_is_known = !faults.concern(&["train_group_size"]);
                self.look_below(path, group_is_known).iter().for_each(|reason| faults.note(&field, reason));
            }
        }
        if faults.concern(&["train_data"]) {
            return;
        }
        let sizes = ["ranks", "per_device_train_batch_size"];
        if !faults.concern(&sizes)
            && let Err(error) = rank::Trial(&self.job).data(self.ranks)
        {
            faults.note("train_data", told(error));
        }
        if !faults.concern(&["evaluation", "kind"]) {
            for (field, error) in rank::Trial(&self.job).evaluation() {
                faults.note(field, told(error));
            }
        }
    }

    /// What is wrong with the model as a rank would load it: not where that depends on a field that is wrong itself.
    fn look_at_model(&self, faults: &mut Faults) {
        if faults.concern(&["model"]) {
            return;
        }
        let (job, told) = (&self.job, |error: TrainError| self.job.retold(&error.to_string()));
        let overrides = Overrides { pooling: Some(job.pooling().unwrap_or(Pooling::Cls)), max_tokens: None };
        let dimensions = match Checkpoint::open(&job.model, &overrides) {
            Ok(checkpoint) => checkpoint.card().dimensions,
            Err(error) => return faults.note("model", job.retold(&error.to_string())),
        };
        let beyond = |dims: &&i64| usize::try_from(**dims).is_ok_and(|dims| dims > dimensions);
        if let Some(dims) = job.mrl_dims.iter().find(beyond).filter(|_| dimensions > 0) {
            faults.note(
                "mrl_dims",
                format!("it has {dims}, and the model's vectors have {dimensions} dimensions"),
            );
        }
        if faults.concern(&["kind"]) {
            return;
        }
        match rank::Trial(job).lengths() {
            Ok(beyond) => {
                for (field, what) in beyond {
                    if !faults.concern(&[field]) {
                        faults.note(field, what);
                    }
                }
            }
            Err(error) => return faults.note("model", told(error)),
        }
        if !faults.concern(&LOADED_BY)
            && let Err((field, error)) = rank::Trial(job).model()
        {
            faults.note(field, told(error));
        }
    }

    /// Whether it is measured before it is promoted.
    pub(super) fn is_gated(&self) -> bool {
        self.publish.as_ref().is_some_and(|publish| publish.gate.is_some())
    }

    /// Positive and negatives of a query in the batch that `example` begins.
    fn group_size(&self, example: &Example) -> usize {
        let usual = self.job.train_group_size;
        if self.job.same_dataset_within_batch { example.group_size(usual) } else { usual }
    }

    /// What is wrong with a file of training data, or with those of a directory.
    fn look_below(&self, path: &Path, group_is_known: bool) -> Vec<String> {
        let found = match files(path) {
            Ok(found) if found.is_empty() => {
                let path = self.job.said(path);
                return vec![format!("{} holds no file that ends in .jsonl or .json", path.display())];
            }
            Ok(found) => found,
            Err(error) => return vec![error.named(&self.job.fetched).to_string()],
        };
        found.iter().flat_map(|file| self.look_at(file, group_is_known)).collect()
    }

    fn look_at(&self, path: &Path, group_is_known: bool) -> Vec<String> {
        let told = |error: TrainError| error.named(&self.job.fetched).to_string();
        let lines = match JsonLines::open(path) {
            Ok(lines) if lines.is_empty() => {
                return vec![format!("{} is empty", self.job.said(path).display())];
            }
            Ok(lines) => lines,
            Err(error) => return vec![told(error)],
        };
        let wrong = (0..lines.len().min(LINES)).filter_map(|at| {
            let example = match lines.read(at) {
                Ok(example) => example,
                Err(error) => return Some(told(error)),
            };
            let scored = |texts: &[String], scores: &Option<Vec<f64>>| {
                scores.as_ref().is_some_and(|scores| scores.len() == texts.len())
            };
            let reason = if example.query.trim().is_empty() {
                "query is empty"
            } else if example.pos.is_empty() {
                "pos is empty: a query without positives teaches nothing"
            } else if group_is_known && example.neg.is_empty() && self.group_size(&example) > 1 {
                "neg is empty, and train_group_size is more than 1"
            } else if self.job.knowledge_distillation
                && !self.job.same_dataset_within_batch
                && !(scored(&example.pos, &example.pos_scores) && scored(&example.neg, &example.neg_scores))
            {
                "knowledge_distillation is on, and pos_scores and neg_scores are not one for each text"
            } else {
                return None;
            };
            Some(told(lines.fault(at, reason)))
        });
        wrong.take(TOLD).collect()
    }
}

/// A sentence that begins with its field, apart.
fn named(sentence: &str) -> Fault {
    let (field, reason) = sentence.split_once(' ').unwrap_or((sentence, ""));
    fault(field, reason)
}

fn first_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Spec, Vec<Fault>> {
        let mut faults = Faults::default();
        let spec = Spec::read(text, Path::new("o"), &mut faults);
        faults.or(spec)
    }

    #[track_caller]
    fn faults(text: &str) -> Vec<String> {
        let faults = parse(text).unwrap_err();
        faults.into_iter().map(|fault| fault.field).collect()
    }

    const LEAST: &str = "kind: embedder\nmodel: m\ntrain_data: [d.jsonl]\n";

    #[test]
    fn a_short_document_has_the_references_defaults() {
        let spec = parse(LEAST).unwrap();
        assert_eq!((spec.ranks, spec.job.train_group_size, spec.publish), (1, 8, None));
        let json = r#"{"kind": "reranker", "model": "m", "train_data": ["d.jsonl"], "ranks": 2}"#;
        assert_eq!(parse(json).unwrap().ranks, 2);
    }

    #[test]
    fn every_fault_is_told_at_once_by_its_field() {
        let text =
            "kind: embeder\ntrain_data: 3\nrankz: 2\nranks: -1\ntrain_group_size: -4\nlearning_rate: fast\n";
        assert_eq!(
            faults(text),
            ["ranks", "model", "kind", "learning_rate", "rankz", "train_data", "train_group_size"]
        );
        assert_eq!(faults(&format!("{LEAST}temperature: 0\nranks: 0\n")), ["temperature", "ranks"]);
        let publish = "publish: {alias: a/b, promote: true, gate: {metric: f1}}\n";
        assert_eq!(
            faults(&format!("{LEAST}{publish}")),
            ["publish.alias", "publish.new_space", "publish.gate", "publish.gate.metric"]
        );
        assert_eq!(faults(&format!("{LEAST}output_dir: /etc\n")), ["output_dir"]);
        let two = "query_instruction_for_rerank: a\nquery_instruction_for_retrieval: b\n";
        assert_eq!(faults(&format!("{LEAST}{two}")), ["query_instruction_for_retrieval"]);
        for long in ["timeout_seconds: 18446744073709551615\n", "timeout_seconds: 0\n"] {
            assert_eq!(faults(&format!("{LEAST}{long}")), ["timeout_seconds"]);
        }
        for no_mapping in ["", "- a\n", "kind: [", "3"] {
            assert_eq!(faults(no_mapping), ["spec"], "{no_mapping:?}");
        }
    }

    #[test]
    fn fields_within_fields_are_told_at_once_too() {
        let evaluation = "evaluation: {splt: 0.1, sts: 3}\n";
        assert_eq!(faults(&format!("{LEAST}{evaluation}")), ["evaluation.splt", "evaluation.sts"]);
        let publish = "publish: {promote: soon, gate: {metrik: f1, margin: wide}, to: x}\n";
        assert_eq!(
            faults(&format!("{LEAST}{publish}")),
            ["publish.alias", "publish.gate.margin", "publish.gate.metrik", "publish.promote", "publish.to"]
        );
        assert_eq!(faults(&format!("{LEAST}publish: docs\nevaluation: [a]\n")), ["publish", "evaluation"]);
    }

    #[test]
    fn what_is_for_a_wrong_field_is_not_held_against_it() {
        let more = "evaluation: {splt: 0.1}\neval_steps: 5\nload_best_model_at_end: true\n\
                    publish: {alias: a, gate: {}}\nuse_lora: very\nlora_rank: 8\n";
        assert_eq!(faults(&format!("{LEAST}{more}")), ["evaluation.splt", "use_lora"]);
        let alone = "eval_steps: 5\npublish: {alias: a, gate: {}}\nlora_rank: 8\n";
        assert_eq!(faults(&format!("{LEAST}{alone}")), ["eval_steps", "lora_rank", "publish.gate"]);
    }

    #[test]
    fn the_example_names_every_field_with_its_default() {
        let spec = parse(EXAMPLE).unwrap();
        let least = parse(LEAST).unwrap();
        let (Value::Object(example), Value::Object(fields)) =
            (serde_saphyr::from_str(EXAMPLE).unwrap(), serde_json::to_value(&least.job).unwrap())
        else {
            panic!("they are mappings")
        };
        let written = |field: &str| {
            EXAMPLE.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{field}:")))
        };
        for field in fields.keys().map(String::as_str).chain(BESIDE).filter(|field| *field != "output_dir") {
            assert!(written(field), "{field} is not in the example");
        }
        let own = ["kind", "model", "train_data", "publish", "ranks", "evaluation"];
        for (field, value) in
            example.iter().filter(|(field, _)| fields.contains_key(*field) && !own.contains(&field.as_str()))
        {
            assert_eq!(serde_json::to_value(&spec.job).unwrap()[field], fields[field], "{field}: {value}");
        }
    }
}
