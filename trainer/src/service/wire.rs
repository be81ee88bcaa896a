//! Jobs as callers see them.

use cluster::{JobEvaluation, JobGate, JobState, JobStep, ListedJob};
use proto::v1;

/// How much of a job is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// A line of a list.
    Line,
    /// All but its curve.
    Whole,
}

pub(super) fn job(found: &ListedJob, detail: Detail) -> v1::Job {
    let ListedJob { name, job, progress, owner, .. } = found;
    let trainer = owner.as_ref().or(job.trainer.as_ref());
    let progress = progress.clone().unwrap_or_default();
    let whole = detail == Detail::Whole;
    v1::Job {
        name: name.to_string(),
        state: state(job.state).into(),
        spec: if whole { job.spec.clone() } else { String::new() },
        ranks: job.ranks,
        attempt: job.attempt,
        trainer: trainer.map(ToString::to_string).unwrap_or_default(),
        submitted_unix_ms: job.submitted_unix_ms,
        started_unix_ms: job.started_unix_ms,
        ended_unix_ms: job.ended_unix_ms,
        reason: job.reason.clone(),
        last: (progress.last.step > 0).then(|| step(&progress.last)),
        steps: progress.steps,
        tokens_per_second: progress.tokens_per_second,
        seconds_left: progress.seconds_left,
        evaluations: job.evaluations.iter().map(evaluation).collect(),
        events: if whole { job.events.iter().map(event).collect() } else { Vec::new() },
        log: if whole { progress.log } else { Vec::new() },
        curve: Vec::new(),
        model_dir: job.outcome.model.clone(),
        model_step: job.outcome.step,
        alias: job.outcome.alias.clone(),
        digest: job.outcome.digest.clone(),
        gate: job.outcome.gate.as_ref().map(gate),
        swap_id: job.outcome.swap_id.clone(),
    }
}

pub(super) fn step(step: &JobStep) -> v1::JobStep {
    let JobStep { step, loss, learning_rate, grad_norm } = *step;
    v1::JobStep { step, loss, learning_rate, grad_norm }
}

fn event(event: &cluster::JobEvent) -> v1::JobEvent {
    v1::JobEvent { at_unix_ms: event.at_unix_ms, what: event.what.clone() }
}

fn evaluation(evaluation: &JobEvaluation) -> v1::JobEvaluation {
    let metric = |(name, value): (&String, &f64)| v1::Metric { name: name.clone(), value: *value };
    v1::JobEvaluation { step: evaluation.step, metrics: evaluation.metrics.iter().map(metric).collect() }
}

fn gate(gate: &JobGate) -> v1::JobGate {
    let JobGate { metric, margin, served_digest, served, trained, passed } = gate.clone();
    v1::JobGate { metric, margin, served_digest, served, trained, passed }
}

fn state(state: JobState) -> v1::JobState {
    match state {
        JobState::Queued => v1::JobState::Queued,
        JobState::Running => v1::JobState::Running,
        JobState::Publishing => v1::JobState::Publishing,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    }
}
