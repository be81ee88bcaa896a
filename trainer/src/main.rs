//! `beige-trainer`: one rank of a fine-tuning job, or the replay of a recorded run of the reference.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use model::{Overrides, Pooling};
use torch_ext::{Group, Seat, Store};
use trainer::collective::{Alone, Collective};
use trainer::data::Corpus;
use trainer::evaluate::{Directory, Evaluation};
use trainer::job::{EvaluationData, Job};
use trainer::rank;
use trainer::trace::{Places, replay};

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
    /// Replay a recorded run of FlagEmbedding and print the worst differences; exits 0 when they are allowed
    Replay {
        /// The trace's folder
        dir: PathBuf,
        /// What the trace's model and data are relative to; the folder around it if not given
        #[arg(long)]
        root: Option<PathBuf>,
        /// A directory of checkpoints, in which weights are found by their SHA-256
        #[arg(long, env = "BEIGE_CHECKPOINTS")]
        checkpoints: Option<PathBuf>,
    },
    /// Measure an embedder and print its metrics as JSON
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
    /// What answers what: query, document and grade, with tabs between
    #[arg(long, value_name = "FILE", requires_all = ["corpus", "queries"])]
    qrels: Option<PathBuf>,
    /// Pairs of texts with scores: score, text and text, with tabs between
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
    /// Seconds that a rank waits for the others
    #[arg(long, default_value_t = 1800)]
    timeout_seconds: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    // Stdout is for progress and answers.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    model::prepare(model::Device::Cpu, args.threads)?;
    match args.verb {
        Verb::Replay { dir, root, checkpoints } => {
            let report = replay(&dir, &Places { root, checkpoints })?;
            say(&report)?;
            Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Evaluate(EvaluateArgs { model, corpus, queries, qrels, sts, pooling, max_tokens }) => {
            let data = EvaluationData { corpus, queries, qrels, sts, split: None };
            let evaluation = Evaluation::read(&data, &Corpus::default())?;
            let mut embedder = Directory::open(&model, &Overrides { pooling, max_tokens })?;
            say(serde_json::to_string(&evaluation.measure(&mut embedder)?)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Rank(args) => {
            let job = Job::load(&args.job)?;
            if args.ranks == 1 {
                train(&job, &Alone)?;
            } else {
                let timeout = Duration::from_secs(args.timeout_seconds);
                let store = match args.rank {
                    0 => Store::serve(args.store_port, timeout)?,
                    _ => Store::connect(&args.store_host, args.store_port, timeout)?,
                };
                let RankArgs { rank, ranks, attempt, address, .. } = args;
                let seat = Seat { name: attempt, rank, size: ranks, address };
                train(&job, &Group::join(&store, &seat, timeout)?)?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Rank 0 tells of all that happens.
fn train(job: &Job, world: &impl Collective) -> anyhow::Result<()> {
    let speaks = world.place().rank == 0;
    let mut failed = None;
    rank::run(job, world, |told| {
        if speaks && let Err(error) = serde_json::to_string(told).map_err(Into::into).and_then(say) {
            failed.get_or_insert(error);
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// A line, seen at once by whoever reads.
fn say(line: impl std::fmt::Display) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
