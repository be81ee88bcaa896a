//! Gateways: they follow the cluster with a lag, say what they have seen, and stand for the lead.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::calls::Call;
use super::etcd::Etcd;
use super::member::Member;
use super::sabotage::Rule;
use super::world::{GRACE, MODELS, Model};
use crate::keys::Key;
use crate::name::GatewayId;
use crate::presence::entries;
use crate::record::{Alias, Gateway, Sample, Swap, SwapMode, SwapState, TrialSample};
use crate::swap::{Helm, Moment, Order, SwapSettings, Task};
use crate::view::View;

#[derive(Debug)]
pub(super) struct SimGateway {
    pub(super) id: GatewayId,
    pub(super) is_up: bool,
    /// Which process it is: answers to one before do not reach it.
    pub(super) boots: u32,
    pub(super) member: Member,
    /// It takes calls once it was registered.
    pub(super) takes_calls: bool,
    pub(super) view: Arc<View>,
    /// The newest word on each name, from etcd or a worker.
    pub(super) known: [Option<Alias>; MODELS.len()],
    /// What it has seen of trials under way, by model.
    trials: BTreeMap<usize, TrialSample>,
    pub(super) helm: Helm,
    /// The flight that its helmsman waits for, and since when.
    pub(super) awaits: Option<(u64, u64)>,
    /// What its helmsman has still to send.
    pub(super) orders: VecDeque<Order>,
}

impl SimGateway {
    pub(super) fn new(id: GatewayId, boots: u32, now: Instant, broken: Option<Rule>) -> Self {
        let me = match broken {
            Some(Rule::KnowsItself) => GatewayId::parse("somebody-else").expect("a name"),
            _ => id.clone(),
        };
        let grace = if broken == Some(Rule::Grace) { Duration::ZERO } else { GRACE };
        let entries = entries(&id, &Gateway::default());
        Self {
            member: Member::new((Key::Gateway(id.clone()), entries), now),
            id,
            is_up: true,
            boots,
            takes_calls: false,
            view: Arc::default(),
            known: [const { None }; MODELS.len()],
            trials: BTreeMap::new(),
            helm: Helm::new(me, SwapSettings { grace }),
            awaits: None,
            orders: VecDeque::new(),
        }
    }

    pub(super) fn restart(&mut self, now: Instant, broken: Option<Rule>) {
        let is_cut_off = self.member.is_cut_off;
        *self = Self::new(self.id.clone(), self.boots + 1, now, broken);
        self.member.is_cut_off = is_cut_off;
    }

    pub(super) fn reaches_etcd(&self) -> bool {
        self.is_up && !self.member.is_cut_off
    }

    /// Takes in what etcd says now.
    pub(super) fn see(&mut self, etcd: &mut Etcd, broken: Option<Rule>) {
        self.view = etcd.view();
        for (model, known) in MODELS.iter().zip(&mut self.known) {
            let Some(alias) = self.view.aliases.get(*model) else { continue };
            let holds = known.as_ref().is_none_or(|known| {
                alias.epoch > known.epoch || (alias.epoch == known.epoch && alias.digest == known.digest)
            });
            if holds || broken == Some(Rule::HigherEpochHolds) {
                *known = Some(alias.clone());
            }
        }
    }

    /// Takes in what a worker says of a name.
    pub(super) fn hear(&mut self, model: usize, alias: &Alias, broken: Option<Rule>) {
        let known = &mut self.known[model];
        let is_news = known.as_ref().is_none_or(|known| alias.epoch > known.epoch);
        if is_news || broken == Some(Rule::HigherEpochHolds) {
            let (digest, canary) = (alias.digest.as_str(), alias.canary.clone());
            let canary = canary.filter(|_| broken != Some(Rule::CanaryIsTold));
            *known = Some(Alias { canary, ..Alias::of(digest, alias.epoch) });
        }
    }

    /// Counts a call that was answered by `digest`, where there is a trial.
    pub(super) fn count(&mut self, model: usize, digest: &str) {
        let Some(canary) = self.known[model].as_ref().and_then(|alias| alias.canary.as_ref()) else { return };
        let begin = || TrialSample { swap_id: canary.salt.clone(), sample: Sample::default() };
        let trial = self.trials.entry(model).or_insert_with(begin);
        if trial.swap_id != canary.salt {
            *trial = begin();
        }
        let Sample { old, new, .. } = &mut trial.sample;
        let side = if canary.digest == digest { new } else { old };
        side.record(1.0, false);
    }

    /// Says what there is to be said now: the epochs taken in and what calls use, of one moment, and what was seen of
    /// trials under way.
    pub(super) fn compose(
        &mut self,
        calls: &[Call],
        (models, etcd): (&[Model], &Etcd),
        now: Instant,
        broken: Option<Rule>,
    ) {
        let mut gateway = Gateway::default();
        for (which, model) in models.iter().enumerate() {
            let Some(known) = &self.known[which] else { continue };
            let newest = etcd.alias(&model.alias_key).map_or(0, |alias| alias.epoch);
            let epoch = if broken == Some(Rule::EpochsAreSeen) { newest } else { known.epoch };
            gateway.epochs.insert(MODELS[which].to_owned(), epoch);
            let used = calls.iter().filter(|call| call.model == which && call.gateway == self.id);
            if broken != Some(Rule::BusyIsSaid) {
                let used = used.map(|call| call.digest.clone()).filter(|digest| *digest != known.digest);
                gateway.busy.extend(used.map(|digest| (MODELS[which].to_owned(), digest)));
            }
            let is_under_way = |trial: &&TrialSample| {
                known.canary.as_ref().is_some_and(|canary| canary.salt == trial.swap_id)
            };
            if let Some(trial) = self.trials.get(&which).filter(is_under_way) {
                gateway.trials.insert(MODELS[which].to_owned(), trial.clone());
            }
        }
        self.member.say(entries(&self.id, &gateway), now);
    }

    /// What its helmsman does next.
    pub(super) fn look(&mut self, (now, instant): (Moment, Instant), broken: Option<Rule>) -> Task {
        let lease = self.member.lease(instant);
        match broken {
            Some(rule @ (Rule::NothingLeaves | Rule::HalfIsKept)) => {
                let mut view = View::clone(&self.view);
                match rule {
                    Rule::NothingLeaves => hide_what_leaves(&mut view),
                    _ => forget_what_was_counted(&mut view),
                }
                self.helm.look(&view, lease, now)
            }
            _ => self.helm.look(&self.view, lease, now),
        }
    }
}

fn hide_what_leaves(view: &mut View) {
    let View { swaps, aliases, .. } = view;
    let begins = |model: &String| swaps.get(model).is_some_and(|swap| swap.state == SwapState::Requested);
    for (_, alias) in aliases.iter_mut().filter(|(model, _)| begins(model)) {
        alias.leaving.clear();
    }
}

/// As if no more had been counted than there are by now.
fn forget_what_was_counted(view: &mut View) {
    let View { swaps, ready, workers, .. } = view;
    for (model, swap) in swaps {
        let Swap { from, plan, mode, min_ready, .. } = swap;
        if plan.min_ready.is_some() || *mode == SwapMode::Waves {
            continue;
        }
        let serving = from.clone().and_then(|from| ready.get(&(model.clone(), from)));
        let serving = serving.map_or(workers.len(), std::collections::BTreeSet::len);
        *min_ready = (*min_ready).min(u32::try_from(3 * serving).unwrap_or(u32::MAX).div_ceil(4).max(1));
    }
}
