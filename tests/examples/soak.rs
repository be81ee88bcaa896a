//! Swaps without end under load, with losses in between: `make soak`.
//!
//! Prints what happened and ends with 1 where anybody noticed. The record of what callers saw is kept then.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program of one purpose, that prints")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use proto::v1::WorkerState;
use tests::history::{Book, Load, Summary, flaws};
use tests::{Distance, Plan, Scene, Stage, checkpoint, variant};

const MODEL: &str = "bert-cls";

/// Checkpoints that take turns.
const KIN: usize = 4;

#[derive(Parser)]
#[command(about = "Swaps checkpoints under load, kills what can be killed, and says whether anybody noticed")]
struct Args {
    /// How many swaps
    #[arg(long, default_value_t = 1000)]
    swaps: usize,
    /// To end after so many minutes, however many swaps there were
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Callers, each waiting for its answer before it goes on
    #[arg(long, default_value_t = 16)]
    callers: usize,
    /// To kill no gateway: nobody has to go on at another one then
    #[arg(long)]
    keep_gateways: bool,
    /// For a short run: each swap counts as so many when it is time for something to be lost
    #[arg(long, default_value_t = 1)]
    pace: usize,
}

/// What is done beside swapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Nothing,
    RollBack,
    LoseWorker,
    LoseLeader,
    StopEtcd,
}

impl Event {
    /// Now and then; the rarest first.
    fn of(turn: usize, args: &Args) -> Self {
        match (turn + 1) * args.pace {
            count if count % 100 == 0 && !args.keep_gateways => Self::LoseLeader,
            count if count % 50 == 0 => Self::StopEtcd,
            count if count % 20 == 0 => Self::LoseWorker,
            count if count % 5 == 0 => Self::RollBack,
            _ => Self::Nothing,
        }
    }

    async fn happen(self, stage: &mut Stage) {
        match self {
            Self::Nothing => {}
            Self::RollBack => {
                let swap = stage.operator.rollback().await.unwrap();
                stage.tell(&swap).await;
            }
            Self::LoseWorker => {
                stage.cluster.workers.remove(0).kill().await;
                stage.cluster.add_worker(&[]).await;
                stage.cluster.wait_for(2, WorkerState::Serving).await;
            }
            Self::LoseLeader => {
                stage.add_gateway().await;
                let place = stage.cluster.leader().await;
                stage.kill_gateway(place).await;
            }
            Self::StopEtcd => {
                stage.cluster.etcd.stop().await;
                tokio::time::sleep(Duration::from_secs(5)).await;
                stage.cluster.etcd.restart().await;
            }
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let Args { swaps, minutes, callers, .. } = args;
    let dir = tempfile::tempdir().unwrap();
    let first = PathBuf::from(checkpoint(MODEL));
    let kin = (1..KIN as u64).map(|number| variant(&first, number, Distance::Kin, dir.path()));
    let checkpoints: Vec<_> = std::iter::once(first.clone()).chain(kin).collect();
    let book = Arc::new(Book::of(&checkpoints).await);
    let load = Load { model: MODEL.to_owned(), callers, rest: Duration::from_millis(10), most: 8 };
    let gateway_flags = ["--retire-grace", "2s"].map(str::to_owned).to_vec();
    let plan = Plan { gateways: 2, workers: 2, gateway_flags, ..Plan::default() };
    let mut stage = Stage::set(Scene { plan, checkpoints, kin: KIN, book, load }).await;

    let (begun, mut took, mut at) = (Instant::now(), Vec::new(), 0);
    for turn in 0..swaps {
        if begun.elapsed() > Duration::from_secs(60 * minutes) {
            println!("after {turn} swaps the time is up");
            break;
        }
        at = (at + 1) % KIN;
        let swap = Instant::now();
        stage.swap_to(at).await;
        took.push(swap.elapsed());
        let event = Event::of(turn, &args);
        event.happen(&mut stage).await;
        if event == Event::RollBack {
            at = (at + KIN - 1) % KIN;
        }
        if turn % 50 == 49 {
            println!("{} swaps, {} calls, {:.0?}", turn + 1, stage.notebook().calls(), begun.elapsed());
        }
    }
    took.sort_unstable();
    let record = stage.callers.finish().await;
    let (summary, flaws) = (record.summary(0..u64::MAX), flaws(&record));
    println!("swaps      {} in {:.0?}", took.len(), begun.elapsed());
    println!("to commit  {:.2?} at the median, {:.2?} at most", took[took.len() / 2], took[took.len() - 1]);
    let Summary { calls, failed, moved, .. } = summary;
    println!("calls      {calls}, of them failed {failed}, moved to another gateway {moved}");
    println!("latency    p50 {} us, p99 {} us", summary.p50_us, summary.p99_us);
    println!("flaws      {}", flaws.len());
    if flaws.is_empty() {
        return ExitCode::SUCCESS;
    }
    let (_, path) = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap().keep().unwrap();
    record.write(&path).unwrap();
    for flaw in flaws.iter().take(10) {
        println!("{flaw}");
    }
    println!("the record is kept in {}", path.display());
    ExitCode::FAILURE
}
