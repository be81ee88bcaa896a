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
use crate::error::CallError;
use crate::fleet::Fleet;
use crate::link::Link;
use crate::pinning;
use crate::resolve::{self, Pin};
use crate::retry::{self, Elsewhere, Failure, Patience, Tries};
use crate::route;
use crate::split::{self, Piece};

/// Shards of one call that a worker is given at a time, on average: enough to batch well.
const SHARDS_PER_WORKER: usize = 4;
/// How long a call waits for a worker that has its checkpoint, where none can be reached: some hiccup may pass.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);
/// And once its work has begun: as long as a worker takes to be started again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often those who wait look again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Whether a shard is all of its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// It is.
    Whole,
    /// It is one of many.
    Part,
}

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
            let held = link.hold(work.terms().class, piece.tokens);
            let failure = tokio::select! {
                answer = work.send(link.client(), order(piece, pin, caller)) => match answer {
                    Ok(part) => {
                        self.hear(W::alias(&part));
                        return Ok(part);
                    }
                    Err(status) => {
                        self.hear(retry::alias(&status, &pin.model).as_ref());
                        Failure::of(status)
                    }
                },
                () = link.given_up() => Failure::Lost,
            };
            drop(held);
            if Instant::now() >= caller.due {
                return Err(CallError::Deadline);
            }
            let elsewhere = avoided.add(&link, &self.fleet(), pin);
            let absent = matches!(failure, Failure::Absent) && elsewhere == Elsewhere::Nobody;
            if absent && self.is_overtaken(call) {
                return Err(pinning::retired(pin));
            }
            let pause = self.after(&mut tries, failure, (&link, elsewhere), caller.patience)?;
            time::sleep(pause).await;
        }
    }

    /// What a failure means for the worker, and for the shard.
    fn after(
        &self,
        tries: &mut Tries,
        failure: Failure,
        (link, elsewhere): (&Link, Elsewhere),
        patience: Patience,
    ) -> Result<Duration, CallError> {
        let reason = failure.label();
        tracing::debug!(worker = %link.seat, reason, "a shard was not answered");
        match failure {
            Failure::Lost | Failure::Unsent | Failure::Leaving => link.suspect(),
            Failure::Absent | Failure::Busy(_) | Failure::Refused(_) | Failure::Late | Failure::Defect(_) => {
            }
        }
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
        let patient_until = patient_until(caller, tries);
        loop {
            let choice = choose(fleet.borrow_and_update().ready(&pin.digest), avoided, tokens, share);
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

/// Until when a shard waits where nobody can be reached. A stream waits as long as its deadline has it.
fn patient_until(caller: &Caller, tries: &Tries) -> Instant {
    let patience = if tries.fresh() { FIRST_PATIENCE } else { PATIENCE };
    match caller.patience {
        Patience::Refuse => caller.due.min(Instant::now() + patience),
        Patience::Wait => caller.due,
    }
}

fn order(piece: &Piece, pin: &Pin, caller: &Caller) -> Order {
    let first_input = u32::try_from(piece.range.start).expect("the limit on inputs is below 2^32");
    let origin = ShardOrigin {
        digest: pin.digest.to_string(),
        caller: caller.name.clone(),
        first_input,
        model: pin.model.to_string(),
    };
    Order { range: piece.range.clone(), origin, due: caller.due }
}

/// Workers that did not answer a shard, each with the reports it had made by then.
#[derive(Debug, Default)]
struct Tried(Vec<(Arc<Link>, u64)>);

impl Tried {
    /// Notes `link`, and tells whether there is another worker to go to.
    fn add(&mut self, link: &Arc<Link>, fleet: &Fleet, pin: &Pin) -> Elsewhere {
        self.0.retain(|(other, _)| !Arc::ptr_eq(other, link));
        self.0.push((Arc::clone(link), link.reports()));
        let somebody = fleet.ready(&pin.digest).iter().any(|other| self.reports_when_tried(other).is_none());
        if somebody { Elsewhere::Somebody } else { Elsewhere::Nobody }
    }

    fn reports_when_tried(&self, link: &Arc<Link>) -> Option<u64> {
        self.0.iter().find(|(tried, _)| Arc::ptr_eq(tried, link)).map(|(_, reports)| *reports)
    }
}

/// Where a shard may go now.
#[derive(Debug)]
enum Choice {
    /// There.
    Take(Arc<Link>),
    /// Nowhere, until one of the workers has room.
    Full,
    /// Nowhere.
    Nobody,
}

/// The worker for a shard: one that was not tried before, else one that has reported since.
fn choose(ready: &[Arc<Link>], tried: &Tried, tokens: u64, share: Share) -> Choice {
    let trusted = || ready.iter().filter(|link| link.trusted());
    let fresh: Vec<_> = trusted().filter(|link| tried.reports_when_tried(link).is_none()).collect();
    let reported = |link: &&Arc<Link>| tried.reports_when_tried(link) < Some(link.reports());
    let open = if fresh.is_empty() { trusted().filter(reported).collect() } else { fresh };
    if open.is_empty() {
        return Choice::Nobody;
    }
    let fits = |link: &&Arc<Link>| share == Share::Whole || link.burden().has_room(tokens);
    let roomy: Vec<_> = open.into_iter().filter(fits).collect();
    let burdens: Vec<_> = roomy.iter().map(|link| link.burden()).collect();
    match route::pick(&burdens, tokens, [rand::random(), rand::random()]) {
        Some(chosen) => Choice::Take(Arc::clone(roomy[chosen])),
        None => Choice::Full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Standing;
    use crate::fleet::tests::member;
    use crate::wire::Class;

    fn links(count: usize) -> Vec<Arc<Link>> {
        (0..count).map(|i| member(&format!("w{i}"), Standing::Serving, Vec::new()).link).collect()
    }

    fn tried(links: &[&Arc<Link>]) -> Tried {
        Tried(links.iter().map(|link| (Arc::clone(link), link.reports())).collect())
    }

    /// `expected` is the worker's id, `full` or `nobody`.
    #[track_caller]
    fn check(ready: &[Arc<Link>], tried: &Tried, share: Share, expected: &str) {
        let chosen = match choose(ready, tried, 1, share) {
            Choice::Take(link) => link.seat.id.to_string(),
            Choice::Full => "full".to_owned(),
            Choice::Nobody => "nobody".to_owned(),
        };
        assert_eq!(chosen, expected);
    }

    #[tokio::test]
    async fn a_worker_that_was_not_tried_comes_first() {
        let links = links(2);
        check(&links, &tried(&[&links[0]]), Share::Whole, "w1");
        check(&links, &tried(&[&links[1]]), Share::Whole, "w0");
        check(&links, &tried(&[&links[0], &links[1]]), Share::Whole, "nobody");
        check(&[], &Tried::default(), Share::Whole, "nobody");
    }

    #[tokio::test]
    async fn one_that_was_tried_is_tried_again_after_a_report() {
        let links = links(1);
        let tried = tried(&[&links[0]]);
        check(&links, &tried, Share::Whole, "nobody");
        links[0].heard(Arc::default());
        check(&links, &tried, Share::Whole, "w0");
    }

    #[tokio::test]
    async fn one_whose_connection_failed_is_left_alone_by_all() {
        let links = links(2);
        links[1].suspect();
        check(&links, &Tried::default(), Share::Whole, "w0");
        check(&links, &tried(&[&links[0]]), Share::Whole, "nobody");
    }

    #[tokio::test]
    async fn parts_of_a_large_call_wait_for_room_and_small_calls_do_not() {
        let links = links(2);
        let _held = links[0].hold(Class::Bulk, 1 << 20);
        check(&links, &Tried::default(), Share::Part, "w1");
        let _more = links[1].hold(Class::Bulk, 1 << 21);
        check(&links, &Tried::default(), Share::Part, "full");
        check(&links, &Tried::default(), Share::Whole, "w0");
    }
}
