//! A change of the checkpoint that a model's name means.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::nack::NackReason;
use super::sample::Sample;
use crate::name::WorkerId;

/// Events that a swap remembers: the last ones.
const EVENTS: usize = 64;

/// A model's last swap: what was asked for, and how far it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Swap {
    /// Which one. Chosen at random.
    pub swap_id: String,
    /// What the name meant when it was asked for; none for a new name.
    pub from: Option<String>,
    /// What it is to mean.
    pub to: String,
    /// How it was asked to go.
    pub plan: SwapPlan,
    /// How far it is.
    pub state: SwapState,
    /// When it was asked for.
    pub requested_unix_ms: u64,
    /// When it is given up unless workers are ready.
    pub deadline_unix_ms: u64,
    /// How workers make room.
    pub mode: SwapMode,
    /// Workers that are told to let the old checkpoint go before they load the new one.
    #[serde(default)]
    pub wave: BTreeSet<WorkerId>,
    /// Workers that take part, as counted when it was taken up; 0 before.
    #[serde(default)]
    pub workers: u32,
    /// Workers that must be ready before anything changes; 0 before it was taken up.
    #[serde(default)]
    pub min_ready: u32,
    /// Workers that keep the old checkpoint while others make room, in waves.
    #[serde(default)]
    pub floor: u32,
    /// When the trial began, if there was one.
    #[serde(default)]
    pub trial_since_unix_ms: Option<u64>,
    /// When the name moved.
    #[serde(default)]
    pub committed_unix_ms: Option<u64>,
    /// The epoch of the name since the last thing this swap did to it; 0 before.
    #[serde(default)]
    pub epoch: u64,
    /// Why it was aborted or rolled back.
    #[serde(default)]
    pub reason: Option<String>,
    /// Workers that could not.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
    /// What happened, the oldest first.
    #[serde(default)]
    pub events: VecDeque<SwapEvent>,
    /// What the trial has shown so far, or did.
    #[serde(default)]
    pub comparison: Option<Comparison>,
    /// Somebody wants the trial ended in favour of the new checkpoint.
    #[serde(default)]
    pub commit_requested: bool,
    /// Somebody wants the old checkpoint let go.
    #[serde(default)]
    pub retire_requested: bool,
}

/// How a swap is to go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwapPlan {
    /// Workers that must be ready before anything changes; none: three quarters of those that serve the name.
    #[serde(default)]
    pub min_ready: Option<u32>,
    /// How long workers may take to be ready, in milliseconds.
    pub deadline_ms: u64,
    /// How long the old checkpoint stays loaded after the change, in milliseconds; none: until the next swap, or until
    /// it is retired by hand.
    #[serde(default)]
    pub retire_after_ms: Option<u64>,
    /// It is understood that the new vectors cannot be compared with the old ones.
    #[serde(default)]
    pub new_space: bool,
    /// Begin with a part of the callers.
    #[serde(default)]
    pub canary: Option<CanaryPlan>,
    /// How many of a thousand calls are tried on the new checkpoint too.
    #[serde(default)]
    pub shadow_per_mille: u32,
    /// How long calls are tried so where there is no canary, in milliseconds.
    pub shadow_ms: u64,
}

impl Default for SwapPlan {
    fn default() -> Self {
        Self {
            min_ready: None,
            deadline_ms: 600_000,
            retire_after_ms: None,
            new_space: false,
            canary: None,
            shadow_per_mille: 0,
            shadow_ms: 60_000,
        }
    }
}

/// A part of the callers on the new checkpoint, before all are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryPlan {
    /// How many of a thousand callers.
    pub per_mille: u32,
    /// How long until all follow where nothing speaks against it, in milliseconds.
    pub hold_ms: u64,
    /// Calls by these callers before anything is judged.
    pub min_calls: u64,
    /// By how much their share of failed calls may exceed the others'.
    pub max_error_excess: f64,
    /// How many times the others' 99th percentile of latency theirs may be.
    pub max_p99_ratio: f64,
}

impl CanaryPlan {
    /// That part of the callers, and the bounds that hold unless others are given.
    #[must_use]
    pub fn of(per_mille: u32) -> Self {
        Self { per_mille, hold_ms: 300_000, min_calls: 50, max_error_excess: 0.01, max_p99_ratio: 1.5 }
    }
}

