//! `beige-trainer`: the job service, one rank of a fine-tuning job, an evaluation, or the replay of a recorded run of the
//! reference.

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{env, thread};

use clap::{Parser, Subcommand};
use model::{Checkpoint, Device, Overrides, Pooling};
use torch_ext::{Group, Seat, Store};
use trainer::TrainError;
use trainer::collective::{Alone, Collective};
use trainer::data::Corpus;
use trainer::evaluate::{CrossEncoder, Directory, Evaluation, Metrics};
use trainer::job::{EvaluationData, Job, Kind};
use trainer::rank;
use trainer::service::{self, Config, ServeArgs};
use trainer::trace::{Places, Report, replay};

/// Prepared products that are kept: those of a layer, forward and backward.
const PRODUCTS: usize = 16;

/// Fine-tunes embedding and reranking models.
#[derive(Debug, Parser)]
#[command(name = "beige-trainer", version)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Threads of one rank
    #[arg(long, env = "BEIGE_TRAINER_THREADS", default_value_t = 1, global = true)]
    threads: usize,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the jobs of a cluster
    ///
    /// Jobs are submitted to the cluster's gateways; ranks are processes of this program.
    Serve(Box<ServeArgs>),
    /// Replay a recorded run of FlagEmbedding and print the worst differences; exits 0 when they are allowed
    ///
    /// Processors add in different orders, and what a recording processor rounded off another may not. Where a record does
    /// not hold, it is replayed in the other orders that libtorch knows, and holds if it does in one of them: a wrong
    /// program is wrong in all. The last line then names the order.
    Replay {
        /// The trace's folder
        dir: PathBuf,
        /// What the trace's model and data are relative to; the folder around it if not given
        #[arg(long)]
        root: Option<PathBuf>,
        /// A directory of checkpoints, in which weights are found by their SHA-256 [default: what set-up has prepared]
        #[arg(long, env = "BEIGE_CHECKPOINTS")]
        checkpoints: Option<PathBuf>,
        /// Add in this processor's own order only
        #[arg(long)]
        own_order: bool,
    },
    /// Measure an embedder or a cross-encoder and print its metrics as JSON
    ///
    /// A cross-encoder orders, for each query, the documents that qrels names for it.
    Evaluate(EvaluateArgs),
    /// Train as one rank of a job, from its newest checkpoint where there is one
    ///
    /// Rank 0 prints a line of JSON for each step, evaluation and checkpoint, and for the finished model; `kind` says
    /// which.
    Rank(RankArgs),
}

/// What is measured on what.
#[derive(Debug, clap::Args)]
struct EvaluateArgs {
    /// The checkpoint, a directory in the Hugging Face layout
    model: PathBuf,
    /// Texts that are searched, JSON Lines of {"id", "text"}
    #[arg(long, value_name = "FILE", requires_all = ["queries", "qrels"])]
    corpus: Option<PathBuf>,
    /// Texts that ask, likewise
    #[arg(long, value_name = "FILE", requires_all = ["corpus", "qrels"])]
    queries: Option<PathBuf>,
    /// What answers what: query, document and grade, with tabs between; 0 for what does not
    #[arg(long, value_name = "FILE", requires_all = ["corpus", "queries"])]
    qrels: Option<PathBuf>,
    /// Pairs of texts with scores: score, text and text, with tabs between; only for embedders
    #[arg(long, value_name = "FILE", required_unless_present = "corpus")]
    sts: Option<PathBuf>,
    /// How vectors are pooled, where the directory does not say: cls, mean or last
    #[arg(long)]
    pooling: Option<Pooling>,
    /// Tokens of a text, special ones included [default: as the directory says]
    #[arg(long)]
    max_tokens: Option<usize>,
}

/// Which rank, and where the others are.
#[derive(Debug, clap::Args)]
struct RankArgs {
    /// The job, a JSON file
    job: PathBuf,
    /// This rank, from 0; rank 0 serves the store
    #[arg(long, default_value_t = 0)]
    rank: usize,
    /// Ranks of the job
    #[arg(long, default_value_t = 1)]
    ranks: usize,
    /// Host of rank 0
    #[arg(long, default_value = "127.0.0.1")]
    store_host: String,
    /// Port of rank 0's store
    #[arg(long, default_value_t = 29_500)]
    store_port: u16,
    /// The name or address under which other ranks reach this one
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
    /// Name of this attempt: ranks of another one do not meet it
    #[arg(long, default_value = "0")]
    attempt: String,
    /// What it computes on: cpu, or cuda:N, on all ranks the one or the other
    #[arg(long, default_value = "cpu", value_parser = Device::parse, value_name = "DEVICE")]
    device: Device,
    /// Seconds that a rank waits for the others
    #[arg(long, default_value_t = 1800)]
    timeout_seconds: u64,
    /// End when standard input ends: for a supervisor that may die
    #[arg(long)]
    exit_on_stdin_eof: bool,
}

fn main() -> ExitCode {
    let Args { verb, threads } = match Args::parse() {
        Args { verb: Verb::Serve(args), threads } => return serve(*args, threads),
        args => args,
    };
    // Stdout is for progress and answers.
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    match run(verb, threads) {
        Ok(code) => code,
        Err(error) => {
            // The last line of a process that failed, for people and for the trainer.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::from(error.code())
        }
    }
}

