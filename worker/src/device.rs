//! The device thread: it owns the encoder, runs one batch after the other, and answers the texts in them.
//!
//! The encoder is born on the thread and never leaves it. A panic in it is caught ([`bisect`]) and answered; when
//! the device no longer runs what it ran before, the thread ends, and with it the process: a worker that answers
//! nothing but errors is worse than none.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use model::Sequence;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::bisect::{self, Broken, Encode};
use crate::call::{Call, Entry};
use crate::schedule;

/// Batches that the mailbox holds, and reports that may wait.
const DEPTH: usize = 2;

/// An encoder that is ready to run.
#[derive(Debug)]
pub struct Loaded<E, F> {
    /// The encoder.
    pub encoder: E,
    /// For each checkpoint an input that it is known to run.
    pub probes: HashMap<Arc<str>, Sequence>,
    /// What is to be told of the loading.
    pub facts: F,
}

/// Texts to be run together.
#[derive(Debug)]
pub struct Batch {
    /// The checkpoint.
    pub digest: Arc<str>,
    /// The texts; all of calls for this checkpoint.
    pub entries: Vec<Entry>,
    /// The span of the run.
    pub span: Span,
}

/// What became of a batch.
#[derive(Debug)]
pub struct Report {
    /// A call of the batch, unless nothing was left to run.
    pub call: Option<Arc<Call>>,
    /// Tokens run.
    pub tokens: usize,
    /// Work they were counted as.
    pub work: usize,
    /// How long it took.
    pub took: Duration,
    /// Whether memory ran out.
    pub out_of_memory: bool,
    /// Runs without rows.
    pub failed_runs: u64,
    /// Texts without rows.
    pub failed_texts: u64,
    /// Texts whose callers had gone since the batch was cut.
    pub cancelled: usize,
}

/// A device thread, and both ends of its mailbox. The thread ends when `batches` is dropped.
#[derive(Debug)]
pub struct Device {
    /// Takes batches.
    pub batches: mpsc::Sender<Batch>,
    /// Tells what became of them, one report each.
    pub reports: mpsc::Receiver<Report>,
    /// Tells how the thread ended, as its last act; silent where it panicked.
    pub ended: oneshot::Receiver<Result<(), Broken>>,
    /// The thread.
    pub thread: JoinHandle<()>,
}

impl Device {
    /// Starts a thread called `name`, which runs `load` and then batches. What `load` has to tell arrives when it
    /// is done; where it fails the thread has nothing to do and ends.
    ///
    /// # Errors
    /// When the system has no thread.
    pub fn spawn<E, F, X>(
        name: &str,
        load: impl FnOnce() -> Result<Loaded<E, F>, X> + Send + 'static,
    ) -> io::Result<(Self, oneshot::Receiver<Result<F, X>>)>
    where
        E: Encode,
        F: Send + 'static,
        X: Send + 'static,
    {
        let (batches, inbox) = mpsc::channel(DEPTH);
        let (outbox, reports) = mpsc::channel(DEPTH);
        let (tell, loaded) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let life = move || {
            // What nobody listens for need not be told.
            let _ = match load() {
                Ok(Loaded { encoder, probes, facts }) => {
                    let _ = tell.send(Ok(facts));
                    end.send(serve(encoder, &probes, inbox, &outbox))
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                    end.send(Ok(()))
                }
            };
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(life)?;
        Ok((Self { batches, reports, ended, thread }, loaded))
    }
}

fn serve(
    mut encoder: impl Encode,
    probes: &HashMap<Arc<str>, Sequence>,
    mut inbox: mpsc::Receiver<Batch>,
    outbox: &mpsc::Sender<Report>,
) -> Result<(), Broken> {
    while let Some(Batch { digest, entries, span }) = inbox.blocking_recv() {
        let _entered = span.enter();
        let (entries, gone): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|entry| !entry.call.is_cancelled());
        let sequences: Vec<&Sequence> = entries.iter().map(|entry| &entry.sequence).collect();
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.tokens()).collect();
        let start = Instant::now();
        let outcome = bisect::run(&mut encoder, &digest, &sequences, probes.get(&digest))?;
        let report = Report {
            call: entries.first().map(|entry| entry.call.clone()),
            tokens: lengths.iter().sum(),
            work: schedule::batch_work(&lengths),
            took: start.elapsed(),
            out_of_memory: outcome.out_of_memory,
            failed_runs: outcome.failures,
            failed_texts: outcome.rows.iter().filter(|row| row.is_err()).count() as u64,
            cancelled: gone.len(),
        };
        // The report first: the next batch is cut while the texts of this one are answered. When nobody takes
        // reports any more, no batch follows either.
        let _ = outbox.blocking_send(report);
        for (entry, row) in entries.iter().zip(outcome.rows) {
            entry.answer(row);
        }
    }
    Ok(())
}