/// How far a swap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapState {
    /// Asked for. The leader takes it up once what the name meant before `from` is let go.
    Requested,
    /// Workers get the new checkpoint ready.
    Preparing,
    /// Enough are ready; a part of the callers, or copies of calls, try it.
    Trial,
    /// The name means the new checkpoint; the old one is still loaded.
    Committed,
    /// Over: the old checkpoint is let go.
    Retired,
    /// Over before anybody was answered by the new checkpoint.
    Aborted,
    /// Over: nobody is answered by the new checkpoint any more.
    RolledBack,
}

impl SwapState {
    /// Whether the name may still come to mean the new checkpoint.
    #[must_use]
    pub fn is_open(self) -> bool {
        match self {
            Self::Requested | Self::Preparing | Self::Trial => true,
            Self::Committed | Self::Retired | Self::Aborted | Self::RolledBack => false,
        }
    }
}

/// How workers make room for the new checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapMode {
    /// They hold both.
    Beside,
    /// Both do not fit: some let the old one go first, while the others serve.
    Waves,
}

/// A worker that could not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Which one.
    pub worker: WorkerId,
    /// What kind of thing was wrong.
    pub reason: NackReason,
    /// What happened, for people.
    pub detail: String,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapEvent {
    /// When.
    pub at_unix_ms: u64,
    /// What, in a sentence.
    pub what: String,
}

/// What a trial has shown. What was not seen is none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Calls answered by the old checkpoint.
    pub old_calls: u64,
    /// Calls answered by the new one in its place.
    pub new_calls: u64,
    /// Of the old one's, failed.
    pub old_errors: u64,
    /// Of the new one's, failed.
    pub new_errors: u64,
    /// The old one's 99th percentile of latency, in milliseconds.
    pub old_p99_ms: Option<f64>,
    /// The new one's.
    pub new_p99_ms: Option<f64>,
    /// Copies of calls that the new checkpoint answered too.
    pub shadowed_calls: u64,
    /// Copies that failed, or were dropped for want of room.
    pub shadow_failures: u64,
    /// Lowest cosine of a text's old and new vector, where both are of one index space.
    pub cosine_min: Option<f64>,
    /// Its mean.
    pub cosine_mean: Option<f64>,
    /// Lowest rank correlation of old and new scores over the documents of a call.
    pub rank_correlation_min: Option<f64>,
    /// Its mean.
    pub rank_correlation_mean: Option<f64>,
    /// Time of a copy over time of the call itself, at the median.
    pub latency_ratio: Option<f64>,
}

impl From<&Sample> for Comparison {
    fn from(sample: &Sample) -> Self {
        let Sample { old, new, shadow } = sample;
        Self {
            old_calls: old.calls,
            new_calls: new.calls,
            old_errors: old.errors,
            new_errors: new.errors,
            old_p99_ms: old.latency.quantile(0.99),
            new_p99_ms: new.latency.quantile(0.99),
            shadowed_calls: shadow.calls,
            shadow_failures: shadow.failures,
            cosine_min: shadow.cosine.min(),
            cosine_mean: shadow.cosine.mean(),
            rank_correlation_min: shadow.rank_correlation.min(),
            rank_correlation_mean: shadow.rank_correlation.mean(),
            latency_ratio: shadow.latency_ratio.quantile(0.5),
        }
    }
}

impl Swap {
    /// A swap that nobody has taken up yet.
    #[must_use]
    pub fn requested(
        swap_id: String,
        (from, to): (Option<String>, String),
        plan: SwapPlan,
        now_unix_ms: u64,
    ) -> Self {
        let mut swap = Self {
            swap_id,
            from,
            to,
            state: SwapState::Requested,
            requested_unix_ms: now_unix_ms,
            deadline_unix_ms: now_unix_ms.saturating_add(plan.deadline_ms),
            plan,
            mode: SwapMode::Beside,
            wave: BTreeSet::new(),
            workers: 0,
            min_ready: 0,
            floor: 0,
            trial_since_unix_ms: None,
            committed_unix_ms: None,
            epoch: 0,
            reason: None,
            refusals: Vec::new(),
            events: VecDeque::new(),
            comparison: None,
            commit_requested: false,
            retire_requested: false,
        };
        swap.note(now_unix_ms, "asked for");
        swap
    }

