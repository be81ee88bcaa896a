//! What is written of a job while it runs: its record, how far it is, and how it goes.

use std::time::Duration;

use cluster::{
    Error, Etcd, Job, JobCurve, JobEvaluation, JobEvent, JobFence, JobProgress, JobState, JobStep, unix_ms,
};
use tokio::time::{self, Instant};

use crate::checkpoint::Evaluated;
use crate::rank::{Progress, Told};

/// Between two writes of how far a job is.
const PROGRESS: Duration = Duration::from_secs(1);
/// Between two writes of its curve.
const CURVE: Duration = Duration::from_secs(5);
/// Points of a curve; where there would be more, every second one goes.
const POINTS: usize = 512;
/// Lines of logs that are kept in the record.
const LOG: usize = 20;
/// Events, and evaluations, that are kept: etcd takes records of a megabyte. The first and the last are told.
const EVENTS: usize = 200;
/// Between two looks for a wish.
const LOOK: Duration = Duration::from_millis(500);
/// Between two tries to write what must be written.
const AGAIN: Duration = Duration::from_secs(1);

/// The job has another owner, or will soon: nothing may be written, and nothing may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lost;

/// A job as its owner writes it.
#[derive(Debug)]
pub(super) struct Journal {
    etcd: Etcd,
    pub(super) fence: JobFence,
    pub(super) job: Job,
    progress: JobProgress,
    curve: Curve,
    record_is_due: bool,
    progress_is_due: bool,
    written: Instant,
    curve_written: Instant,
}

/// Points at equal distances.
#[derive(Debug)]
struct Curve {
    points: Vec<JobStep>,
    every: u64,
}

impl Journal {
    pub(super) fn new(etcd: Etcd, fence: JobFence, job: Job, progress: JobProgress, curve: JobCurve) -> Self {
        let now = Instant::now();
        let every = curve.points.windows(2).map(|pair| pair[1].step.saturating_sub(pair[0].step)).min();
        let curve = Curve { points: curve.points, every: every.unwrap_or(1).max(1) };
        Self {
            etcd,
            fence,
            job,
            progress,
            curve,
            record_is_due: false,
            progress_is_due: false,
            written: now,
            curve_written: now,
        }
    }

    /// Steps that were taken so far.
    pub(super) fn step(&self) -> u64 {
        self.progress.last.step
    }

    pub(super) fn event(&mut self, what: impl Into<String>) {
        let what = what.into();
        tracing::info!(job = %self.fence.job, "{what}");
        let events = &mut self.job.events;
        events.push(JobEvent { at_unix_ms: unix_ms(), what });
        if events.len() > EVENTS {
            events.remove(EVENTS / 2);
        }
        self.record_is_due = true;
    }

    pub(super) fn state(&mut self, state: JobState) {
        self.job.state = state;
        self.record_is_due = true;
    }

    pub(super) fn log(&mut self, line: String) {
        self.progress.log.push(line);
        let more = self.progress.log.len().saturating_sub(LOG);
        self.progress.log.drain(..more);
        self.progress_is_due = true;
    }

    pub(super) fn told(&mut self, told: Told) {
        match told {
            Told::Step(progress) => self.took(&progress),
            Told::Evaluation(evaluated) => self.evaluated(evaluated),
            Told::Checkpoint { step } => self.event(format!("checkpoint after step {step}")),
            Told::Finished { model, step } => {
                self.event(format!("trained; the model is that of step {step}"));
                self.job.outcome.model = model.display().to_string();
                self.job.outcome.step = step;
            }
        }
    }

    /// Keeps what an evaluation found; that it did is an event unless it is known.
    fn evaluated(&mut self, Evaluated { step, metrics, best, .. }: Evaluated) {
        let found = JobEvaluation { step, metrics };
        if self.job.evaluations.contains(&found) {
            return;
        }
        let shown: Vec<String> =
            found.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let best = if best { ", the best so far" } else { "" };
        self.event(format!("evaluated after step {step}: {}{best}", shown.join(", ")));
        let evaluations = &mut self.job.evaluations;
        evaluations.retain(|evaluation| evaluation.step != step);
        evaluations.push(found);
        evaluations.sort_by_key(|evaluation| evaluation.step);
        if evaluations.len() > EVENTS {
            evaluations.remove(EVENTS / 2);
        }
    }

