//! The device thread: it owns the checkpoints that run, runs one batch after the other, and answers the texts in them.
//!
//! Checkpoints come and go by messages, between two batches. They are made elsewhere, and where they are dropped is
//! up to whoever takes them back, so that neither holds up a batch.
//!
//! A panic in a checkpoint is caught ([`bisect`]) and answered; when the device no longer runs what it ran before, the
//! thread ends, and with it the process: a worker that answers nothing but errors is worse than none.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use model::Sequence;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use crate::bisect::{self, Broken, Encode, EncodeError, Outcome};
use crate::call::{Call, Entry, Failure};
use crate::schedule;

/// Orders that the mailbox holds, and reports that may wait.
const DEPTH: usize = 2;

/// A checkpoint that is ready to run.
#[derive(Debug)]
pub struct Resident<E> {
    /// What runs its batches.
    pub encoder: E,
    /// An input that it is known to run.
    pub probe: Sequence,
}

/// What the device is told to do.
#[derive(Debug)]
pub enum Order<E> {
    /// Run texts, answer them, and report.
    Run(Batch),
    /// Run texts that nobody asked for, and tell how long they took.
    Try {
        /// The checkpoint.
        digest: Arc<str>,
        /// The texts.
        batch: Vec<Sequence>,
        /// Takes the time; dropped without it where the checkpoint is not here.
        took: oneshot::Sender<Result<Duration, EncodeError>>,
    },
    /// Keep a checkpoint, in place of one of the same digest.
    Put {
        /// Its digest.
        digest: Arc<str>,
        /// The checkpoint.
        resident: Resident<E>,
    },
    /// Give a checkpoint back. Batches for it that are ordered later fail.
    Take {
        /// Its digest.
        digest: Arc<str>,
        /// Takes it; dropped where the checkpoint is not here.
        taken: oneshot::Sender<Resident<E>>,
    },
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

/// A device thread, and both ends of its mailbox. The thread ends when the last sender of `orders` is dropped.
#[derive(Debug)]
pub struct Device<E> {
    /// Takes orders, and carries them out in turn.
    pub orders: mpsc::Sender<Order<E>>,
    /// Tells what became of batches, one report each.
    pub reports: mpsc::Receiver<Report>,
    /// Tells how the thread ended, as its last act; silent where it panicked.
    pub ended: oneshot::Receiver<Result<(), Broken>>,
    /// The thread.
    pub thread: JoinHandle<()>,
}

impl<E: Encode> Device<E> {
    /// Starts a thread called `name` with no checkpoint; it runs `begin` first.
    ///
    /// # Errors
    /// When the system has no thread.
    pub fn spawn(name: &str, begin: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel(DEPTH);
        let (outbox, reports) = mpsc::channel(DEPTH);
        let (end, ended) = oneshot::channel();
        let life = move || {
            begin();
            // What nobody listens for need not be told.
            let _ = end.send(serve(inbox, &outbox));
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(life)?;
        Ok(Self { orders, reports, ended, thread })
    }
}

fn serve<E: Encode>(
    mut inbox: mpsc::Receiver<Order<E>>,
    outbox: &mpsc::Sender<Report>,
) -> Result<(), Broken> {
    let mut residents = HashMap::<Arc<str>, Resident<E>>::new();
    while let Some(order) = inbox.blocking_recv() {
        // Whoever does not wait for an answer any more need not have one.
        match order {
            Order::Run(batch) => run(&mut residents, batch, outbox)?,
            Order::Try { digest, batch, took } => {
                if let Some(resident) = residents.get_mut(&digest) {
                    let _ = took.send(time(&mut resident.encoder, &batch));
                }
            }
            Order::Put { digest, resident } => drop(residents.insert(digest, resident)),
            Order::Take { digest, taken } => {
                if let Some(resident) = residents.remove(&digest) {
                    let _ = taken.send(resident);
                }
            }
        }
    }
    Ok(())
}

/// Runs a batch, reports, and answers its texts.
fn run<E: Encode>(
    residents: &mut HashMap<Arc<str>, Resident<E>>,
    Batch { digest, entries, span }: Batch,
    outbox: &mpsc::Sender<Report>,
) -> Result<(), Broken> {
    let _entered = span.enter();
    let (entries, gone): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| !entry.call.is_cancelled());
    let sequences: Vec<&Sequence> = entries.iter().map(|entry| &entry.sequence).collect();
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.tokens()).collect();
    let start = Instant::now();
    let outcome = match residents.get_mut(&digest) {
        Some(Resident { encoder, probe }) => bisect::run(encoder, &sequences, probe)?,
        None => absent(&digest, sequences.len()),
    };
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
    // The report first: the next batch is cut while the texts of this one are answered. When nobody takes reports any
    // more, no batch follows either.
    let _ = outbox.blocking_send(report);
    for (entry, row) in entries.iter().zip(outcome.rows) {
        entry.answer(row);
    }
    Ok(())
}

/// A checkpoint is taken back when no call for it is left, so these texts should not be here.
fn absent(digest: &str, texts: usize) -> Outcome {
    let failure = Failure::Poisonous(format!("checkpoint {digest} is not on the device"));
    Outcome { rows: vec![Err(failure); texts], ..Outcome::default() }
}

fn time(encoder: &mut impl Encode, batch: &[Sequence]) -> Result<Duration, EncodeError> {
    let start = Instant::now();
    bisect::attempt(encoder, &batch.iter().collect::<Vec<_>>()).map(|_| start.elapsed())
}
