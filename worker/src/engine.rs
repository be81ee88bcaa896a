//! Calls on one side, the device on the other: one task owns the queue, and cuts a batch whenever there is room
//! for one on the device.
//!
//! With a depth of 1 a batch is cut when the device is free, from the freshest view of what waits. With a depth of
//! 2 the next is cut while one runs, so that a device that is much faster than this task never waits for it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::Sequence;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Span;

use crate::bisect::Encode;
use crate::call::{Answer, Call, Class, Entry, Failure};
use crate::device::{Batch, Order, Report};
use crate::load::{Held, Load};
use crate::metrics::{Dropped, Metrics};
use crate::pace::{Budget, Speed};
use crate::queue::{Bounds, Queue};

/// Calls that may wait to be entered into the queue.
const EVENTS: usize = 1024;
/// Answers taken at a time.
const ANSWERS: usize = 256;

/// Texts to be run for one call.
#[derive(Debug)]
pub struct Job {
    /// The name under which the checkpoint was loaded.
    pub model: Arc<str>,
    /// The checkpoint.
    pub digest: Arc<str>,
    /// Who asks.
    pub caller: Arc<str>,
    /// How urgent it is.
    pub class: Class,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// What the model is to read.
    pub sequences: Vec<Sequence>,
}

/// How an engine runs.
#[derive(Debug)]
pub struct Plan {
    /// Batches on the device at a time: one running, the others next.
    pub depth: usize,
    /// Age beyond which a text leads a batch.
    pub age: Duration,
    /// What is told of tokens and speed.
    pub load: Arc<Load>,
    /// What is counted.
    pub metrics: Metrics,
}

/// Mailbox of the queue. When the last one is dropped the queue's task ends, and with it the device thread.
#[derive(Clone, Debug)]
pub struct Engine {
    events: mpsc::Sender<Event>,
    serials: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Event {
    Submit(Vec<Entry>),
    Forget(Range<u64>),
    Open { digest: Arc<str>, budget: Budget, rate: f64 },
    Close { digest: Arc<str> },
}

impl Engine {
    /// Starts the queue's task among `tasks`, with the mailbox of a device thread.
    #[must_use]
    pub fn spawn<E: Encode>(
        plan: Plan,
        orders: mpsc::Sender<Order<E>>,
        reports: mpsc::Receiver<Report>,
        tasks: &TaskTracker,
    ) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS);
        let keeper = Keeper {
            plan,
            queue: Queue::default(),
            running: 0,
            budgets: HashMap::new(),
            speed: Speed::default(),
        };
        tasks.spawn(keeper.run(inbox, orders, reports));
        Self { events, serials: Arc::default() }
    }

    /// Batches of the checkpoint `digest` hold as much as `budget` says, from now on; it is known to do `rate` tokens
    /// of work per second.
    pub async fn open(&self, digest: Arc<str>, budget: Budget, rate: f64) {
        // Without a device there are no batches.
        let _ = self.events.send(Event::Open { digest, budget, rate }).await;
    }

    /// Forgets what is known of a checkpoint that gets no more calls.
    pub async fn close(&self, digest: Arc<str>) {
        let _ = self.events.send(Event::Close { digest }).await;
    }

    /// Waits until the device has ended, which it should not while there is a mailbox.
    pub async fn ended(&self) {
        self.events.closed().await;
    }

    /// Runs the texts of a call; answers a row for each, in order, and gives back what `held` has for it. Dropping
    /// the future takes what still waits out of the queue.
    ///
    /// # Errors
    /// The position of the first text that has no row, and why.
    pub async fn run(&self, job: Job, held: &mut Held) -> Result<Vec<Vec<f32>>, (usize, Failure)> {
        let lengths: Vec<usize> = job.sequences.iter().map(Sequence::tokens).collect();
        let (entries, answers) = self.entries(job);
        let Some(serials) = entries.first().map(|entry| entry.call.serials.clone()) else {
            return Ok(Vec::new());
        };
        let mut absence = Absence { serials: Some(serials), events: &self.events };
        self.events.send(Event::Submit(entries)).await.map_err(|_| (0, Failure::Stopped))?;
        let rows = collect(answers, &lengths, held).await?;
        absence.serials = None;
        Ok(rows)
    }

    fn entries(&self, job: Job) -> (Vec<Entry>, mpsc::Receiver<Answer>) {
        let Job { model, digest, caller, class, deadline, sequences } = job;
        let count = sequences.len() as u64;
        let first = self.serials.fetch_add(count, Ordering::Relaxed);
        let (answers, receiver) = mpsc::channel(sequences.len().max(1));
        let call = Arc::new(Call {
            serials: first..first + count,
            model,
            digest,
            caller,
            class,
            arrived: Instant::now(),
            deadline,
            answers,
            span: Span::current(),
        });
        let entry = |(serial, sequence)| Entry { call: call.clone(), serial, sequence };
        ((first..).zip(sequences).map(entry).collect(), receiver)
    }
}