fn run(verb: Verb, threads: usize) -> Result<ExitCode, TrainError> {
    let device = if let Verb::Rank(args) = &verb { args.device } else { Device::Cpu };
    torch_ext::keep_products(PRODUCTS);
    model::prepare(device, threads).map_err(|error| TrainError::Unsupported(error.to_string()))?;
    match verb {
        Verb::Serve(_) => unreachable!("it is taken care of before"),
        Verb::Replay { dir, root, checkpoints, own_order } => {
            let checkpoints = checkpoints.or_else(service::set_up_models);
            let report = replay(&dir, &Places { root, checkpoints })?;
            let holds = report.holds();
            if own_order || holds {
                say(&report)?;
                return Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            in_other_orders(&report)
        }
        Verb::Evaluate(args) => {
            say(json(&evaluate(args)?)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Rank(args) => {
            if args.exit_on_stdin_eof {
                end_with_stdin();
            }
            torch_ext::keep_memory();
            let job = Job::load(&args.job)?;
            if args.ranks == 1 {
                train(&job, &Alone, device)?;
            } else if device != Device::Cpu && !Group::HAS_NCCL {
                let what = "ranks on CUDA devices meet by NCCL, and this build has none: build it with \
                            `--features trainer/nccl`";
                return Err(TrainError::Unsupported(what.to_owned()));
            } else {
                let timeout = Duration::from_secs(args.timeout_seconds);
                let store = match args.rank {
                    0 => Store::serve(args.store_port, timeout)?,
                    _ => Store::connect(&args.store_host, args.store_port, timeout)?,
                };
                let RankArgs { rank, ranks, attempt, address, .. } = args;
                let seat = Seat { name: attempt, rank, size: ranks, address, device: device.torch() };
                train(&job, &Group::join(&store, &seat, timeout)?, device)?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Orders of sums other than this processor's own: with the products that MKL computes alike on all processors, with
/// libtorch's own loops for processors without vectors, and with both. They are read when a process begins to compute.
const ORDERS: [&[(&str, &str)]; 3] = [
    &[("MKL_CBWR", "COMPATIBLE")],
    &[("ATEN_CPU_CAPABILITY", "default")],
    &[("MKL_CBWR", "COMPATIBLE"), ("ATEN_CPU_CAPABILITY", "default")],
];

/// Does what this process did once more in each of the other orders, until the record holds in one. What is said is of
/// that one, else of this process, which found `own`.
fn in_other_orders(own: &Report) -> Result<ExitCode, TrainError> {
    let again = |order: &[(&str, &str)]| {
        let mut command = Command::new(env::current_exe()?);
        command.args(env::args_os().skip(1)).arg("--own-order").envs(order.iter().copied());
        command.stderr(Stdio::inherit()).output()
    };
    for order in ORDERS {
        let output =
            again(order).map_err(|source| TrainError::Io { path: "beige-trainer".into(), source })?;
        if output.status.success() {
            let order: Vec<String> = order.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let table = String::from_utf8_lossy(&output.stdout);
            say(format!("{}\nnote: added in the order of {}", table.trim_end(), order.join(" ")))?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    say(own)?;
    say("note: it does not hold in another order of sums either")?;
    Ok(ExitCode::FAILURE)
}

fn evaluate(args: EvaluateArgs) -> Result<Metrics, TrainError> {
    let EvaluateArgs { model, corpus, queries, qrels, sts, pooling, max_tokens } = args;
    let data = EvaluationData { corpus, queries, qrels, sts, split: None };
    let checkpoint = Checkpoint::open(&model, &Overrides { pooling, max_tokens })?;
    match checkpoint.card().kind {
        model::Kind::Embedder => {
            let evaluation = Evaluation::read(&data, &Corpus::default(), Kind::Embedder)?;
            evaluation.measure(&mut Directory::load(&checkpoint, Device::Cpu)?)
        }
        model::Kind::CrossEncoder => {
            let evaluation = Evaluation::read(&data, &Corpus::default(), Kind::Reranker)?;
            evaluation.measure_scorer(&mut CrossEncoder::load(&checkpoint)?)
        }
    }
}

/// Runs the job service.
fn serve(args: ServeArgs, threads: usize) -> ExitCode {
    let served = || -> Result<(), service::Failure> {
        let config = Config::from_args(args, threads)?;
        let device = |error: model::DeviceError| io::Error::other(error.to_string());
        model::prepare(Device::Cpu, threads).map_err(device)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("trainer").build()?;
        let served = runtime.block_on(service::serve(config));
        // What is still running has been given up.
        runtime.shutdown_background();
        served
    };
    match served() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // The last line of a process that failed, for people; where there is no standard error, nobody reads it.
            let _ = writeln!(io::stderr(), "beige-trainer: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Ends this process once whoever started it is gone: nobody would take in what it makes, and another may have begun the
/// same job.
fn end_with_stdin() {
    let read = || {
        let mut ignored = [0; 64];
        while matches!(io::stdin().lock().read(&mut ignored), Ok(read) if read > 0) {}
        model::exit_now(service::TRY_AGAIN)
    };
    // Not joined: it ends with the process. Without it a rank whose trainer dies goes on for a while, to no avail.
    if let Err(error) = thread::Builder::new().name("stdin".to_owned()).spawn(read) {
        tracing::warn!(%error, "standard input is not watched");
    }
}

/// Rank 0 tells of all that happens.
fn train(job: &Job, world: &impl Collective, device: Device) -> Result<(), TrainError> {
    let speaks = world.place().rank == 0;
    let mut failed = None;
    rank::run(job, world, device, |told| {
        if speaks && let Err(error) = json(told).and_then(say) {
            failed.get_or_insert(error);
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn json(value: &impl serde::Serialize) -> Result<String, TrainError> {
    serde_json::to_string(value).map_err(|error| TrainError::Unsupported(error.to_string()))
}

/// A line, seen at once by whoever reads.
fn say(line: impl std::fmt::Display) -> Result<(), TrainError> {
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|source| TrainError::Io { path: PathBuf::from("standard output"), source })
}
