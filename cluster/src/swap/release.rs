//! Whether a checkpoint that answered somebody can be let go: only when no call can be left on it.

use std::time::Duration;

use super::memory::{Memory, Moment};
use crate::name::{GatewayId, Name};
use crate::record::Alias;
use crate::transaction::Fact;
use crate::view::View;

/// How the leader carries swaps out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwapSettings {
    /// A gateway that is no longer registered may still have calls on what a name meant before: for so long after it
    /// vanished nothing is let go. Longer than any call may last.
    pub grace: Duration,
}

impl Default for SwapSettings {
    fn default() -> Self {
        Self { grace: Duration::from_secs(60) }
    }
}

/// Why a checkpoint is not let go yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Held {
    /// It may still send calls where the name led before.
    #[error("gateway {0} has not taken in the last change of the name")]
    Unseen(GatewayId),
    /// It has calls or streams on the checkpoint.
    #[error("gateway {0} has calls on it")]
    Busy(GatewayId),
    /// One that vanished may have calls on it.
    #[error("a gateway that vanished may have calls on it until --retire-grace is over")]
    Vanished,
}

/// What letting go of `digest` rests on: in the very transaction that does it, no gateway has come or said anything new
/// of the model since `view`. Every gateway of the view has taken in the last epoch of `alias`, after which no call is
/// pinned to `digest` any more because of the name, and has none left that was pinned before.
///
/// A gateway that came and vanished again in between would leave no trace. None does: a call to etcd is given up after three
/// seconds, and a lease that has been renewed within a third of its ten before a gateway is written under it, in a call
/// that is given up as well, is over later than that.
///
/// # Errors
/// [`Held`] says who may have a call on it.
pub(super) fn released(
    view: &View,
    (model, alias, digest): (&Name, &Alias, &str),
    quiet: (&Memory, Moment, SwapSettings),
) -> Result<[Fact; 2], Held> {
    let checkpoint = (model.to_string(), digest.to_owned());
    for (id, gateway) in &view.gateways {
        if gateway.epochs.get(model.as_str()).is_none_or(|seen| *seen < alias.epoch) {
            return Err(Held::Unseen(id.clone()));
        }
        if gateway.busy.contains(&checkpoint) {
            return Err(Held::Busy(id.clone()));
        }
    }
    let (memory, now, settings) = quiet;
    if memory.quiet_for(now) < settings.grace {
        return Err(Held::Vanished);
    }
    let said = Fact::QuietSince { model: model.clone(), revision: view.revisions.last_word_on(model) };
    Ok([Fact::NoGatewaySince(view.revisions.last_gateway()), said])
}
