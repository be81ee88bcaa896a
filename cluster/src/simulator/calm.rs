//! What must be the case when nothing has gone wrong for a while.

use std::collections::BTreeSet;

use super::laws::Broken;
use super::operator::FOR_EVER;
use super::world::{Model, World};
use crate::record::{Alias, Swap, SwapState};
use crate::view::View;

/// Whether a swap is on trial for as long as nobody says otherwise.
fn is_tried_for_ever(swap: &Swap) -> bool {
    let holds = swap.plan.canary.as_ref().is_some_and(|canary| canary.hold_ms == FOR_EVER);
    swap.state == SwapState::Trial && holds
}

impl World {
    /// Somebody leads, every model has come to rest, and no call is left.
    pub(super) fn check_calm(&mut self) -> Result<(), Broken> {
        let view = self.etcd.view();
        let leads = view.leader.as_ref().is_some_and(|leader| {
            self.gateways.iter().any(|gateway| gateway.id == leader.gateway && gateway.is_up)
        });
        if !leads {
            return Err(Broken::NobodyLeads);
        }
        self.models.iter().try_for_each(|model| self.check_rest(&view, model))?;
        let calls = self.calls.len();
        if calls > 0 { Err(Broken::NotAnswered { calls }) } else { Ok(()) }
    }

    fn check_rest(&self, view: &View, model: &Model) -> Result<(), Broken> {
        let name = model.name.as_str();
        let swap = view.swaps.get(name);
        if swap.is_some_and(is_tried_for_ever) {
            return Ok(());
        }
        if let Some(swap) = swap.filter(|swap| swap.is_under_way()) {
            return Err(Broken::NeverEnds { state: format!("{:?} ({:?})", swap.state, swap.mode) });
        }
        let Some(alias) = view.aliases.get(name) else { return Ok(()) };
        if !alias.leaving.is_empty() {
            return Err(Broken::NeverLeft { left: alias.leaving.iter().cloned().collect() });
        }
        let Some(serving) = view.ready.get(&(name.to_owned(), alias.digest.clone())) else {
            return Err(Broken::NobodyServes { digest: alias.digest.clone() });
        };
        // Where what the name meant before is kept for a rollback, who has no room for both keeps that if it is needed.
        let spared = self.can_be_spared(view, name, alias);
        let follows = |id| serving.contains(id) || (alias.prev.is_some() && !spared);
        match self.workers.iter().find(|worker| !follows(&worker.id)) {
            Some(behind) => {
                Err(Broken::Behind { worker: behind.id.to_string(), digest: alias.digest.clone() })
            }
            None => Ok(()),
        }
    }

    /// Whether more workers than half have what the name meant before its last swap, which somebody may want back.
    fn can_be_spared(&self, view: &View, name: &str, alias: &Alias) -> bool {
        let Some(prev) = &alias.prev else { return false };
        let last = view.swaps.get(name).filter(|swap| swap.state == SwapState::Committed);
        let is_last = last.is_some_and(|swap| swap.to == alias.digest && swap.from.as_ref() == Some(prev));
        let keep = view.ready.get(&(name.to_owned(), prev.clone())).map_or(0, BTreeSet::len);
        is_last && keep > self.workers.len().div_ceil(2)
    }
}
