//! What a swap costs those who are served meanwhile, and how long it takes: `bench/swaps`.
//!
//! Prints rows of a Markdown table. Every figure is taken under a load whose every answer is checked.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program of one purpose, that prints")]

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use proto::v1::{PublishBegin, SwapPlan, SwapState};
use tempfile::TempDir;
use tests::history::{Book, Load, Record};
use tests::{Distance, Plan, Scene, Stage, variant};
use tokio::time;

#[derive(Parser)]
#[command(about = "Measures swaps on two workers and two gateways under load")]
struct Args {
    /// Directory of the model whose swaps are compared with quiet times
    #[arg(long)]
    model: PathBuf,
    /// Directory of a larger model, of which only publishing and rolling back are measured
    #[arg(long)]
    larger: Option<PathBuf>,
    /// Swaps, each with a quiet time beside it
    #[arg(long, default_value_t = 30)]
    swaps: usize,
    /// Publications, and rollbacks
    #[arg(long, default_value_t = 3)]
    publications: usize,
    /// How long etcd is away
    #[arg(long, default_value_t = 10)]
    etcd_minutes: u64,
    /// Callers of one text a call
    #[arg(long, default_value_t = 4)]
    callers: usize,
    /// What each rests after an answer, in milliseconds
    #[arg(long, default_value_t = 30)]
    rest_ms: u64,
}

/// Two gateways, two workers of one thread, and callers.
async fn stage(model: &Path, (variants, distance): (usize, Distance), args: &Args, dir: &TempDir) -> Stage {
    let kin = (0..variants as u64).map(|number| variant(model, number, distance, dir.path()));
    let checkpoints: Vec<PathBuf> = std::iter::once(model.to_owned()).chain(kin).collect();
    let book = Arc::new(Book::of(&checkpoints).await);
    let gateway_flags = ["--retire-grace", "2s"].map(str::to_owned).to_vec();
    let plan = Plan { gateways: 2, workers: 2, gateway_flags, ..Plan::default() };
    let rest = Duration::from_millis(args.rest_ms);
    let load = Load { model: "model".to_owned(), callers: args.callers, rest, most: 1 };
    let stage = Stage::set(Scene { plan, checkpoints, kin: 1, book, load }).await;
    time::sleep(Duration::from_secs(3)).await;
    stage
}