    fn took(&mut self, progress: &Progress) {
        let Progress { step, steps, loss, learning_rate, grad_norm, tokens_per_second, seconds_left, .. } =
            *progress;
        let last = JobStep { step, loss, learning_rate, grad_norm };
        self.curve.add(last);
        self.progress = JobProgress {
            last,
            steps,
            tokens_per_second,
            seconds_left,
            log: std::mem::take(&mut self.progress.log),
        };
        self.progress_is_due = true;
    }

    /// Writes what is due, if it is time. Without etcd it is written later.
    ///
    /// # Errors
    /// [`Lost`].
    pub(super) async fn write(&mut self) -> Result<(), Lost> {
        if self.record_is_due {
            let written = self.etcd.write_job(&self.fence, &self.job).await;
            self.record_is_due = !settled(written)?;
        }
        if self.progress_is_due && self.written.elapsed() >= PROGRESS {
            let curve = (self.curve_written.elapsed() >= CURVE).then(|| self.curve.record());
            self.written = Instant::now();
            let written = self.etcd.write_progress(&self.fence, &self.progress, curve.as_ref()).await;
            self.progress_is_due = !settled(written)?;
            if curve.is_some() {
                self.curve_written = Instant::now();
            }
        }
        Ok(())
    }

    /// Whether somebody wants the job no more. Without etcd nobody is known to.
    pub(super) async fn is_cancelled(&self) -> bool {
        matches!(self.etcd.job(&self.fence.job).await, Ok(Some(found)) if found.cancelled)
    }

    /// Waits until somebody wants the job no more. Cancel safe.
    pub(super) async fn cancelled(&self) {
        while !self.is_cancelled().await {
            time::sleep(LOOK).await;
        }
    }

    /// Writes all, and gives the job up; tries until etcd answers. Whoever has lost the job by then has nothing to say.
    pub(super) async fn release(mut self) {
        if self.job.state.is_final() {
            self.job.ended_unix_ms = unix_ms();
        }
        let curve = self.curve.record();
        loop {
            let told = self.etcd.write_progress(&self.fence, &self.progress, Some(&curve)).await;
            let released = match told {
                Ok(true) => self.etcd.release_job(&self.fence, &self.job).await,
                other => other,
            };
            match settled(released) {
                Ok(true) | Err(Lost) => return,
                Ok(false) => time::sleep(AGAIN).await,
            }
        }
    }
}

/// Whether it was written: false where etcd did not answer.
fn settled(written: Result<bool, Error>) -> Result<bool, Lost> {
    match written {
        Ok(true) => Ok(true),
        Ok(false) => Err(Lost),
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "a job's record is not written");
            Ok(false)
        }
    }
}

impl Curve {
    /// Takes a step in. One that was taken before, in an attempt that was lost, takes its place.
    fn add(&mut self, step: JobStep) {
        self.points.retain(|point| point.step < step.step);
        if self.points.is_empty() || step.step.is_multiple_of(self.every) {
            self.points.push(step);
        }
        if self.points.len() > POINTS {
            self.every *= 2;
            let every = self.every;
            let mut at = 0;
            self.points.retain(|point| {
                at += 1;
                at == 1 || point.step.is_multiple_of(every)
            });
        }
    }

    fn record(&self) -> JobCurve {
        JobCurve { points: self.points.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(curve: &Curve) -> Vec<u64> {
        curve.points.iter().map(|point| point.step).collect()
    }

    #[test]
    fn a_curve_is_thinned_out_and_has_its_first_step() {
        let mut curve = Curve { points: Vec::new(), every: 1 };
        for step in 1..=5_000 {
            curve.add(JobStep { step, ..JobStep::default() });
        }
        let found = steps(&curve);
        assert!(found.len() <= POINTS && found.len() > POINTS / 4, "{}", found.len());
        assert_eq!(found[0], 1);
        assert!(found[1..].windows(2).all(|pair| pair[1] - pair[0] == curve.every));
    }

    #[test]
    fn steps_that_are_taken_again_take_their_place() {
        let mut curve = Curve { points: Vec::new(), every: 1 };
        for step in [1, 2, 3, 4, 3, 4, 5] {
            curve.add(JobStep { step, ..JobStep::default() });
        }
        assert_eq!(steps(&curve), [1, 2, 3, 4, 5]);
    }
}
