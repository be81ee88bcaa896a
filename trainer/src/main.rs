//! `beige-trainer`: replays recorded runs of the reference.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
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
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    model::prepare(model::Device::Cpu, args.threads)?;
    match args.verb {
        Verb::Replay { dir, root, checkpoints } => {
            let report = replay(&dir, &Places { root, checkpoints })?;
            #[allow(clippy::print_stdout)] // The answer.
            {
                print!("{report}");
            }
            Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}
