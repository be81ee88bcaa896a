//! Runs a call: admit, scatter, merge.
//!
//! All of a call lives in one future. Dropping it, because the caller went away or its time is up, cancels what is
//! with workers and gives back every token it held.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use proto::v1;
use proto::worker::v1::worker_client::WorkerClient;
use proto::worker::v1::{AliasSeen, ShardOrigin};
use tokio::sync::watch;
use tokio::time::{self, Instant};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tracing::Span;

use crate::admit::{Demand, Entry, Ledger, Overloaded};
use crate::busy::Busy;
use crate::checkpoint::Digest;
use crate::error::{CallError, Defect};
use crate::estimate::{self, Estimates};
use crate::fleet::Fleet;
use crate::hedge::Hedges;
use crate::keys::CallerKey;
use crate::likeness::Likeness;
use crate::metrics::Metrics;
use crate::pool::Gossip;
use crate::quota::Charge;
use crate::resolve::Pin;
use crate::retry::{Budget, Patience};
use crate::route;
use crate::trial::Trials;
use crate::wire::{Ask, Class, Limits};

/// How often a stream looks whether there is room for its next request.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A worker is told a deadline this much later than ours, so that it is ours that answers.
const SLACK: Duration = Duration::from_millis(100);

/// What workers do for a request.
pub trait Work: Ask + Sync {
    /// Whether its calls tell how a checkpoint does. Those that never run the model do not.
    const TRIED: bool;

    /// A worker's answer to a shard.
    type Part: Send;
    /// What the caller is sent.
    type Answer: Clone + Send + Sync + 'static;

    /// The weight of each input; one weight where the request is answered whole.
    fn weights(&self) -> Vec<u64>;

    /// Sends the inputs of `order` to a worker.
    fn send(
        &self,
        worker: WorkerClient<Channel>,
        order: Order,
    ) -> impl Future<Output = Result<Self::Part, Status>> + Send;

    /// What a part says of the name, if anything.
    fn alias(part: &Self::Part) -> Option<&AliasSeen>;

    /// Makes one answer of the parts, each with its range, in order.
    ///
    /// # Errors
    /// [`Defect`] where a worker's part is not what was asked for.
    fn merge(
        &self,
        pin: &Pin,
        parts: Vec<(Range<usize>, Self::Part)>,
    ) -> Result<Answered<Self::Answer>, Defect>;
}

/// Work that can be done twice, by two checkpoints, and the answers compared.
pub trait Twice: Work {
    /// The same request as a job, of `digest` and of all there is to compare.
    #[must_use]
    fn copy(self, digest: Digest) -> Self;

    /// How alike the answers of two checkpoints are.
    fn likeness(old: &Self::Answer, new: &Self::Answer) -> Likeness;
}

/// A shard on its way to a worker.
#[derive(Debug)]
pub struct Order {
    /// Positions in the request.
    pub range: Range<usize>,
    /// Where it belongs.
    pub origin: ShardOrigin,
    /// When its answer is of no use any more.
    pub due: Instant,
}

impl Order {
    /// A request to a worker: with the time that is left, and within the caller's trace.
    #[must_use]
    pub fn seal<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.due.saturating_duration_since(Instant::now()) + SLACK);
        telemetry::trace::inject(&Span::current(), request.metadata_mut());
        request
    }
}

/// An answer, and what it says about itself.
#[derive(Debug)]
pub struct Answered<A> {
    /// What the caller is sent.
    pub body: A,
    /// The checkpoint that made it.
    pub provenance: v1::Provenance,
    /// Tokens the model read.
    pub tokens: u64,
    /// Texts the caller sent, counting no query.
    pub texts: usize,
}

/// A call that was answered.
#[derive(Debug)]
pub struct Done<A> {
    /// The answer.
    pub answered: Answered<A>,
    /// What it is of.
    pub pin: Pin,
    /// How long it took, from when its checkpoint was fixed.
    pub took: Duration,
}

