//! Ending without a failed call, step by step: *forgotten, settled, drained, gone*.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::Stream;
use tls::Door;
use tokio::time;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use crate::config::Serving;
use crate::goodbye::Goodbye;

/// Between the last connection that is taken and the word to close them all: it may have a request to bring.
const LAST_ARRIVALS: Duration = Duration::from_millis(100);
/// What is on its way when connections are told to close arrives within this time, and so do last answers.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How ending ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Every call was answered. Connections may be open that nobody uses.
    Drained,
    /// Some were given up.
    Late,
}

/// The steps of ending. Each is taken once, in this order.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// Health and readiness say no; everything else goes on.
    pub leaving: CancellationToken,
    /// No new connections.
    pub shut: CancellationToken,
    /// Connections finish what they have and close.
    pub closing: CancellationToken,
    /// What is still not answered is given up.
    pub abandoned: CancellationToken,
    /// Calls that are running; each has a token of it.
    pub calls: TaskTracker,
}

impl Steps {
    /// Takes the steps after `stop`; returns when there is no call left to wait for, or no time.
    pub async fn take(&self, stop: &CancellationToken, serving: &Serving) -> Ending {
        stop.cancelled().await;
        self.leaving.cancel();
        time::sleep(serving.settle).await;
        self.shut.cancel();
        time::sleep(LAST_ARRIVALS).await;
        self.closing.cancel();
        time::sleep(LAST_WORDS).await;
        self.calls.close();
        let drained = time::timeout(serving.grace, self.calls.wait()).await.is_ok();
        if !drained {
            tracing::warn!(calls = self.calls.len(), "grace is over, and calls are still running");
            self.abandoned.cancel();
        }
        time::sleep(LAST_WORDS).await;
        if drained { Ending::Drained } else { Ending::Late }
    }
}

/// Connections as they arrive, until `shut`; then none but those at the door already. The stream does not end, for its
/// end would close those that were taken a moment ago.
pub struct Arrivals {
    door: Door,
    /// `None` once shut.
    shut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Arrivals {
    /// Connections that `door` lets in until `shut`.
    #[must_use]
    pub fn new(door: Door, shut: CancellationToken) -> Self {
        Self { door, shut: Some(Box::pin(shut.cancelled_owned())) }
    }
}

impl Stream for Arrivals {
    type Item = io::Result<Goodbye<tls::Stream>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Who is at the door is let in before it is shut.
        if let Poll::Ready(arrival) = Pin::new(&mut self.door).poll_next(cx) {
            return Poll::Ready(arrival.map(|arrival| arrival.map(Goodbye::new)));
        }
        if self.shut.as_mut().is_some_and(|shut| shut.as_mut().poll(cx).is_ready()) {
            self.shut = None;
            self.door.shut();
        }
        Poll::Pending
    }
}
