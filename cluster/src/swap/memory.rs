//! What a leader remembers between two looks: what no single view can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::lately::{Lately, window};
use crate::name::GatewayId;
use crate::record::{Sample, SwapState, TrialSample};
use crate::view::View;

/// A time, by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Milliseconds since 1970, as others mean it too, more or less. It paces; nothing's safety rests on it.
    pub(crate) unix_ms: u64,
    /// By a clock of this process that never jumps.
    pub(crate) uptime: Duration,
}

/// What the leader has seen since it was elected.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    /// The gateways of the last view.
    gateways: BTreeSet<GatewayId>,
    /// When the leader was elected, or last saw that a gateway had vanished. What vanished before the election is not
    /// known, hence counts as having vanished then.
    vanished: Duration,
    /// What gateways have seen of the trials under way, by model: of those that are gone, what they said last.
    samples: BTreeMap<String, BTreeMap<GatewayId, TrialSample>>,
    /// The last calls of the trials under way, by model, each with its swap.
    lately: BTreeMap<String, (String, Lately)>,
}

impl Memory {
    /// Nothing, as of the election.
    pub(crate) fn elected(now: Moment) -> Self {
        let (samples, lately) = (BTreeMap::new(), BTreeMap::new());
        Self { gateways: BTreeSet::new(), vanished: now.uptime, samples, lately }
    }

    /// Takes in what `view` says.
    pub(crate) fn observe(&mut self, view: &View, now: Moment) {
        if self.gateways.iter().any(|gateway| !view.gateways.contains_key(gateway)) {
            self.vanished = now.uptime;
        }
        self.gateways = view.gateways.keys().cloned().collect();
        for (id, gateway) in &view.gateways {
            for (model, sample) in &gateway.trials {
                self.samples.entry(model.clone()).or_default().insert(id.clone(), sample.clone());
            }
        }
        self.samples.retain(|model, samples| {
            let current = view.swaps.get(model).map(|swap| &swap.swap_id);
            samples.retain(|_, sample| Some(&sample.swap_id) == current);
            !samples.is_empty()
        });
        self.observe_trials(view);
    }

    fn observe_trials(&mut self, view: &View) {
        let mut lately = std::mem::take(&mut self.lately);
        lately.retain(|model, (of, _)| view.swaps.get(model).is_some_and(|swap| swap.swap_id == *of));
        for (model, swap) in &view.swaps {
            let trial = swap.plan.canary.as_ref().filter(|_| swap.state == SwapState::Trial);
            if let Some(plan) = trial {
                let begin = || (swap.swap_id.clone(), Lately::default());
                let (_, lately) = lately.entry(model.clone()).or_insert_with(begin);
                lately.observe(&self.sample(model), window(plan));
            }
        }
        self.lately = lately;
    }

    /// For how long no gateway has vanished, as far as is known.
    pub(crate) fn quiet_for(&self, now: Moment) -> Duration {
        now.uptime.saturating_sub(self.vanished)
    }

    /// What all gateways together have seen of the trial of `model`.
    pub(crate) fn sample(&self, model: &str) -> Sample {
        let mut sum = Sample::default();
        for seen in self.samples.get(model).into_iter().flat_map(BTreeMap::values) {
            sum.merge(&seen.sample);
        }
        sum
    }

    /// Of that, what the last calls by the canary's callers have shown, and the others' meanwhile.
    pub(crate) fn lately(&self, model: &str) -> Sample {
        let sum = self.sample(model);
        self.lately.get(model).map(|(_, lately)| lately.of(&sum)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CanaryPlan, Gateway, Swap, SwapPlan};

    fn at(seconds: u64) -> Moment {
        Moment { unix_ms: 0, uptime: Duration::from_secs(seconds) }
    }

    /// A view of gateways that have counted so many calls in the trial of swap `swap_id`.
    fn view(gateways: &[(&str, u64)], swap_id: &str) -> View {
        let gateway = |&(text, calls): &(&str, u64)| {
            let mut sample = Sample::default();
            (0..calls).for_each(|_| sample.new.record(1.0, false));
            let trial = TrialSample { swap_id: "s".into(), sample };
            let trials = BTreeMap::from([("m".to_owned(), trial)]);
            (GatewayId::parse(text).unwrap(), Gateway { trials, ..Gateway::default() })
        };
        let swap = Swap::requested(swap_id.into(), (None, "e".into()), SwapPlan::default(), 0);
        View {
            gateways: gateways.iter().map(gateway).collect(),
            swaps: BTreeMap::from([("m".to_owned(), swap)]),
            ..View::default()
        }
    }

    #[test]
    fn it_is_quiet_since_the_election_or_since_somebody_vanished() {
        let mut memory = Memory::elected(at(5));
        memory.observe(&view(&[("g", 0)], "s"), at(6));
        memory.observe(&view(&[("g", 0), ("h", 0)], "s"), at(7));
        assert_eq!(memory.quiet_for(at(9)), Duration::from_secs(4));
        memory.observe(&view(&[("h", 0)], "s"), at(10));
        memory.observe(&view(&[("h", 0)], "s"), at(11));
        assert_eq!(memory.quiet_for(at(12)), Duration::from_secs(2));
    }

    #[test]
    fn what_a_gateway_saw_outlives_it_but_not_the_swap() {
        let mut memory = Memory::elected(at(0));
        memory.observe(&view(&[("g", 1), ("h", 2)], "s"), at(1));
        memory.observe(&view(&[("g", 5)], "s"), at(2));
        assert_eq!(memory.sample("m").new.calls, 7);
        memory.observe(&view(&[("g", 5)], "another"), at(3));
        assert_eq!(memory.sample("m").new.calls, 0);
    }

    #[test]
    fn the_last_calls_of_a_trial_are_told_from_all_of_them() {
        let on_trial = |calls, swap_id| {
            let mut view = view(&[("g", calls)], swap_id);
            let swap = view.swaps.get_mut("m").unwrap();
            (swap.state, swap.plan.canary) = (SwapState::Trial, Some(CanaryPlan::of(50)));
            view
        };
        let mut memory = Memory::elected(at(0));
        let mut look = |view: &View| {
            memory.observe(view, at(1));
            (memory.sample("m").new.calls, memory.lately("m").new.calls)
        };
        assert_eq!(look(&on_trial(0, "s")), (0, 0));
        assert_eq!(look(&on_trial(400, "s")), (400, 400));
        assert_eq!(look(&on_trial(900, "s")), (900, 500));
        assert_eq!(look(&on_trial(900, "another")), (0, 0));
    }
}
