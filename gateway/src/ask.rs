//! One shard, asked of one worker; and what its answer, or that there is none, says of the worker.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::call::{Call, Dispatcher, Work};
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
}