/// Rows of all texts, in order.
async fn collect(
    mut answers: mpsc::Receiver<Answer>,
    lengths: &[usize],
    held: &mut Held,
) -> Result<Vec<Vec<f32>>, (usize, Failure)> {
    let mut rows = vec![Vec::new(); lengths.len()];
    let mut missing = lengths.len();
    let mut news = Vec::new();
    while missing > 0 {
        if answers.recv_many(&mut news, ANSWERS).await == 0 {
            return Err((0, Failure::Stopped));
        }
        for Answer { index, outcome } in news.drain(..) {
            rows[index] = outcome.map_err(|failure| (index, failure))?;
            held.release(lengths[index]);
            missing -= 1;
        }
    }
    Ok(rows)
}

/// Takes the texts of a call out of the queue when the call ends without them.
struct Absence<'a> {
    serials: Option<Range<u64>>,
    events: &'a mpsc::Sender<Event>,
}

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        if let Some(serials) = self.serials.take() {
            // When the mailbox is full the queue drops them where it meets them.
            let _ = self.events.try_send(Event::Forget(serials));
        }
    }
}

/// The task that owns the queue.
struct Keeper {
    plan: Plan,
    queue: Queue,
    /// Batches on the device.
    running: usize,
    /// How much one batch of each checkpoint may hold.
    budgets: HashMap<Arc<str>, Budget>,
    /// Of the device, over all checkpoints.
    speed: Speed,
}

impl Keeper {
    async fn run<E: Encode>(
        mut self,
        mut events: mpsc::Receiver<Event>,
        orders: mpsc::Sender<Order<E>>,
        mut reports: mpsc::Receiver<Report>,
    ) {
        loop {
            // Everything that has arrived has a part in the next batch.
            while let Ok(event) = events.try_recv() {
                self.take(event);
            }
            while self.running < self.plan.depth
                && let Some(batch) = self.cut()
            {
                if orders.send(Order::Run(batch)).await.is_err() {
                    return;
                }
                self.running += 1;
            }
            // Both arms are cancel safe.
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    None => return,
                },
                report = reports.recv() => match report {
                    Some(report) => self.learn(&report),
                    None => return,
                },
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Submit(entries) => entries.into_iter().for_each(|entry| self.queue.push(entry)),
            Event::Forget(serials) => {
                let forgotten = self.queue.forget(serials);
                self.plan.metrics.dropped(Dropped::Cancelled, forgotten);
            }
            Event::Open { digest, budget, rate } => {
                self.budgets.insert(digest, budget);
                self.guess(rate);
            }
            Event::Close { digest } => drop(self.budgets.remove(&digest)),
        }
    }

    /// Until there are batches the guess is that of the slowest checkpoint: too much is promised to nobody.
    fn guess(&mut self, rate: f64) {
        let guessed = self.speed.tokens_per_second();
        if self.speed.is_guess() && (guessed <= 0.0 || rate < guessed) {
            self.speed = Speed::new(rate);
            self.plan.load.guess(rate);
        }
    }

    fn cut(&mut self) -> Option<Batch> {
        let now = Instant::now();
        let cut = self.queue.cut(now, Bounds { budgets: &self.budgets, age: self.plan.age });
        self.plan.metrics.dropped(Dropped::Cancelled, cut.cancelled);
        self.plan.metrics.dropped(Dropped::Expired, cut.expired.len());
        for entry in &cut.expired {
            entry.answer(Err(Failure::Expired));
        }
        for entry in &cut.batch {
            self.plan.metrics.waited(entry.call.age(now));
        }
        let digest = cut.batch.first()?.call.digest.clone();
        let span = span(&cut.batch);
        Some(Batch { digest, entries: cut.batch, span })
    }

    fn learn(&mut self, report: &Report) {
        self.running -= 1;
        let Plan { load, metrics, .. } = &self.plan;
        metrics.dropped(Dropped::Cancelled, report.cancelled);
        let Some(call) = &report.call else { return };
        self.speed.learn(report.tokens, report.took);
        load.ran(report.tokens, self.speed.tokens_per_second());
        metrics.ran(call, report.tokens, report.took);
        metrics.failed(report.failed_runs, report.failed_texts);
        let Some(budget) = self.budgets.get_mut(&call.digest) else { return };
        if report.out_of_memory {
            metrics.ran_out_of_memory();
            budget.shrink();
            tracing::warn!(digest = %call.digest, budget = budget.tokens(), "out of memory: batches are halved");
        } else {
            budget.grow(report.work, report.took);
        }
    }
}

/// A span for a batch: within the trace of the call that leads it, and linked to those of the others.
fn span(batch: &[Entry]) -> Span {
    let Some(leader) = batch.first() else { return Span::none() };
    let callers: HashSet<&str> = batch.iter().map(|entry| &*entry.call.caller).collect();
    let span = tracing::info_span!(
        parent: &leader.call.span,
        "batch",
        digest = &*leader.call.digest,
        texts = batch.len(),
        tokens = batch.iter().map(|entry| entry.sequence.tokens()).sum::<usize>(),
        callers = callers.len(),
    );
    let mut linked = HashSet::from([leader.call.serials.start]);
    for call in batch.iter().map(|entry| &entry.call) {
        if linked.insert(call.serials.start) {
            span.follows_from(&call.span);
        }
    }
    span
}
