//! Jobs as JSON, and the words for what they are.

use std::collections::BTreeMap;

use proto::v1::{Job, JobEvaluation, JobGate, JobState, JobStep, Metric};
use serde_json::{Value, json};

pub(super) fn job(job: &Job) -> Value {
    json!({
        "name": job.name,
        "state": state(job.state()),
        "ranks": job.ranks,
        "attempt": job.attempt,
        "trainer": job.trainer,
        "submitted_unix_ms": job.submitted_unix_ms,
        "started_unix_ms": job.started_unix_ms,
        "ended_unix_ms": job.ended_unix_ms,
        "reason": job.reason,
        "last": job.last.as_ref().map(step),
        "steps": job.steps,
        "tokens_per_second": job.tokens_per_second,
        "seconds_left": job.seconds_left,
        "evaluations": job.evaluations.iter().map(evaluation).collect::<Vec<_>>(),
        "events": job.events.iter().map(|event| json!({ "at_unix_ms": event.at_unix_ms, "what": event.what })).collect::<Vec<_>>(),
        "log": job.log,
        "curve": job.curve.iter().map(step).collect::<Vec<_>>(),
        "model_dir": job.model_dir,
        "model_step": job.model_step,
        "alias": job.alias,
        "digest": job.digest,
        "gate": job.gate.as_ref().map(gate),
        "swap_id": job.swap_id,
        "spec": job.spec,
    })
}

fn step(step: &JobStep) -> Value {
    let JobStep { step, loss, learning_rate, grad_norm } = step;
    json!({ "step": step, "loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm })
}

fn evaluation(evaluation: &JobEvaluation) -> Value {
    let metrics: BTreeMap<&str, f64> =
        evaluation.metrics.iter().map(|Metric { name, value }| (name.as_str(), *value)).collect();
    json!({ "step": evaluation.step, "metrics": metrics })
}

fn gate(gate: &JobGate) -> Value {
    let JobGate { metric, margin, served_digest, served, trained, passed } = gate;
    json!({
        "metric": metric, "margin": margin, "served_digest": served_digest,
        "served": served, "trained": trained, "passed": passed,
    })
}

pub(super) fn evaluation_line(evaluation: &JobEvaluation) -> String {
    let metric = |metric: &Metric| format!("{} {:.4}", metric.name, metric.value);
    let metrics: Vec<String> = evaluation.metrics.iter().map(metric).collect();
    format!("step {:<8} {}", evaluation.step, metrics.join(", "))
}

pub(super) fn gate_line(gate: &JobGate) -> String {
    let decided = if gate.passed { "passed" } else { "held back" };
    let served = match gate.served {
        Some(served) => format!("that of what was served {served:.4}"),
        None => "nothing was served".to_owned(),
    };
    format!("{decided}: {} {:.4}, {served}, margin {}", gate.metric, gate.trained, gate.margin)
}

pub(super) fn state(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Publishing => "publishing",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

pub(super) fn is_final(state: JobState) -> bool {
    matches!(state, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}
