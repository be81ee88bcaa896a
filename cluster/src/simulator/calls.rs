//! Callers, and the calls of theirs that are under way.

use super::laws::{Broken, legitimate};
use super::sabotage::Rule;
use super::tally::Met;
use super::world::{CALL, MODELS, World};
use crate::name::GatewayId;
use crate::record::Alias;

/// Somebody who calls any gateway, and takes no answer older than one that it had.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    /// The newest epoch of each model that it was answered at, and when it was last answered.
    seen: [(u64, u64); MODELS.len()],
}

/// A call that was not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Call {
    client: usize,
    pub(super) gateway: GatewayId,
    pub(super) model: usize,
    pub(super) digest: String,
    /// Whether it asked for that checkpoint, and not for what the name means.
    pub(super) insists: bool,
    epoch: u64,
    pub(super) since: u64,
}

/// The checkpoint of `alias` that answers `client`: the same one for as long as the name is as it is.
fn resolve(alias: &Alias, client: usize) -> String {
    let on_trial = |canary: &&crate::record::Canary| (client * 377 + 99) % 1000 < canary.per_mille as usize;
    alias.canary.as_ref().filter(on_trial).map_or(&alias.digest, |canary| &canary.digest).clone()
}

impl World {
    /// A client calls a gateway that knows what the name means, at an epoch that the client takes.
    pub(super) fn call(&mut self) {
        let gateway = self.random.below(self.gateways.len());
        self.call_at(gateway);
    }

    /// A client calls this gateway.
    pub(super) fn call_at(&mut self, which: usize) {
        let (client, model) = (self.random.below(self.clients.len()), self.any_model());
        let gateway = &self.gateways[which];
        let (seen, _) = self.clients[client].seen[model];
        let checks = self.broken != Some(Rule::HigherEpochHolds);
        let known = gateway.known[model].as_ref();
        let Some(alias) = known.filter(|alias| alias.epoch >= seen || !checks) else { return };
        if !gateway.is_up || !gateway.takes_calls {
            return;
        }
        let insists = self.random.percent(10);
        let ready = &gateway.view.ready;
        let is_loaded =
            |digest: &&str| insists && ready.contains_key(&(MODELS[model].to_owned(), (*digest).to_owned()));
        let loaded: Vec<&str> = self.models[model].digests.into_iter().filter(is_loaded).collect();
        let named = (!loaded.is_empty()).then(|| *self.random.one_of(&loaded));
        let call = Call {
            client,
            gateway: gateway.id.clone(),
            model,
            digest: named.map_or_else(|| resolve(alias, client), ToOwned::to_owned),
            insists: named.is_some(),
            epoch: alias.epoch,
            since: self.now,
        };
        let what = if call.insists { "insists on" } else { "is to have" };
        self.tell(|| format!("client {client} calls {} and {what} {}", call.gateway, call.digest));
        self.calls.push(call);
    }

    /// A worker takes up a call: it answers, or says what it knows of the name, and the call starts again.
    pub(super) fn answer(&mut self) -> Result<(), Broken> {
        if self.calls.is_empty() {
            return Ok(());
        }
        let which = self.random.below(self.calls.len());
        let worker = self.random.below(self.workers.len());
        if !self.workers[worker].is_up {
            return Ok(());
        }
        let call = self.calls[which].clone();
        let id = (MODELS[call.model].to_owned(), call.digest.clone());
        if self.workers[worker].has(&id) {
            self.calls.swap_remove(which);
            return self.answered(&call, &call.digest);
        }
        let anything = self.workers[worker].loaded.iter().find(|(model, _)| *model == id.0);
        if let (Some(Rule::AnswersAreAsked), Some((_, other))) = (self.broken, anything.cloned()) {
            self.calls.swap_remove(which);
            return self.answered(&call, &other);
        }
        if !call.insists {
            self.start_again(which, worker);
        } else if !self.workers.iter().any(|worker| worker.has(&id)) {
            self.calls.swap_remove(which);
            self.tell(|| format!("client {} is told that {} is gone", call.client, call.digest));
        }
        Ok(())
    }

    fn start_again(&mut self, which: usize, worker: usize) {
        let call = &mut self.calls[which];
        let Some(gateway) = self.gateways.iter_mut().find(|gateway| gateway.id == call.gateway) else {
            return;
        };
        if let Some(alias) = self.workers[worker].view.aliases.get(MODELS[call.model]) {
            gateway.hear(call.model, alias, self.broken);
        }
        let Some(known) = &gateway.known[call.model] else { return };
        if known.epoch > call.epoch {
            call.digest = resolve(known, call.client);
            call.epoch = known.epoch;
            self.tally.count(Met::StartedAgain);
        }
    }

    fn answered(&mut self, call: &Call, digest: &str) -> Result<(), Broken> {
        self.tell(|| format!("client {} is answered by {digest} at epoch {}", call.client, call.epoch));
        self.tally.count(Met::Answer);
        if let Some(gateway) = self.gateways.iter_mut().find(|gateway| gateway.id == call.gateway) {
            gateway.count(call.model, digest);
        }
        let meanings = &self.models[call.model].meanings;
        if call.insists {
            let means = meanings.last_key_value().map(|(_, alias)| alias.digest.as_str());
            self.tally.count_if(means != Some(digest), Met::Insisted);
            let (asked, got) = (call.digest.clone(), digest.to_owned());
            return if asked == got { Ok(()) } else { Err(Broken::NotAsked { asked, got }) };
        }
        let (seen, last_answer) = &mut self.clients[call.client].seen[call.model];
        // Another of its calls may have been answered at a later epoch meanwhile. Only what began after an answer must not
        // be older.
        if call.epoch < *seen && call.since > *last_answer {
            return Err(Broken::EpochFell { seen: *seen, got: call.epoch });
        }
        (*seen, *last_answer) = ((*seen).max(call.epoch), self.now);
        let answer = self.answered_by.entry((call.model, call.client, call.epoch));
        let first = answer.or_insert_with(|| digest.to_owned());
        if first != digest {
            let (client, epoch, first) = (call.client, call.epoch, first.clone());
            return Err(Broken::Split { client, epoch, first, then: digest.to_owned() });
        }
        legitimate(meanings, digest, call.epoch)
    }

    /// Calls that last longer than any may are given up by their deadline.
    pub(super) fn expire_calls(&mut self) {
        let now = self.now;
        self.calls.retain(|call| now - call.since < CALL);
    }
}
