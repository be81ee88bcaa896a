//! Fixes the checkpoint of each call and stream, and starts a call again where its checkpoint was retired before it
//! was answered.
//!
//! A retired checkpoint is one that workers have let go while the name means another one. A call that asked for the
//! name alone never notices: nothing of its answer was sent, so all of it is done anew, on the checkpoint that the
//! name means now. One that insists on a checkpoint is told that it is gone, and so is a stream, whose first answers
//! were of it.

use std::sync::Arc;
use std::time::Duration;

use proto::worker::v1::AliasSeen;
use tokio::time::{self, Instant};
use tracing::Span;

use crate::busy::Hold;
use crate::call::{Call, Caller, Dispatcher, Done, Work};
use crate::error::{CallError, NotServed};
use crate::fleet::Fleet;
use crate::resolve::{self, Pin};
use crate::retry::Patience;
use crate::wire::Terms;

/// How long a call waits for this gateway to hear of its checkpoint, or of an epoch that another one has answered with.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long who is answered by a checkpoint on trial waits where no worker has it any more. The leader ends the trial
/// when the lease of the last one has lapsed; where the leader is gone, too, another one is elected first.
pub(crate) const TRIAL_PATIENCE: Duration = Duration::from_secs(30);
/// A call is started again no more often than this: names do not move that fast.
const MOST_STARTS: u32 = 3;

/// A checkpoint that is in use. Clones are one use.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// The checkpoint.
    pub pin: Pin,
    _hold: Arc<Hold>,
}

impl Dispatcher {
    /// Fixes the checkpoint of a call or stream, and counts it as in use.
    ///
    /// # Errors
    /// As [`resolve::resolve`]; what can be expected to pass is waited for, and longer where a trial must end first.
    pub async fn pin(&self, terms: &Terms, caller: &Caller) -> Result<Pinned, CallError> {
        let (begun, mut fleet) = (Instant::now(), self.fleet.clone());
        loop {
            let seen = fleet.borrow_and_update().clone();
            let is_tried = resolve::is_tried(&seen, terms, &caller.key);
            let until = caller.due.min(begun + if is_tried { TRIAL_PATIENCE } else { PATIENCE });
            match resolve::resolve(&seen, terms, &caller.key) {
                Ok(pin) => match self.take(&seen, pin) {
                    Some(pinned) => return Ok(pinned),
                    None => continue,
                },
                Err(error) if Instant::now() >= until || !may_pass(&seen, terms, &error) => {
                    return Err(error);
                }
                Err(_) => {}
            }
            // Both arms are cancel safe.
            tokio::select! {
                Ok(()) = fleet.changed() => {}
                () = time::sleep_until(until) => {}
            }
        }
    }

    /// Counts `pin` as in use, unless the name has moved since it was `seen`: who reads the new epoch here, and then
    /// the count, must find every call that is on the old one.
    fn take(&self, seen: &Arc<Fleet>, pin: Pin) -> Option<Pinned> {
        let hold = Arc::new(self.busy.hold(&pin.model, &pin.digest));
        let epoch = |fleet: &Fleet| fleet.alias(&pin.model).map(|alias| alias.epoch);
        if epoch(&self.fleet()) != epoch(seen) {
            return None;
        }
        let span = Span::current();
        span.record("model", pin.model.as_str());
        span.record("digest", pin.digest.as_str());
        Some(Pinned { pin, _hold: hold })
    }

    /// Whether who asks for the same as `call` is to be told another checkpoint now, or that there is none. A stream
    /// asks for the checkpoint of its first answer.
    pub(crate) fn is_overtaken<W: Work>(&self, call: &Call<'_, W>) -> bool {
        let (fleet, terms, key) = (self.fleet(), call.work.terms(), &call.caller.key);
        match call.caller.patience {
            Patience::Refuse => resolve::is_overtaken(&fleet, terms, key, call.pin),
            Patience::Wait => {
                let terms = Terms { digest: Some(call.pin.digest.clone()), ..terms.clone() };
                resolve::is_overtaken(&fleet, &terms, key, call.pin)
            }
        }
    }

    /// Passes on what an answer says of a name, where it is news.
    pub(crate) fn hear(&self, seen: Option<&AliasSeen>) {
        let Some(seen) = seen else { return };
        let fleet = self.fleet();
        let known = fleet.aliases().and_then(|aliases| aliases.get(&seen.model));
        if known.is_none_or(|known| known.epoch < seen.epoch) {
            self.gossip.tell(seen.clone());
        }
    }

    /// Answers a request, on the checkpoint that its name means when it is answered or did a moment before.
    ///
    /// # Errors
    /// By what the caller can do; see [`CallError`].
    pub async fn answer<W: Work>(&self, work: &W, caller: &Caller) -> Result<Done<W::Answer>, CallError> {
        let mut starts = 0;
        loop {
            starts += 1;
            let Pinned { pin, _hold } = self.pin(work.terms(), caller).await?;
            if starts > 1 {
                self.metrics.restarted(&pin);
            }
            let began = Instant::now();
            match self.run(work, &pin, caller).await {
                Err(CallError::NotServed(NotServed::Retired { .. })) => {
                    tracing::debug!(model = %pin.model, digest = %pin.digest, "retired under a call");
                    if starts == MOST_STARTS {
                        let what = format!("model {} moves faster than calls end", pin.model);
                        return Err(resolve::unreachable(&what));
                    }
                }
                outcome => {
                    let answered = outcome?;
                    self.metrics.answered_by(&pin);
                    return Ok(Done { answered, pin, took: began.elapsed() });
                }
            }
        }
    }
}

/// What a call is told that must not, or cannot, go on.
pub(crate) fn retired(pin: &Pin) -> CallError {
    NotServed::Retired { model: pin.model.clone(), digest: pin.digest.to_string() }.into()
}

/// Whether `error` can be expected to pass: a worker with the checkpoint will be heard of, or an epoch.
fn may_pass(fleet: &Fleet, terms: &Terms, error: &CallError) -> bool {
    let unreachable = matches!(error, CallError::Unreachable(_)) && fleet.aliases().is_some();
    let unheard = matches!(error, CallError::UnknownModel(_)) && terms.min_epoch > 0;
    unreachable || unheard
}