/// Who asks, and how long it waits.
#[derive(Clone, Debug)]
pub struct Caller {
    /// By what it is told from others: work is shared fairly between callers.
    pub name: String,
    /// By what it is told from others while some of them try another checkpoint.
    pub key: String,
    /// The API key that its tokens are charged to, where there are keys.
    pub account: Option<CallerKey>,
    /// When an answer is of no use any more.
    pub due: Instant,
    /// What it wants of a busy cluster.
    pub patience: Patience,
}

/// A call that was taken.
#[derive(Debug)]
pub(crate) struct Call<'a, W> {
    /// What is asked.
    pub(crate) work: &'a W,
    /// The checkpoint it is asked of.
    pub(crate) pin: &'a Pin,
    /// Who asks.
    pub(crate) caller: &'a Caller,
    /// What it will cost.
    pub(crate) costs: Costs,
}

/// The estimated tokens of a request's inputs.
#[derive(Debug)]
pub(crate) struct Costs {
    /// Of each input.
    pub(crate) each: Vec<u64>,
    total: u64,
    /// Tokens per weight that was assumed.
    factor: f64,
}

/// Room that a call has.
#[derive(Debug)]
struct Admission {
    _entry: Entry,
    charge: Option<Charge>,
}

/// Charges what a call cost. One that its caller gave no time was begun, and costs what was estimated; one that failed
/// otherwise costs nothing.
fn settle<A>(charge: Charge, outcome: &Result<Answered<A>, CallError>) {
    match outcome {
        Ok(answered) => charge.settle(answered.tokens),
        Err(CallError::Deadline) => drop(charge),
        Err(
            CallError::Invalid(_)
            | CallError::UnknownModel(_)
            | CallError::NotServed(_)
            | CallError::Overloaded(_)
            | CallError::Unreachable(_)
            | CallError::Refused(_)
            | CallError::Bug(_),
        ) => charge.settle(0),
    }
}

/// Takes calls to workers.
#[derive(Debug)]
pub struct Dispatcher {
    /// What requests may hold.
    pub limits: Limits,
    /// The workers and models.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// Outstanding tokens of all calls.
    pub ledger: Arc<Ledger>,
    /// Where things are counted.
    pub metrics: Metrics,
    /// Checkpoints that calls and streams are on.
    pub busy: Arc<Busy>,
    /// What is seen of checkpoints on trial.
    pub trials: Trials,
    /// Where it is told what answers say of names.
    pub(crate) gossip: Gossip,
    pub(crate) budget: Budget,
    pub(crate) hedges: Hedges,
    estimates: Estimates,
}

impl Dispatcher {
    /// A dispatcher that has learnt nothing yet.
    #[must_use]
    pub fn new(
        limits: Limits,
        fleet: watch::Receiver<Arc<Fleet>>,
        ledger: Arc<Ledger>,
        metrics: Metrics,
        gossip: Gossip,
    ) -> Self {
        Self {
            limits,
            fleet,
            ledger,
            metrics,
            busy: Arc::default(),
            trials: Trials::default(),
            gossip,
            budget: Budget::default(),
            hedges: Hedges::default(),
            estimates: Estimates::default(),
        }
    }

    /// The picture of the workers as it is now.
    #[must_use]
    pub fn fleet(&self) -> Arc<Fleet> {
        self.fleet.borrow().clone()
    }

    /// Answers a request on the checkpoint it is pinned to.
    ///
    /// # Errors
    /// By what the caller can do; see [`CallError`].
    pub async fn run<W: Work>(
        &self,
        work: &W,
        pin: &Pin,
        caller: &Caller,
    ) -> Result<Answered<W::Answer>, CallError> {
        let counted = W::TRIED.then(|| self.trials.watch(pin, caller.due));
        let outcome = self.carry_out(work, pin, caller).await;
        if let Some(counted) = counted {
            counted.end(&outcome);
        }
        outcome
    }