fn name(model: &Path) -> String {
    model.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn row(what: &str, found: &str) {
    println!("| {what} | {found} |");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn spread(values: &[f64]) -> String {
    let (least, most) = values.iter().fold((f64::MAX, 0.0_f64), |(a, b), &v| (a.min(v), b.max(v)));
    format!("{:.2} (of {}, {least:.2} to {most:.2})", median(values.to_vec()), values.len())
}

/// How much longer calls take while checkpoints are fetched, loaded, changed and let go.
async fn measure_latency(args: &Args) {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = stage(&args.model, (3, Distance::Kin), args, &dir).await;
    let space = stage.space().await;
    for i in 1..=3 {
        stage.publish(i, &space).await;
    }
    let notebook = stage.notebook();
    let (mut quiet, mut busy) = (Vec::new(), Vec::new());
    for turn in 1..=args.swaps {
        time::sleep(Duration::from_secs(2)).await;
        let begun = notebook.now();
        let plan = SwapPlan { retire_after_seconds: Some(0), ..SwapPlan::default() };
        stage.promote(turn % 4, plan).await;
        stage.committed().await;
        stage.retired().await;
        let ended = notebook.now();
        // As long, right after.
        time::sleep(Duration::from_secs(2)).await;
        let rested = notebook.now();
        time::sleep(Duration::from_micros(ended - begun)).await;
        busy.push(begun..ended);
        quiet.push(rested..notebook.now());
    }
    let record = stage.callers.finish().await;
    record.assert_flawless();
    let ratios: Vec<f64> =
        busy.iter().zip(&quiet).map(|(busy, quiet)| p99(&record, busy) / p99(&record, quiet)).collect();
    let total = record.summary(0..u64::MAX);
    // A swap is over in a second or two, in which a percentile of its own is that of the slowest call or two.
    let (busy, quiet) = (record.summary_over(&busy), record.summary_over(&quiet));
    row("p99 over all swaps / p99 over all quiet times", &format!("{:.2}", ratio(busy.p99_us, quiet.p99_us)));
    row("p50 over all swaps / p50 over all quiet times", &format!("{:.2}", ratio(busy.p50_us, quiet.p50_us)));
    row("the ratio of p99, swap by swap", &spread(&ratios));
    let millis = format!("{:.1}, {:.1}", ratio(busy.p99_us, 1_000), ratio(quiet.p99_us, 1_000));
    row("p99 during swaps, in quiet times, ms", &millis);
    row("calls during swaps, in quiet times", &format!("{}, {}", busy.calls, quiet.calls));
    row("calls meanwhile, of them failed", &format!("{}, {}", total.calls, total.failed));
}

#[allow(clippy::cast_precision_loss, reason = "microseconds of a test")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

/// Milliseconds.
#[allow(clippy::cast_precision_loss, reason = "microseconds of a test")]
fn p99(record: &Record, window: &Range<u64>) -> f64 {
    record.summary(window.clone()).p99_us as f64 / 1e3
}

/// How long it takes to bring a checkpoint in, and to go back.
async fn measure_publication(model: &Path, args: &Args) {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = stage(model, (args.publications, Distance::Stranger), args, &dir).await;
    let (mut published, mut committed, mut back, mut seen) = (vec![], vec![], vec![], vec![]);
    for i in 1..=args.publications {
        let begun = Instant::now();
        // The vectors of these are told apart, whatever the model is.
        let plan = Some(SwapPlan { new_space: true, ..SwapPlan::default() });
        let first = PublishBegin { promote: plan, ..PublishBegin::default() };
        let version = stage.operator.publish(&stage.checkpoints[i], first).await.unwrap();
        published.push(begun.elapsed().as_secs_f64());
        let digest = version.checkpoint.unwrap().digest;
        let swap =
            stage.operator.until(|swap| swap.to == digest && swap.state() == SwapState::Committed).await;
        committed.push(begun.elapsed().as_secs_f64());
        stage.tell(&swap).await;
        time::sleep(Duration::from_secs(2)).await;

        let begun = Instant::now();
        let swap = stage.operator.rollback().await.unwrap();
        back.push(begun.elapsed().as_secs_f64());
        let mut there = tests::Operator::new(&stage.cluster.gateways[1], &stage.model);
        while there.model().await.epoch < swap.epoch {
            time::sleep(Duration::from_millis(1)).await;
        }
        seen.push(begun.elapsed().as_secs_f64());
        stage.tell(&swap).await;
        time::sleep(Duration::from_secs(4)).await;
    }
    let record = stage.callers.finish().await;
    record.assert_flawless();
    let name = name(model);
    row(&format!("{name}: publish to published, s"), &spread(&published));
    row(&format!("{name}: publish to committed on both workers, s"), &spread(&committed));
    row(&format!("{name}: rollback, s"), &spread(&back));
    row(&format!("{name}: rollback until the other gateway answers so, s"), &spread(&seen));
}

/// What callers see while etcd is away.
async fn measure_outage(args: &Args) {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = stage(&args.model, (1, Distance::Kin), args, &dir).await;
    stage.cluster.etcd.stop().await;
    time::sleep(Duration::from_secs(60 * args.etcd_minutes)).await;
    stage.cluster.etcd.restart().await;
    time::sleep(Duration::from_secs(10)).await;
    let processes = stage.cluster.workers.iter_mut().chain(&mut stage.cluster.gateways);
    let restarts = processes.filter_map(|process| (!process.is_running()).then_some(())).count();
    let record = stage.callers.finish().await;
    record.assert_flawless();
    let total = record.summary(0..u64::MAX);
    let found = format!("{} calls, {} failed, {restarts} processes ended", total.calls, total.failed);
    row(&format!("etcd away for {} minutes", args.etcd_minutes), &found);
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    println!("| figure | found |\n|---|---|");
    measure_latency(&args).await;
    measure_publication(&args.model, &args).await;
    if let Some(larger) = &args.larger {
        measure_publication(larger, &args).await;
    }
    if args.etcd_minutes > 0 {
        measure_outage(&args).await;
    }
}
