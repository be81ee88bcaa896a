//! Jobs as JSON, and the words for what they are.

use std::collections::BTreeMap;

use proto::v1::{Job, JobEvaluation, JobEvent, JobGate, JobState, JobStep, Metric};
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

/// The first evaluation of a job, and that of its model; while it has none, the last one.
pub(super) fn before_and_after(job: &Job) -> Option<[&JobEvaluation; 2]> {
    let of_model = || job.evaluations.iter().find(|evaluation| evaluation.step == job.model_step);
    let after = if job.model_dir.is_empty() { None } else { of_model() };
    Some([job.evaluations.first()?, after.or(job.evaluations.last())?])
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

/// What happened after `seen`, the last that was told. Of a long job only the first and the last events are kept, so that
/// their number tells nothing.
pub(super) fn news<'a>(events: &'a [JobEvent], seen: Option<&JobEvent>) -> &'a [JobEvent] {
    let Some(seen) = seen else { return events };
    let told = events.iter().rposition(|event| event == seen).map(|at| at + 1);
    let told = told.unwrap_or_else(|| events.partition_point(|event| event.at_unix_ms <= seen.at_unix_ms));
    &events[told..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(moments: &[u64], seen: Option<u64>, expected: &[u64]) {
        let event = |&at_unix_ms: &u64| JobEvent { at_unix_ms, what: format!("at {at_unix_ms}") };
        let events: Vec<JobEvent> = moments.iter().map(event).collect();
        let news = news(&events, seen.as_ref().map(event).as_ref());
        assert_eq!(news, expected.iter().map(event).collect::<Vec<_>>());
    }

    #[test]
    fn after_is_what_the_model_is() {
        let evaluations = [0, 4, 8].map(|step| JobEvaluation { step, ..JobEvaluation::default() }).to_vec();
        let mut job = Job { evaluations, ..Job::default() };
        let steps = |job: &Job| before_and_after(job).map(|both| both.map(|evaluation| evaluation.step));
        assert_eq!(steps(&job), Some([0, 8]));
        // The best was kept, and not the last.
        (job.model_dir, job.model_step) = ("jobs/a/model".to_owned(), 4);
        assert_eq!(steps(&job), Some([0, 4]));
        // That of its model is among those that were left out.
        job.model_step = 5;
        assert_eq!(steps(&job), Some([0, 8]));
        assert_eq!(steps(&Job::default()), None);
    }

    #[test]
    fn what_happened_is_told_once_also_where_events_are_left_out() {
        check(&[1, 2, 3], None, &[1, 2, 3]);
        check(&[1, 2, 3], Some(2), &[3]);
        check(&[1, 2, 3], Some(3), &[]);
        // As many as before, and others.
        check(&[1, 3, 4], Some(3), &[4]);
        check(&[1, 4, 5], Some(3), &[4, 5]);
    }
}
