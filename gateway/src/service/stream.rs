//! Streams of requests: answered in order, several at a time, all by one checkpoint.
//!
//! A stream waits where a call would be refused: it reads no further than its window, in requests and in tokens, and
//! so holds back its source. What was asked of workers is driven on while the reader of the answers is slow, lest
//! their bytes pile up in a connection that others use.

use std::collections::VecDeque;
use std::future;
use std::sync::Arc;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesOrdered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{self, Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use tracing::{Instrument as _, Span};

use super::{Service, caller, deadline, key};
use crate::call::{Answered, Caller, Dispatcher, Done, Twice, Work};
use crate::deadline::Deadline;
use crate::error::CallError;
use crate::keys::CallerKey;
use crate::pinning::Pinned;
use crate::resolve::Pin;
use crate::retry::Patience;
use crate::shadow::Shadows;
use crate::status::canonical;
use crate::wire::InvalidRequest;

/// Requests of a stream that are read and whose answers are not yet taken.
const WINDOW: usize = 16;

impl Service {
    /// Answers the requests of a stream, in order, until one cannot be answered.
    pub(super) fn stream<W>(
        &self,
        request: Request<Streaming<W::Wire>>,
    ) -> ReceiverStream<Result<W::Answer, Status>>
    where
        W: Twice + Send + 'static,
    {
        // Room for one: what is in the window waits in the window.
        let (answers, taken) = mpsc::channel(1);
        let (metadata, extensions, requests) = request.into_parts();
        let source = Source {
            dispatcher: Arc::clone(&self.dispatcher),
            shadows: self.shadows.clone(),
            name: caller(&extensions),
            key: key(&metadata, &extensions),
            account: extensions.get().cloned(),
            deadline: deadline(&extensions),
            pinned: None,
        };
        self.streams.spawn(flow::<W>(source, requests, answers).instrument(Span::current()));
        ReceiverStream::new(taken)
    }
}

/// Makes answers of requests.
struct Source {
    dispatcher: Arc<Dispatcher>,
    shadows: Shadows,
    name: String,
    /// Or what is wrong with what the caller says it is.
    key: Result<String, InvalidRequest>,
    account: Option<CallerKey>,
    deadline: Deadline,
    /// What the first request fixed.
    pinned: Option<Pinned>,
}

/// What was made of a request: the estimated tokens it held, and the answer.
type Item<A> = (u64, Result<Answered<A>, Status>);

/// A request that is being answered, after the estimated tokens it holds.
type Begun<A> = (u64, BoxFuture<'static, Item<A>>);

impl Source {
    /// Begins to answer `wire`; answers the estimated tokens it holds meanwhile, too.
    async fn begin<W>(&mut self, wire: W::Wire) -> Result<Begun<W::Answer>, CallError>
    where
        W: Twice + Send + 'static,
    {
        let work = W::parse(wire, &self.dispatcher.limits)?;
        let due = self.deadline.of_answer(Instant::now());
        let (name, key, account) = (self.name.clone(), self.key.clone()?, self.account.clone());
        let caller = Caller { name, key, account, due, patience: Patience::Wait };
        let pinned = match &self.pinned {
            Some(pinned) => {
                pinned.pin.covers(work.terms())?;
                pinned.clone()
            }
            None => self.pinned.insert(self.dispatcher.pin(work.terms(), &caller).await?).clone(),
        };
        let tokens = self.dispatcher.estimate(&work, &pinned.pin);
        let (dispatcher, shadows) = (Arc::clone(&self.dispatcher), self.shadows.clone());
        let answered = async move {
            let done = answer(&dispatcher, &work, &pinned.pin, &caller).await;
            let answered = done.map(|done| {
                shadows.offer(&dispatcher, work, &done);
                done.answered
            });
            (tokens, answered)
        };
        Ok((tokens, answered.boxed()))
    }

    /// Tokens that may be outstanding before another request is read.
    fn window(&self) -> u64 {
        self.pinned.as_ref().map_or(1, |pinned| self.dispatcher.stream_tokens(&pinned.pin.digest))
    }
}

async fn answer<W: Work>(
    dispatcher: &Dispatcher,
    work: &W,
    pin: &Pin,
    caller: &Caller,
) -> Result<Done<W::Answer>, Status> {
    let began = Instant::now();
    let answered = time::timeout_at(caller.due, dispatcher.run(work, pin, caller)).await;
    let answered = answered.map_err(|_late| CallError::Deadline)??;
    dispatcher.metrics.answered_by(pin);
    Ok(Done { answered, pin: pin.clone(), took: began.elapsed() })
}

/// Reads, answers and sends until either end is done. A request that cannot be answered ends the stream, after the
/// answers to those before it.
async fn flow<W>(
    mut source: Source,
    mut requests: Streaming<W::Wire>,
    answers: mpsc::Sender<Result<W::Answer, Status>>,
) where
    W: Twice + Send + 'static,
{
    let mut running: FuturesOrdered<BoxFuture<'static, Item<W::Answer>>> = FuturesOrdered::new();
    let mut done: VecDeque<Result<W::Answer, Status>> = VecDeque::new();
    let (mut held, mut texts, mut cost) = (0, 0, 0);
    let mut open = true;
    while open || !running.is_empty() || !done.is_empty() {
        let may_read = open && running.len() + done.len() < WINDOW && held < source.window();
        let idle = running.is_empty() && done.is_empty();
        // All arms are cancel safe: what one of them did not finish is still where it was.
        tokio::select! {
            Ok(room) = answers.reserve(), if !done.is_empty() => {
                let answer = done.pop_front().expect("it is not empty");
                let last = answer.is_err();
                room.send(answer);
                if last {
                    break;
                }
            }
            Some((tokens, answer)) = running.next(), if !running.is_empty() => {
                held -= tokens;
                done.push_back(answer.map(|answered| {
                    texts += answered.texts;
                    cost += answered.tokens;
                    answered.body
                }));
            }
            message = requests.message(), if may_read => match read::<W>(&mut source, message).await {
                Ok(Some((tokens, item))) => {
                    held += tokens;
                    running.push_back(item);
                }
                Ok(None) => open = false,
                Err(status) => {
                    open = false;
                    running.push_back(future::ready((0, Err(status))).boxed());
                }
            },
            () = passed(source.deadline.given), if idle => done.push_back(Err(CallError::Deadline.into())),
            () = answers.closed() => break,
        }
    }
    Span::current().record("texts", texts).record("tokens", cost);
}

/// Begins what a message asks for; `None` after the last one.
async fn read<W>(
    source: &mut Source,
    message: Result<Option<W::Wire>, Status>,
) -> Result<Option<Begun<W::Answer>>, Status>
where
    W: Twice + Send + 'static,
{
    let wire = message.map_err(canonical)?;
    match wire {
        Some(wire) => Ok(Some(source.begin::<W>(wire).await?)),
        None => Ok(None),
    }
}

async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => time::sleep_until(deadline).await,
        None => future::pending().await,
    }
}
