//! How calls fare while another checkpoint is prepared beside the one they run on: no network, no store.
//!
//! `beside --model DIR --next DIR [--tokens 32] [--rate CALLS/S] [--seconds 20]` prints percentiles of the time that
//! calls took, first without and then with preparations of `next`, one after the other.

#![allow(clippy::print_stdout)] // A program for people.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use model::{Checkpoint, Device, Model, Overrides, Precision, Sequence};
use telemetry::prometheus::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use worker::apart::{Effort, apart};
use worker::call::Class;
use worker::catalogue::Catalogue;
use worker::config::BatchTokens;
use worker::engine::{Engine, Job, Plan};
use worker::load::{Limits, Load};
use worker::metrics::Metrics;
use worker::models::{Built, Place, build};
use worker::pace::Target;
use worker::shelf::{Shelf, Sizes};
use worker::warm::Patience;

#[derive(Clone, Parser)]
struct Args {
    /// The checkpoint that is called.
    #[arg(long)]
    model: PathBuf,
    /// The one that is prepared.
    #[arg(long)]
    next: PathBuf,
    /// Tokens of a call.
    #[arg(long, default_value_t = 32)]
    tokens: u32,
    /// Calls per second, at even intervals.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// How long each half takes.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// auto, f32 or bf16.
    #[arg(long, default_value = "auto")]
    dtype: Precision,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    model::prepare(Device::Cpu, threads.get())?;
    let stand = Stand::start(threads)?;
    let (digest, took) =
        stand.prepare(&args.model, args.dtype, (Effort::All(threads), Patience::Ample)).await?;
    println!("alone: ready in {took:.2?}");

    println!("steady: {}", stand.calls(&args, &digest, CancellationToken::new()).await);
    let stop = CancellationToken::new();
    let calls = async {
        let figures = stand.calls(&args, &digest, stop.clone()).await;
        stop.cancel();
        figures
    };
    let swaps = async {
        let mut times = Vec::new();
        while !stop.is_cancelled() {
            match stand.prepare(&args.next, args.dtype, (Effort::Spare, Patience::Short)).await {
                Ok((next, took)) => {
                    times.push(took);
                    let gone = stand.shelf.take(&next).await;
                    let _ = apart("drop", Effort::Spare, move || drop(gone)).await;
                }
                Err(error) => println!("not prepared: {error}"),
            }
        }
        times
    };
    let (figures, times) = tokio::join!(calls, swaps);
    println!("beside: {figures}\nready in {times:.2?}");
    model::exit_now(0)
}

struct Stand {
    shelf: Shelf<Model>,
    engine: Engine,
    load: Arc<Load>,
    tasks: TaskTracker,
}

impl Stand {
    fn start(threads: NonZeroUsize) -> Result<Self, Box<dyn Error>> {
        let tasks = TaskTracker::new();
        let load = Load::new(Limits { tokens: 1_000_000, wait: Duration::from_secs(60) });
        let metrics = Metrics::register(&mut Registry::default(), load.clone(), Catalogue::default());
        let device = worker::device::Device::spawn("device", move || model::set_threads(threads.get()))?;
        let plan = Plan { depth: 1, age: Duration::from_secs(10), load: load.clone(), metrics };
        let engine = Engine::spawn(plan, device.orders.clone(), device.reports, &tasks);
        let sizes = Sizes { batch_tokens: BatchTokens::Auto, target: Target::CPU };
        Ok(Self { shelf: Shelf::new(device.orders, engine.clone(), sizes), engine, load, tasks })
    }

    /// Reads, hashes, lays out and warms a checkpoint.
    async fn prepare(
        &self,
        dir: &std::path::Path,
        precision: Precision,
        (effort, patience): (Effort, Patience),
    ) -> Result<(Arc<str>, Duration), Box<dyn Error>> {
        let (start, dir) = (Instant::now(), dir.to_owned());
        let work = move || -> Result<_, String> {
            let checkpoint =
                Checkpoint::open(&dir, &Overrides::default()).map_err(|error| error.to_string())?;
            let built = build(&checkpoint, Place { device: Device::Cpu, precision }, None);
            Ok((built.map_err(|error| error.to_string())?, checkpoint))
        };
        let (Built { resident, .. }, checkpoint) = apart("prepare", effort, work).await??;
        let digest = Arc::<str>::from(checkpoint.digest());
        self.shelf.put(&digest, resident, checkpoint.card().max_tokens, patience).await?;
        Ok((digest, start.elapsed()))
    }

    /// Percentiles of calls at the given rate, for the given time.
    async fn calls(&self, args: &Args, digest: &Arc<str>, stop: CancellationToken) -> String {
        let times = Arc::new(Mutex::new(Vec::new()));
        let (start, mut ticks) = (Instant::now(), tokio::time::interval(Duration::from_secs(1) / args.rate));
        while start.elapsed() < Duration::from_secs(args.seconds) && !stop.is_cancelled() {
            ticks.tick().await;
            let job = Job {
                model: "m".into(),
                digest: digest.clone(),
                caller: "c".into(),
                class: Class::Interactive,
                deadline: None,
                sequences: vec![Sequence::single((0..args.tokens).map(|id| 1000 + id).collect())],
            };
            let (engine, load, times) = (self.engine.clone(), self.load.clone(), times.clone());
            self.tasks.spawn(async move {
                let start = Instant::now();
                let Ok(mut held) = load.admit(Class::Interactive, 1, None) else { return };
                if engine.run(job, &mut held).await.is_ok() {
                    times.lock().unwrap_or_else(PoisonError::into_inner).push(start.elapsed());
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner).clone();
        times.sort_unstable();
        let at =
            |thousandths: usize| times.get((times.len() * thousandths / 1000).min(times.len() - 1)).copied();
        let at = |thousandths| at(thousandths).unwrap_or_default();
        format!(
            "{} calls, p50 {:.2?}, p90 {:.2?}, p99 {:.2?}, p99.9 {:.2?}",
            times.len(),
            at(500),
            at(900),
            at(990),
            at(999)
        )
    }
}
