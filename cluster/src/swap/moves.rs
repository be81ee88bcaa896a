//! The moves of a leader: each is one step, and a few words for the log and for whoever watches the swap.

use super::prepare::Fleet;
use super::request::end;
use super::step::Step;
use crate::record::{Alias, Swap, SwapState};
use crate::transaction::Fact;

/// Something that the leader does about a model. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Move {
    /// For the log.
    pub(crate) what: String,
    pub(crate) step: Step,
}

impl Move {
    /// Has workers get ready: all of them, `min_ready` at least.
    pub(super) fn prepare(swap: &Swap, (workers, min_ready): (u32, u32), now: u64) -> Self {
        let what = format!("{min_ready} of {workers} workers must be ready");
        let swap = Swap { state: SwapState::Preparing, workers, min_ready, ..swap.clone() };
        Self::of_swap(&swap, what, now)
    }

    /// Has more workers make room, as `swap` says already.
    pub(super) fn widen(swap: &Swap, rests_on: Vec<Fact>, now: u64) -> Self {
        let wave = swap.wave.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let what =
            format!("the two checkpoints do not fit: {wave} let the old one go, {} keep it", swap.floor);
        let Self { what, step } = Self::of_swap(swap, what, now);
        Self { what, step: Step { rests_on, ..step } }
    }

    /// Has workers of the wave, as `swap` says already, follow to what the name means by now.
    pub(super) fn follow(swap: &Swap, rests_on: Vec<Fact>, now: u64) -> Self {
        let wave = swap.wave.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let from = swap.from.as_deref().unwrap_or_default();
        let lets = if swap.wave.len() == 1 { "lets" } else { "let" };
        let Self { what, step } =
            Self::of_swap(swap, format!("no room for both: {wave} {lets} {from} go"), now);
        Self { what, step: Step { rests_on, ..step } }
    }

    /// Has some callers, or copies of calls, try the new checkpoint.
    pub(super) fn begin_trial(alias: &Alias, swap: &Swap, rests_on: Vec<Fact>, now: u64) -> Self {
        let alias = alias.tried(swap);
        let (state, epoch) = (SwapState::Trial, alias.epoch);
        let swap = Swap { state, trial_since_unix_ms: Some(now), epoch, ..swap.clone() };
        let Self { what, step } = Self::of_swap(&swap, format!("on trial at epoch {epoch}"), now);
        Self { what, step: Step { alias: Some(alias), rests_on, ..step } }
    }

    /// Has nobody try the new checkpoint any more.
    pub(super) fn end_trial(alias: Option<&Alias>, swap: &Swap, reason: &str, now: u64) -> Self {
        let alias = alias.map(Alias::untried);
        let epoch = alias.as_ref().map_or(swap.epoch, |alias| alias.epoch);
        let swap = Swap { epoch, ..end(swap, SwapState::RolledBack, reason, now) };
        let what = format!("end the trial: {reason}");
        Self { what, step: Step { alias, swap: Some(swap), ..Step::default() } }
    }

    /// Makes the name mean the new checkpoint: everybody is answered by it from now on.
    pub(super) fn commit(alias: Option<&Alias>, swap: &Swap, fleet: &Fleet<'_>, now: u64) -> Self {
        let alias = Alias::committed(alias, swap);
        let (ready, epoch) = (fleet.ready.len(), alias.epoch);
        let what = format!("committed at epoch {epoch}, with {ready} workers ready");
        let swap = Swap {
            state: SwapState::Committed,
            committed_unix_ms: Some(now),
            refusals: fleet.refusals(),
            epoch,
            ..swap.clone()
        };
        let Self { what, step } = Self::of_swap(&swap, what, now);
        Self { what, step: Step { alias: Some(alias), rests_on: fleet.still_ready(&swap), ..step } }
    }

    /// Gives the swap up before anybody was answered by the new checkpoint.
    pub(super) fn abort(swap: &Swap, reason: impl Into<String>, now: u64) -> Self {
        let reason = reason.into();
        let what = format!("abort: {reason}");
        let swap = end(swap, SwapState::Aborted, reason, now);
        Self { what, step: Step { swap: Some(swap), ..Step::default() } }
    }

    /// Lets go of `digest`, on which `facts` say that no call is left. A committed swap is over with that.
    pub(super) fn let_go(
        (alias, digest): (&Alias, &str),
        swap: Option<&Swap>,
        facts: [Fact; 2],
        now: u64,
    ) -> Self {
        let what = format!("{digest} is let go");
        let swap = swap.map(|swap| {
            let state = if swap.state == SwapState::Committed { SwapState::Retired } else { swap.state };
            noted(&Swap { state, ..swap.clone() }, &what, now)
        });
        Self { what, step: Step { alias: Some(alias.without(digest)), swap, rests_on: facts.into() } }
    }

    /// Ends a swap of which nothing is left to be let go.
    pub(super) fn close(swap: &Swap, now: u64) -> Self {
        let what = "nothing is left to be let go".to_owned();
        Self::of_swap(&Swap { state: SwapState::Retired, ..swap.clone() }, what, now)
    }

    fn of_swap(swap: &Swap, what: String, now: u64) -> Self {
        let swap = Some(noted(swap, &what, now));
        Self { what, step: Step { swap, ..Step::default() } }
    }
}

fn noted(swap: &Swap, what: &str, now: u64) -> Swap {
    let mut swap = swap.clone();
    swap.note(now, what);
    swap
}
