//! What this gateway sees of trials: calls by the old checkpoint and by the new one, counted side by side.
//!
//! The leader adds up what all gateways say of a trial, and ends it for the one or the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use cluster::{Alias, Name, Sample, TrialSample};
use tokio::time::Instant;

use crate::error::CallError;
use crate::resolve::{Pin, Side};

/// Trials under way, by model.
#[derive(Debug, Default)]
pub struct Trials(Mutex<HashMap<String, TrialSample>>);

impl Trials {
    /// Counts a call on `pin` when it is over, if it is part of a trial.
    #[must_use]
    pub fn watch<'a>(&'a self, pin: &'a Pin, due: Instant) -> Watched<'a> {
        Watched { trials: self, pin, began: Instant::now(), due, over: false }
    }

    /// Takes in more of what was seen of a swap. What is known of an earlier one of the model is forgotten.
    pub fn record(&self, model: &Name, swap_id: &str, add: impl FnOnce(&mut Sample)) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let none = || TrialSample { swap_id: swap_id.to_owned(), sample: Sample::default() };
        let known = samples.entry(model.to_string()).or_insert_with(none);
        if known.swap_id != swap_id {
            *known = none();
        }
        add(&mut known.sample);
    }

    /// What was seen of trials that are still under way by `aliases`; the others are forgotten.
    #[must_use]
    pub fn under_way(&self, aliases: &BTreeMap<String, Alias>) -> BTreeMap<String, TrialSample> {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|model, known| {
            let alias = aliases.get(model).filter(|alias| alias.canary.is_some() || alias.shadow.is_some());
            alias.is_some_and(|alias| alias.swap_id.as_deref() == Some(known.swap_id.as_str()))
        });
        samples.iter().map(|(model, known)| (model.clone(), known.clone())).collect()
    }
}

/// A call that is under way.
#[derive(Debug)]
pub struct Watched<'a> {
    trials: &'a Trials,
    pin: &'a Pin,
    began: Instant,
    due: Instant,
    over: bool,
}

impl Watched<'_> {
    /// Counts the call.
    pub fn end<T>(mut self, outcome: &Result<T, CallError>) {
        self.over = true;
        if let Some(failed) = failed(outcome) {
            self.count(failed);
        }
    }

    fn count(&self, failed: bool) {
        let Some(part) = &self.pin.part else { return };
        let took = self.began.elapsed().as_secs_f64() * 1000.0;
        self.trials.record(&self.pin.model, &part.swap_id, |sample| match part.side {
            Side::Old(_) => sample.old.record(took, failed),
            Side::New => sample.new.record(took, failed),
        });
    }
}

/// A call that is dropped was given up by its caller, or its time was up.
impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if !self.over && Instant::now() >= self.due {
            self.count(true);
        }
    }
}

/// Whether a call failed for a reason that is not the caller's; `None` where it says nothing of the checkpoint.
fn failed<T>(outcome: &Result<T, CallError>) -> Option<bool> {
    match outcome {
        Ok(_) => Some(false),
        Err(CallError::Unreachable(_) | CallError::Deadline | CallError::Bug(_)) => Some(true),
        Err(
            CallError::Invalid(_)
            | CallError::UnknownModel(_)
            | CallError::NotServed(_)
            | CallError::Overloaded(_)
            | CallError::Refused(_),
        ) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cluster::Canary;
    use proto::v1;
    use tokio::time::{self, Duration};
    use tonic::Status;

    use super::*;
    use crate::checkpoint::{Card, Digest};
    use crate::error::Defect;
    use crate::resolve::{Part, unreachable};

    fn pin(swap_id: &str, side: Side) -> Pin {
        let checkpoint = v1::Checkpoint { kind: 1, ..v1::Checkpoint::default() };
        Pin {
            model: Name::parse("m").unwrap(),
            digest: Digest::from("d"),
            epoch: 1,
            card: Arc::new(Card::of(&checkpoint).unwrap()),
            part: Some(Part { swap_id: swap_id.into(), side }),
        }
    }

    fn on_trial(swap_id: &str) -> BTreeMap<String, Alias> {
        let canary = Some(Canary { digest: "e".into(), per_mille: 1, salt: "s".into() });
        let alias = Alias { swap_id: Some(swap_id.into()), canary, ..Alias::of("d", 1) };
        [("m".to_owned(), alias)].into()
    }

    /// Calls and failures of the old side, then of the new one.
    fn counts(trials: &Trials, swap_id: &str) -> Option<[u64; 4]> {
        let seen = trials.under_way(&on_trial(swap_id)).remove("m")?.sample;
        Some([seen.old.calls, seen.old.errors, seen.new.calls, seen.new.errors])
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_counted_by_their_side_and_by_whose_fault_they_failed() {
        let trials = Trials::default();
        let due = Instant::now() + Duration::from_secs(10);
        let end = |side, outcome: Result<(), CallError>| trials.watch(&pin("s", side), due).end(&outcome);
        end(Side::Old(None), Ok(()));
        end(Side::New, Ok(()));
        end(Side::New, Err(Defect("oh".into()).into()));
        end(Side::New, Err(unreachable("nobody")));
        end(Side::New, Err(CallError::Refused(Status::invalid_argument("inputs[0]"))));
        end(Side::New, Err(CallError::UnknownModel(Name::parse("n").unwrap())));
        assert_eq!(counts(&trials, "s"), Some([1, 0, 3, 2]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_dropped_counts_where_its_time_was_up() {
        let trials = Trials::default();
        let due = Instant::now() + Duration::from_secs(10);
        let pin = pin("s", Side::New);
        drop(trials.watch(&pin, due));
        assert_eq!(counts(&trials, "s"), None, "its caller went away");
        let late = trials.watch(&pin, due);
        time::advance(Duration::from_secs(11)).await;
        drop(late);
        assert_eq!(counts(&trials, "s"), Some([0, 0, 1, 1]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_is_over_is_forgotten() {
        let trials = Trials::default();
        let record = |swap_id| {
            let model = Name::parse("m").unwrap();
            trials.record(&model, swap_id, |sample| sample.old.record(1.0, false));
        };
        record("s");
        record("s");
        record("t");
        assert_eq!(counts(&trials, "t"), Some([1, 0, 0, 0]), "the model's next swap");
        assert_eq!(counts(&trials, "u"), None);
        assert_eq!(counts(&trials, "t"), None, "forgotten");
    }
}
