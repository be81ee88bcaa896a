//! A job on a terminal: a bar that fills, and what happens above it.

use indicatif::{ProgressBar, ProgressStyle};
use proto::v1::{Job, JobEvent};

use super::objects;
use crate::print;

/// A bar that fills with steps.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    /// The last event that was told.
    seen: Option<JobEvent>,
}

impl Bar {
    pub(super) fn new() -> Self {
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len}  {msg}")
            .expect("the template is valid")
            .progress_chars("=> ");
        Self { bar: ProgressBar::no_length().with_style(style), seen: None }
    }

    pub(super) fn update(&mut self, job: &Job) {
        for event in objects::news(&job.events, self.seen.as_ref()) {
            self.bar.println(print::printable(&event.what, 1_000));
        }
        self.seen = job.events.last().cloned();
        self.bar.set_prefix(objects::state(job.state()));
        if job.steps > 0 {
            self.bar.set_length(job.steps);
        }
        if let Some(last) = job.last {
            self.bar.set_position(last.step);
            self.bar.set_message(numbers(job));
        }
    }

    pub(super) fn finish(&self) {
        self.bar.abandon();
    }
}

/// Loss, rate, norm, speed, and the time that is left.
pub(super) fn numbers(job: &Job) -> String {
    let last = job.last.unwrap_or_default();
    let left = job.seconds_left.max(0.0).round();
    let left = if left < 120.0 { format!("{left} s") } else { format!("{:.0} min", left / 60.0) };
    format!(
        "loss {:.4}  lr {:.2e}  grad norm {:.3}  {:.0} tokens/s  {left} left",
        last.loss, last.learning_rate, last.grad_norm, job.tokens_per_second
    )
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressDrawTarget;
    use proto::v1::{JobState, JobStep};

    use super::*;

    #[test]
    fn a_bar_shows_steps_and_numbers() {
        let mut bar = Bar::new();
        bar.bar.set_draw_target(ProgressDrawTarget::hidden());
        let mut job = Job { steps: 10, ..Job::default() };
        job.set_state(JobState::Running);
        bar.update(&job);
        assert_eq!((bar.bar.position(), bar.bar.length(), bar.bar.message().as_str()), (0, Some(10), ""));
        job.last = Some(JobStep { step: 4, loss: 0.5, learning_rate: 0.001, grad_norm: 2.0 });
        (job.tokens_per_second, job.seconds_left) = (1234.4, 300.0);
        bar.update(&job);
        assert_eq!((bar.bar.position(), bar.bar.prefix().as_str()), (4, "running"));
        assert_eq!(bar.bar.message(), "loss 0.5000  lr 1.00e-3  grad norm 2.000  1234 tokens/s  5 min left");
    }
}