    /// Whether another swap would be in its way. In waves that is so until the workers that could not hold both have
    /// followed: until then some hold the one checkpoint and some the other, and neither could get ready for a third.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.state.is_open() || (self.state == SwapState::Committed && self.mode == SwapMode::Waves)
    }

    /// From when on `before`, which the name meant before, is to be let go as soon as no call is left on it, in
    /// milliseconds since 1970; none where it is to stay. The leader, the workers and the gateways go by this alone.
    #[must_use]
    pub fn lets_go_from(&self, before: &str) -> Option<u64> {
        let since = self.committed_unix_ms.unwrap_or(self.requested_unix_ms);
        let planned = self.plan.retire_after_ms.map(|after| since.saturating_add(after));
        let by_hand = self.retire_requested.then_some(0);
        match self.state {
            // Before a next checkpoint is loaded, one goes.
            SwapState::Requested => (self.to != before).then_some(0),
            SwapState::Preparing | SwapState::Trial => None,
            // After waves, however they ended, whoever lacks what the name means loads it only when the other is gone.
            SwapState::Committed | SwapState::Retired | SwapState::Aborted | SwapState::RolledBack
                if self.mode == SwapMode::Waves =>
            {
                Some(0)
            }
            SwapState::Committed => by_hand.or(planned),
            SwapState::Retired | SwapState::Aborted | SwapState::RolledBack => by_hand,
        }
    }

    /// Remembers that something happened; the oldest events are forgotten.
    pub(crate) fn note(&mut self, at_unix_ms: u64, what: impl Into<String>) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(SwapEvent { at_unix_ms, what: what.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{decode, encode};

    fn swap() -> Swap {
        let plan = SwapPlan { canary: Some(CanaryPlan::of(50)), ..SwapPlan::default() };
        Swap::requested("s".into(), (Some("d".into()), "e".into()), plan, 7)
    }

    #[test]
    fn a_swap_read_back_is_the_swap_written() {
        let swap = Swap {
            wave: BTreeSet::from([WorkerId::parse("w1").unwrap()]),
            refusals: vec![Refusal {
                worker: WorkerId::parse("w2").unwrap(),
                reason: NackReason::Golden,
                detail: "0.9 < 0.999".into(),
            }],
            comparison: Some(Comparison::from(&Sample::default())),
            ..swap()
        };
        assert_eq!(decode::<Swap>(&encode(&swap)).unwrap(), swap);
    }

    #[test]
    fn what_another_release_left_out_has_its_default() {
        let json = br#"{"v":1,"swap_id":"s","from":null,"to":"e","state":"rolled_back","mode":"waves",
            "requested_unix_ms":1,"deadline_unix_ms":2,"plan":{"deadline_ms":1,"shadow_ms":0}}"#;
        let swap = decode::<Swap>(json).unwrap();
        assert_eq!((swap.state, swap.mode, swap.min_ready), (SwapState::RolledBack, SwapMode::Waves, 0));
        assert!(swap.plan.canary.is_none() && swap.events.is_empty());
    }

    #[test]
    fn a_worker_that_could_be_no_key_is_malformed() {
        let text = String::from_utf8(encode(&swap())).unwrap();
        let text = text.replace(r#""wave":[]"#, r#""wave":["a/b"]"#);
        assert!(decode::<Swap>(text.as_bytes()).is_err());
    }

    #[test]
    fn what_was_before_goes_by_one_rule() {
        let check = |state, mode, before, expected| {
            let swap = Swap { state, mode, ..swap() };
            assert_eq!(swap.lets_go_from(before), expected, "{state:?} {mode:?} {before}");
        };
        check(SwapState::Requested, SwapMode::Beside, "c", Some(0));
        check(SwapState::Requested, SwapMode::Beside, "e", None);
        for mode in [SwapMode::Beside, SwapMode::Waves] {
            check(SwapState::Preparing, mode, "e", None);
            check(SwapState::Trial, mode, "e", None);
        }
        for state in [SwapState::Committed, SwapState::Retired, SwapState::Aborted, SwapState::RolledBack] {
            check(state, SwapMode::Beside, "d", None);
            check(state, SwapMode::Waves, "d", Some(0));
            let by_hand = Swap { state, retire_requested: true, ..swap() };
            assert_eq!(by_hand.lets_go_from("d"), Some(0));
        }
    }

    #[test]
    fn the_last_events_are_remembered() {
        let mut swap = swap();
        (0..100).for_each(|i| swap.note(i, format!("event {i}")));
        assert_eq!(swap.events.len(), EVENTS);
        assert_eq!(swap.events.back().map(|event| event.at_unix_ms), Some(99));
        assert_eq!(swap.events.front().map(|event| event.at_unix_ms), Some(36));
    }
}
