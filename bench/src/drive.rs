//! The two loops.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::time;

use crate::arrivals::{self, Schedule};
use crate::call::Caller;
use crate::tally::Tally;
use crate::{Corpus, Pacing, Plan, Report};

/// How long a caller of a closed loop waits after a failure: a dead server is no reason to burn a core.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The thread that keeps the schedule did not start.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// Applies the load, waits for the last answer and reports.
///
/// # Errors
/// Only where measuring could not begin: calls that fail are part of the report.
pub async fn run(plan: &Plan, corpus: &Corpus) -> Result<Report, BenchError> {
    let caller = Caller::new(plan, corpus);
    let start = Instant::now();
    let mut tally = Tally::new(start + plan.warmup, plan.window);
    match plan.pacing {
        Pacing::Closed { concurrency } => {
            closed(&caller, concurrency, start + plan.warmup + plan.window, &mut tally).await;
        }
        Pacing::Open { rate, arrivals, seed, outstanding } => {
            let schedule = Schedule::new(arrivals, rate, seed);
            let due =
                arrivals::keep(schedule, start, plan.warmup + plan.window).map_err(BenchError::Thread)?;
            open(&caller, due, (outstanding, plan.timeout), &mut tally).await;
        }
    }
    Ok(Report::new(plan, corpus, tally))
}

/// Keeps `concurrency` calls open until `end`, then waits for those that are.
async fn closed(caller: &Caller<'_>, concurrency: usize, end: Instant, tally: &mut Tally) {
    // The pause belongs to the caller, not to the call: it is over before the call is due.
    let call = async |number, pause: Option<Duration>| {
        if let Some(pause) = pause {
            time::sleep(pause).await;
        }
        caller.call(number, Instant::now()).await
    };
    let mut calls: FuturesUnordered<_> = (0..concurrency).map(|number| call(number, None)).collect();
    let mut made = concurrency;
    while let Some(outcome) = calls.next().await {
        let pause = outcome.result.is_err().then_some(PAUSE_AFTER_FAILURE);
        tally.add(outcome);
        if Instant::now() < end {
            calls.push(call(made, pause));
            made += 1;
        }
    }
}

/// Makes each call when it is due, or as soon as fewer than `outstanding` are open, or, if that took longer
/// than `timeout`, never.
async fn open(
    caller: &Caller<'_>,
    mut due: tokio::sync::mpsc::Receiver<Instant>,
    (outstanding, timeout): (usize, Duration),
    tally: &mut Tally,
) {
    let mut calls = FuturesUnordered::new();
    let mut made = 0;
    let mut ended = false;
    while !(ended && calls.is_empty()) {
        // Both arms are cancel safe: a moment not received stays in its channel, a call not finished in its set.
        tokio::select! {
            biased;
            Some(outcome) = calls.next(), if !calls.is_empty() => tally.add(outcome),
            moment = due.recv(), if !ended && calls.len() < outstanding => match moment {
                Some(moment) if moment.elapsed() >= timeout => tally.unsent(moment),
                Some(moment) => {
                    calls.push(caller.call(made, moment));
                    made += 1;
                }
                None => ended = true,
            },
        }
    }
}
