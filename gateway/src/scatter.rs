//! Sends the shards of a call to workers, until each is answered.
//!
//! A call that fits one shard is sent at once. The shards of a larger one go out a few at a time, and only to workers
//! with room: what waits, waits here, where it can still go to whichever worker is free first, and where it is in
//! nobody's way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use proto::worker::v1::ShardOrigin;
use tokio::time::{self, Instant};

use crate::call::{Call, Caller, Dispatcher, Order, Work};
use crate::choice::{self, Choice, Share, Tried};
use crate::error::CallError;
use crate::hedge;
use crate::link::Link;
use crate::pinning;
use crate::resolve::{self, Part, Pin, Side};
use crate::retry::{Elsewhere, Failure, Patience, Tries};
use crate::split::{self, Piece};
use crate::wire::Class;

/// Shards of one call that a worker is given at a time, on average: enough to batch well.
const SHARDS_PER_WORKER: usize = 4;
/// How long a call waits for a worker that has its checkpoint, where none can be reached: some hiccup may pass.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// And once its work has begun: as long as a worker takes to be started again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often those who wait look again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Dispatcher {
    /// All parts of a call, in order; the first failure that is final ends it, and drops the rest.
    pub(crate) async fn scatter<W: Work>(
        &self,
        call: &Call<'_, W>,
    ) -> Result<Vec<(Range<usize>, W::Part)>, CallError> {
        let (pieces, width) = self.plan(call);
        let share = if pieces.len() == 1 { Share::Whole } else { Share::Part };
        let mut parts: Vec<Option<W::Part>> = pieces.iter().map(|_| None).collect();
        let mut waiting = pieces.iter().enumerate();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < width
                && let Some((i, piece)) = waiting.next()
            {
                let part = self.shard(call, piece, share);
                running.push(async move { part.await.map(|part| (i, part)) });
            }
            let Some(done) = running.next().await else { break };
            let (i, part) = done?;
            parts[i] = Some(part);
        }
        drop(running);
        let ranges = pieces.into_iter().map(|piece| piece.range);
        Ok(ranges.zip(parts.into_iter().map(|part| part.expect("every piece was awaited"))).collect())
    }

    /// The shards of a call, and how many of them to have out at a time.
    fn plan<W>(&self, call: &Call<'_, W>) -> (Vec<Piece>, usize) {
        let fleet = self.fleet();
        let ready = fleet.ready(&call.pin.digest);
        let workers = ready.len().max(1);
        let slowest = ready.iter().map(|link| link.speed()).fold(f64::INFINITY, f64::min);
        let speed = if slowest.is_finite() { slowest } else { 0.0 };
        (split::plan(&call.costs.each, split::shard_tokens(speed), workers), SHARDS_PER_WORKER * workers)
    }

    /// One shard's answer, from whichever worker gives one.
    async fn shard<W: Work>(
        &self,
        call: &Call<'_, W>,
        piece: &Piece,
        share: Share,
    ) -> Result<W::Part, CallError> {
        let &Call { work, pin, caller, costs: _ } = call;
        self.budget.earn();
        let (mut tries, mut avoided) = (Tries::default(), Tried::default());
        loop {
            let link = self.worker(call, &avoided, piece.tokens, (share, &tries)).await?;
            let urgent = work.terms().class == Class::Interactive && caller.patience == Patience::Refuse;
            let small = share == Share::Whole && piece.tokens <= hedge::LARGEST;
            let asked = if W::TRIED && urgent && small && tries.fresh() {
                self.ask_in_time(call, piece, &link).await
            } else {
                self.ask(call, piece, &link).await
            };
            let failure = match asked {
                Ok(part) => return Ok(part),
                Err(failure) => failure,
            };
            if Instant::now() >= caller.due {
                return Err(CallError::Deadline);
            }
            let elsewhere = avoided.add(&link, &self.fleet(), pin);
            let absent = matches!(failure, Failure::Absent) && elsewhere == Elsewhere::Nobody;
            if absent && self.is_overtaken(call) {
                return Err(pinning::retired(pin));
            }
            let pause = self.after(&mut tries, failure, elsewhere, caller.patience)?;
            time::sleep(pause).await;
        }
    }

    /// What a failure means for the shard.
    fn after(
        &self,
        tries: &mut Tries,
        failure: Failure,
        elsewhere: Elsewhere,
        patience: Patience,
    ) -> Result<Duration, CallError> {
        let reason = failure.label();
        let next = tries.after(failure, elsewhere, patience, &self.budget);
        if next.is_ok() {
            self.metrics.retried(reason);
        }
        next
    }

    /// A worker for a shard, as soon as there is one.
    async fn worker<W: Work>(
        &self,
        call: &Call<'_, W>,
        avoided: &Tried,
        tokens: u64,
        (share, tries): (Share, &Tries),
    ) -> Result<Arc<Link>, CallError> {
        let &Call { work: _, pin, caller, costs: _ } = call;
        let mut fleet = self.fleet.clone();
        let patient_until = patient_until(pin, caller, tries);
        loop {
            let choice = choice::choose(fleet.borrow_and_update().ready(&pin.digest), avoided, tokens, share);
            let until = match choice {
                Choice::Take(link) => return Ok(link),
                // There will be room, and until then there is the deadline.
                Choice::Full => caller.due,
                Choice::Nobody if self.fleet().ready(&pin.digest).is_empty() && self.is_overtaken(call) => {
                    return Err(pinning::retired(pin));
                }
                Choice::Nobody => patient_until,
            };
            if Instant::now() >= until {
                let what = format!("no worker with model {} can be reached", pin.model);
                return Err(resolve::unreachable(&what));
            }
            let pause = time::sleep_until(until.min(Instant::now() + LOOK_AGAIN));
            // Both arms are cancel safe.
            tokio::select! {
                Ok(()) = fleet.changed() => {}
                () = pause => {}
            }
        }
    }
}

/// Until when a shard waits where nobody can be reached: on a checkpoint on trial, until the trial can have been ended. A
/// stream waits as long as its deadline has it.
fn patient_until(pin: &Pin, caller: &Caller, tries: &Tries) -> Instant {
    let patience = match &pin.part {
        Some(Part { side: Side::New, .. }) => pinning::TRIAL_PATIENCE,
        Some(Part { side: Side::Old(_), .. }) | None if tries.fresh() => FIRST_PATIENCE,
        Some(Part { side: Side::Old(_), .. }) | None => PATIENCE,
    };
    match caller.patience {
        Patience::Refuse => caller.due.min(Instant::now() + patience),
        Patience::Wait => caller.due,
    }
}

/// A shard on its way.
pub(crate) fn order(piece: &Piece, pin: &Pin, caller: &Caller) -> Order {
    let first_input = u32::try_from(piece.range.start).expect("the limit on inputs is below 2^32");
    let origin = ShardOrigin {
        digest: pin.digest.to_string(),
        caller: caller.name.clone(),
        first_input,
        model: pin.model.to_string(),
    };
    Order { range: piece.range.clone(), origin, due: caller.due }
}