    async fn carry_out<W: Work>(
        &self,
        work: &W,
        pin: &Pin,
        caller: &Caller,
    ) -> Result<Answered<W::Answer>, CallError> {
        work.fits(&pin.card)?;
        let call = Call { work, pin, caller, costs: self.costs(work, pin) };
        let Admission { _entry, charge } = self.admit(&call).await?;
        let parts = self.scatter(&call).await;
        let outcome = parts.and_then(|parts| Ok(work.merge(pin, parts)?));
        if let Some(charge) = charge {
            settle(charge, &outcome);
        }
        let answered = outcome?;
        self.account(&call, answered.tokens);
        Ok(answered)
    }

    /// Whether there is more to do than leaves room for what nobody waits for.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.ledger.outstanding() > self.ledger.limit() / 4
    }

    /// Tokens that one stream may have outstanding.
    #[must_use]
    pub fn stream_tokens(&self, digest: &Digest) -> u64 {
        let speed = self.fleet().ready(digest).iter().map(|link| link.speed()).sum();
        route::room(speed)
    }

    /// The estimated tokens of a request.
    pub fn estimate<W: Work>(&self, work: &W, pin: &Pin) -> u64 {
        self.costs(work, pin).total
    }

    fn costs<W: Work>(&self, work: &W, pin: &Pin) -> Costs {
        let (factor, window) = (self.estimates.factor(&pin.digest), pin.card.checkpoint.max_tokens);
        let tokens = |weight: &u64| estimate::tokens(*weight, factor, window);
        let each: Vec<u64> = work.weights().iter().map(tokens).collect();
        Costs { total: each.iter().sum(), each, factor }
    }

    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    fn account<W>(&self, call: &Call<'_, W>, tokens: u64) {
        let Call { pin, caller, costs, .. } = call;
        self.metrics.read(pin, tokens);
        if let Some(key) = &caller.account {
            self.metrics.read_for(key, tokens);
        }
        // By the weight that the texts had after the window was taken into account.
        self.estimates.learn(&pin.digest, costs.total as f64 / costs.factor, tokens);
    }

    /// Takes a call: at once or not at all, but for streams, which wait.
    async fn admit<W: Work>(&self, call: &Call<'_, W>) -> Result<Admission, CallError> {
        let class = call.work.terms().class;
        loop {
            let demand = Demand {
                tokens: call.costs.total,
                class,
                wait: self.wait(class, &call.pin.digest),
                remaining: call.caller.due.saturating_duration_since(Instant::now()),
            };
            match (self.enter(demand, call.caller), call.caller.patience) {
                (Ok(admission), _) => return Ok(admission),
                (Err(_), Patience::Wait) => time::sleep(LOOK_AGAIN).await,
                (Err(overloaded), Patience::Refuse) => {
                    self.metrics.refused(&overloaded);
                    return Err(overloaded.into());
                }
            }
        }
    }

    /// Enters a call into the ledger, and charges it to its key.
    fn enter(&self, demand: Demand, caller: &Caller) -> Result<Admission, Overloaded> {
        let entry = self.ledger.admit(demand)?;
        let charge = |key: &CallerKey| key.charge(demand.tokens, self.fleet().gateways());
        Ok(Admission { _entry: entry, charge: caller.account.as_ref().map(charge).transpose()? })
    }

    /// How long what goes before a new call will take; nothing while no speed is known.
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    fn wait(&self, class: Class, digest: &Digest) -> Duration {
        let fleet = self.fleet();
        let workers = fleet.ready(digest).iter();
        let (tokens, speed) = workers
            .fold((0, 0.0), |(tokens, speed), link| (tokens + link.ahead_of(class), speed + link.speed()));
        if speed > 0.0 {
            Duration::try_from_secs_f64(tokens as f64 / speed).unwrap_or(Duration::MAX)
        } else {
            Duration::ZERO
        }
    }
}
