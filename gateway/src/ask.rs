//! One shard, asked of one worker, or of two where the first is late; and what an answer, or that there is none, says of
//! a worker.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{self, Instant};

use crate::call::{Call, Dispatcher, Work};
use crate::choice::{self, Choice, Share, Tried};
use crate::link::Link;
use crate::retry::{self, Failure};
use crate::scatter::order;
use crate::split::Piece;

/// A shard that a worker has. One that is dropped was given up, by its caller or for another worker's answer.
struct Asked<'a> {
    link: &'a Link,
    began: Instant,
    /// How long it should take; `None` where that is not known.
    foreseen: Option<Duration>,
    over: bool,
}

impl<'a> Asked<'a> {
    fn begin<W: Work>(link: &'a Link, tokens: u64) -> Self {
        // Speeds are those of models.
        let foreseen = if W::TRIED { link.foresee(tokens) } else { None };
        Self { link, began: Instant::now(), foreseen, over: false }
    }

    fn answered(mut self) {
        self.over = true;
        self.link.record.answered(self.began.elapsed(), self.foreseen);
    }

    fn failed(mut self, failure: &Failure) {
        tracing::debug!(worker = %self.link.seat, reason = failure.label(), "a shard was not answered");
        self.over = true;
        match failure {
            Failure::Lost | Failure::Unsent => {
                self.link.suspect();
                self.link.record.failed();
            }
            Failure::Leaving => self.link.suspect(),
            Failure::Defect(_) => self.link.record.failed(),
            // The answer is an answer, and the time is its caller's.
            Failure::Refused(_) => self.link.record.answered(self.began.elapsed(), None),
            Failure::Late => self.over = false,
            Failure::Absent | Failure::Busy(_) => {}
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(foreseen) = self.foreseen.filter(|_| !self.over) {
            self.link.record.waited(self.began.elapsed(), foreseen);
        }
    }
}

impl Dispatcher {
    /// A worker's answer to a shard.
    ///
    /// # Errors
    /// What became of it instead.
    pub(crate) async fn ask<W: Work>(
        &self,
        call: &Call<'_, W>,
        piece: &Piece,
        link: &Arc<Link>,
    ) -> Result<W::Part, Failure> {
        let &Call { work, pin, caller, costs: _ } = call;
        let asked = Asked::begin::<W>(link, piece.tokens);
        let _held = link.hold(work.terms().class, piece.tokens);
        let failure = tokio::select! {
            answer = work.send(link.client(), order(piece, pin, caller)) => match answer {
                Ok(part) => {
                    asked.answered();
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
        asked.failed(&failure);
        Err(failure)
    }

    /// The same of a small call: where `link` is [late](crate::hedge) another worker is asked as well, and the first
    /// answer is taken. Nobody waits for the other one.
    ///
    /// # Errors
    /// What became of it at `link` instead.
    pub(crate) async fn ask_in_time<W: Work>(
        &self,
        call: &Call<'_, W>,
        piece: &Piece,
        link: &Arc<Link>,
    ) -> Result<W::Part, Failure> {
        let began = Instant::now();
        let late = self.hedges.begin(&call.pin.digest);
        let answer = self.first_answer(call, piece, link, late).await;
        if answer.is_ok() {
            self.hedges.answered(&call.pin.digest, began.elapsed());
        }
        answer
    }

    async fn first_answer<W: Work>(
        &self,
        call: &Call<'_, W>,
        piece: &Piece,
        link: &Arc<Link>,
        late: Option<Duration>,
    ) -> Result<W::Part, Failure> {
        let mut first = pin!(self.ask(call, piece, link));
        let Some(late) = late else { return first.await };
        if let Ok(answer) = time::timeout(late, &mut first).await {
            return answer;
        }
        let Some(other) = self.another(call, piece, link) else { return first.await };
        let mut second = pin!(self.ask(call, piece, &other));
        // Both arms are cancel safe: whichever is dropped is cancelled at its worker.
        let (taken, answer) = tokio::select! {
            answer = &mut first => match answer {
                Ok(part) => ("first", Ok(part)),
                Err(failure) => ("second", second.await.map_err(|_| failure)),
            },
            answer = &mut second => match answer {
                Ok(part) => ("second", Ok(part)),
                Err(_) => ("first", first.await),
            },
        };
        self.metrics.hedged(if answer.is_ok() { taken } else { "none" });
        answer
    }

    /// A worker beside `link` that is well, where one may be asked.
    fn another<W>(&self, call: &Call<'_, W>, piece: &Piece, link: &Arc<Link>) -> Option<Arc<Link>> {
        let fleet = self.fleet();
        let well = |other: &&Arc<Link>| !Arc::ptr_eq(other, link) && other.record.takes(other.outstanding());
        let others: Vec<_> = fleet.ready(&call.pin.digest).iter().filter(well).cloned().collect();
        match choice::choose(&others, &Tried::default(), piece.tokens, Share::Whole) {
            Choice::Take(other) if self.hedges.spend() => Some(other),
            Choice::Take(_) | Choice::Full | Choice::Nobody => None,
        }
    }
}
