//! Gateways: they follow the cluster with a lag, say what they have seen, and stand for the lead.

use std::sync::Arc;

use super::calls::Call;
use super::etcd::Etcd;
use super::sabotage::Rule;
use super::world::{GRACE, MODEL};
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::name::GatewayId;
use crate::presence::entries;
use crate::record::{Alias, Gateway, Swap, SwapState};
use crate::swap::{Helm, Moment, SwapSettings, Task};
use crate::view::View;

#[derive(Debug)]
pub(super) struct SimGateway {
    pub(super) id: GatewayId,
    pub(super) is_up: bool,
    /// It reaches workers and callers, and not etcd.
    pub(super) is_cut_off: bool,
    /// Which process it is: answers to one before do not reach it.
    pub(super) boots: u32,
    pub(super) lease: Option<LeaseId>,
    /// It takes calls once it was registered.
    pub(super) takes_calls: bool,
    pub(super) view: Arc<View>,
    /// The newest word on the name, from etcd or a worker.
    pub(super) known: Option<Alias>,
    /// What it is about to write of itself.
    about_to_say: Option<Gateway>,
    pub(super) helm: Helm,
    /// The flight that its helmsman waits for.
    pub(super) awaits: Option<u64>,
}

impl SimGateway {
    pub(super) fn new(id: GatewayId, broken: Option<Rule>) -> Self {
        let me = match broken {
            Some(Rule::KnowsItself) => GatewayId::parse("somebody-else").expect("a name"),
            _ => id.clone(),
        };
        let grace = if broken == Some(Rule::Grace) { std::time::Duration::ZERO } else { GRACE };
        Self {
            id,
            is_up: true,
            is_cut_off: false,
            boots: 0,
            lease: None,
            takes_calls: false,
            view: Arc::default(),
            known: None,
            about_to_say: None,
            helm: Helm::new(me, SwapSettings { grace }),
            awaits: None,
        }
    }

    pub(super) fn restart(&mut self, broken: Option<Rule>) {
        let boots = self.boots + 1;
        *self = Self { boots, ..Self::new(self.id.clone(), broken) };
    }

    pub(super) fn reaches_etcd(&self) -> bool {
        self.is_up && !self.is_cut_off
    }

    /// Takes in what etcd says now.
    pub(super) fn see(&mut self, etcd: &mut Etcd, broken: Option<Rule>) {
        self.view = etcd.view();
        let Some(alias) = self.view.aliases.get(MODEL) else { return };
        let holds = self.known.as_ref().is_none_or(|known| {
            alias.epoch > known.epoch || (alias.epoch == known.epoch && alias.digest == known.digest)
        });
        if holds || broken == Some(Rule::HigherEpochHolds) {
            self.known = Some(alias.clone());
        }
    }

    /// Takes in what a worker says of the name; answers whether it is news.
    pub(super) fn hear(&mut self, alias: &Alias, broken: Option<Rule>) -> bool {
        let is_news = self.known.as_ref().is_none_or(|known| alias.epoch > known.epoch);
        if is_news || broken == Some(Rule::HigherEpochHolds) {
            let (digest, canary) = (alias.digest.as_str(), alias.canary.clone());
            let canary = canary.filter(|_| broken != Some(Rule::CanaryIsTold));
            self.known = Some(Alias { canary, ..Alias::of(digest, alias.epoch) });
        }
        is_news
    }

    /// What there is to be said now: the epoch taken in and what calls use, of one moment.
    pub(super) fn compose(&mut self, calls: &[Call], etcd: &Etcd, broken: Option<Rule>) {
        let mut gateway = Gateway::default();
        if let Some(known) = &self.known {
            let newest = etcd.alias(&Key::Alias(super::world::name(MODEL))).map_or(0, |alias| alias.epoch);
            let epoch = if broken == Some(Rule::EpochsAreSeen) { newest } else { known.epoch };
            gateway.epochs.insert(MODEL.to_owned(), epoch);
            let used = calls.iter().filter(|call| call.gateway == self.id).map(|call| call.digest.clone());
            if broken != Some(Rule::BusyIsSaid) {
                let used = used.filter(|digest| *digest != known.digest);
                gateway.busy = used.map(|digest| (MODEL.to_owned(), digest)).collect();
            }
        }
        self.about_to_say = Some(gateway);
    }

    /// Writes what was composed, under its lease, or one that it is granted.
    pub(super) fn register(&mut self, etcd: &mut Etcd) -> bool {
        if self.lease.is_some_and(|lease| !etcd.is_alive(lease)) {
            self.lease = None;
        }
        let Some(gateway) = self.about_to_say.take() else { return false };
        let lease = *self.lease.get_or_insert_with(|| etcd.grant());
        self.takes_calls = true;
        let mut news = false;
        for (key, record) in entries(&self.id, &gateway) {
            if etcd.entry(&key).is_none_or(|entry| entry.record != record || entry.lease != lease) {
                etcd.put(key, record, lease);
                news = true;
            }
        }
        news
    }

    /// What its helmsman does next.
    pub(super) fn look(&mut self, now: Moment, broken: Option<Rule>) -> Task {
        if broken != Some(Rule::NothingLeaves) {
            return self.helm.look(&self.view, self.lease, now);
        }
        let mut view = View::clone(&self.view);
        let begins = |swap: &Swap| swap.state == SwapState::Requested;
        if view.swaps.get(MODEL).is_some_and(begins) {
            view.aliases.values_mut().for_each(|alias| alias.leaving.clear());
        }
        self.helm.look(&view, self.lease, now)
    }
}
