//! Callers, and the calls of theirs that are under way.

use super::laws::{Broken, legitimate};
use super::sabotage::Rule;
use super::world::{CALL, DIGESTS, MODEL, World};
use crate::name::GatewayId;
use crate::record::Alias;

/// Somebody who calls any gateway, and takes no answer older than one that it had.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    seen: u64,
}

/// A call that was not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Call {
    client: usize,
    pub(super) gateway: GatewayId,
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
        let client = self.random.below(self.clients.len());
        let gateway = &self.gateways[which];
        let seen = self.clients[client].seen;
        let checks = self.broken != Some(Rule::HigherEpochHolds);
        let Some(alias) = gateway.known.as_ref().filter(|alias| alias.epoch >= seen || !checks) else {
            return;
        };
        if !gateway.is_up || !gateway.takes_calls {
            return;
        }
        let insists = self.random.percent(10);
        let is_loaded = |digest: &&str| {
            insists && gateway.view.ready.contains_key(&(MODEL.to_owned(), (*digest).to_owned()))
        };
        let loaded: Vec<&str> = DIGESTS.iter().copied().filter(is_loaded).collect();
        let named = (!loaded.is_empty()).then(|| *self.random.one_of(&loaded));
        let call = Call {
            client,
            gateway: gateway.id.clone(),
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
        if self.workers[worker].has(&call.digest) {
            self.calls.swap_remove(which);
            return self.answered(&call, &call.digest);
        }
        let anything = self.workers[worker].loaded.first().cloned();
        if let (Some(Rule::AnswersAreAsked), Some(other)) = (self.broken, anything) {
            self.calls.swap_remove(which);
            return self.answered(&call, &other);
        }
        if !call.insists {
            self.start_again(which, worker);
        } else if !self.workers.iter().any(|worker| worker.has(&call.digest)) {
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
        if let Some(alias) = self.workers[worker].view.aliases.get(MODEL) {
            gateway.hear(alias, self.broken);
        }
        let Some(known) = &gateway.known else { return };
        if known.epoch > call.epoch {
            call.digest = resolve(known, call.client);
            call.epoch = known.epoch;
            self.tally.started_again += 1;
        }
    }

    fn answered(&mut self, call: &Call, digest: &str) -> Result<(), Broken> {
        self.tell(|| format!("client {} is answered by {digest} at epoch {}", call.client, call.epoch));
        self.tally.answers += 1;
        if call.insists {
            let means = self.meanings.last_key_value().map(|(_, alias)| alias.digest.as_str());
            self.tally.insisted += u64::from(means != Some(digest));
            let (asked, got) = (call.digest.clone(), digest.to_owned());
            return if asked == got { Ok(()) } else { Err(Broken::NotAsked { asked, got }) };
        }
        let client = &mut self.clients[call.client];
        if call.epoch < client.seen {
            // Another of its calls was answered at a later epoch meanwhile: it began later, or its client is not
            // the one that saw it. Only what began after an answer must not be older.
            if call.since > self.last_answer[call.client] {
                return Err(Broken::EpochFell { seen: client.seen, got: call.epoch });
            }
        }
        client.seen = client.seen.max(call.epoch);
        self.last_answer[call.client] = self.now;
        let first = self.answered_by.entry((call.client, call.epoch)).or_insert_with(|| digest.to_owned());
        if first != digest {
            let (client, epoch, first) = (call.client, call.epoch, first.clone());
            return Err(Broken::Split { client, epoch, first, then: digest.to_owned() });
        }
        legitimate(&self.meanings, digest, call.epoch)
    }

    /// Calls that last longer than any may are given up by their deadline.
    pub(super) fn expire_calls(&mut self) {
        let now = self.now;
        self.calls.retain(|call| now - call.since < CALL);
    }
}
