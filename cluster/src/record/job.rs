//! Fine-tuning: who trains, and what became of what was asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::name::TrainerId;

/// A trainer, as it describes itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Trainer {
    /// `host:port` where gateways reach it.
    pub address: String,
    /// What ranks run on, one each: `cpu`, `cuda:0`.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// Who runs a job at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOwner {
    /// The trainer.
    pub trainer: TrainerId,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for devices.
    #[default]
    Queued,
    /// Its ranks train.
    Running,
    /// It is trained, and becomes a version.
    Publishing,
    /// All that was asked for is done.
    Succeeded,
    /// It cannot be done; the reason says why.
    Failed,
    /// Somebody wanted it no more.
    Cancelled,
}

impl JobState {
    /// Whether nothing more happens.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// A job, as its owner describes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What was submitted, a YAML document.
    pub spec: String,
    /// How many devices it takes.
    pub ranks: u32,
    /// How far it is.
    pub state: JobState,
    /// How often ranks were started; more than once where something died.
    #[serde(default)]
    pub attempt: u32,
    /// Who runs it, or ran it last.
    #[serde(default)]
    pub trainer: Option<TrainerId>,
    /// When it was submitted.
    pub submitted_unix_ms: u64,
    /// When ranks were first started; 0 before.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// When it ended; 0 before.
    #[serde(default)]
    pub ended_unix_ms: u64,
    /// Why it failed; empty where it did not.
    #[serde(default)]
    pub reason: String,
    /// How good the model was, first to last.
    #[serde(default)]
    pub evaluations: Vec<JobEvaluation>,
    /// What happened, first to last.
    #[serde(default)]
    pub events: Vec<JobEvent>,
    /// What it came to.
    #[serde(default)]
    pub outcome: JobOutcome,
}

/// How good the model was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobEvaluation {
    /// After so many steps.
    pub step: u64,
    /// By name.
    pub metrics: BTreeMap<String, f64>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEvent {
    /// When.
    pub at_unix_ms: u64,
    /// A sentence.
    pub what: String,
}

/// What a job came to, as far as it came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobOutcome {
    /// The directory of the trained model; empty before there is one.
    #[serde(default)]
    pub model: String,
    /// After how many steps it was like this.
    #[serde(default)]
    pub step: u64,
    /// The name that it was published under.
    #[serde(default)]
    pub alias: String,
    /// The checkpoint that it was published as.
    #[serde(default)]
    pub digest: String,
    /// What the gate compared, and what it decided.
    #[serde(default)]
    pub gate: Option<JobGate>,
    /// The swap that was asked for.
    #[serde(default)]
    pub swap_id: String,
}

/// A comparison with what is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobGate {
    /// What was compared.
    pub metric: String,
    /// By how much the new one had to be better.
    pub margin: f64,
    /// The checkpoint that was served; empty where the name meant nothing.
    pub served_digest: String,
    /// How good it is on the same data; none where the name meant nothing.
    pub served: Option<f64>,
    /// How good the new one is.
    pub trained: f64,
    /// Whether it may be promoted.
    pub passed: bool,
}

/// A step of a job: the last that was taken, or a point of its curve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobStep {
    /// Steps taken.
    pub step: u64,
    /// The mean over ranks and micro steps.
    pub loss: f64,
    /// The step's.
    pub learning_rate: f64,
    /// Of all gradients together.
    pub grad_norm: f64,
}

/// What is written while ranks train, every second or so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobProgress {
    /// The last step.
    pub last: JobStep,
    /// Of how many.
    pub steps: u64,
    /// Of all ranks.
    pub tokens_per_second: f64,
    /// At the speed so far.
    pub seconds_left: f64,
    /// The last lines that ranks logged.
    #[serde(default)]
    pub log: Vec<String>,
}

/// The curve of a job: every so many steps one, first to last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JobCurve {
    /// The points.
    pub points: Vec<JobStep>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{decode, encode};

    #[test]
    fn a_job_read_back_is_the_job_written() {
        let gate = JobGate {
            metric: "ndcg_at_10".into(),
            margin: 0.01,
            served_digest: "d".into(),
            served: Some(0.5),
            trained: 0.6,
            passed: true,
        };
        let job = Job {
            spec: "kind: embedder".into(),
            ranks: 2,
            state: JobState::Publishing,
            trainer: Some(TrainerId::parse("t").unwrap()),
            evaluations: vec![JobEvaluation { step: 3, metrics: BTreeMap::from([("m".into(), 0.25)]) }],
            events: vec![JobEvent { at_unix_ms: 1, what: "it began".into() }],
            outcome: JobOutcome { gate: Some(gate), ..JobOutcome::default() },
            ..Job::default()
        };
        assert_eq!(decode::<Job>(&encode(&job)).unwrap(), job);
        let least = br#"{"v":1,"spec":"","ranks":1,"state":"queued","submitted_unix_ms":7}"#;
        let expected = Job { ranks: 1, submitted_unix_ms: 7, ..Job::default() };
        assert_eq!(decode::<Job>(least).unwrap(), expected);
    }
}
