//! Measures what this machine can do at most on a checkpoint's own matrix shapes, as models here run them.
//!
//! `gemm_rate --model DIR [--rows 2048] [--threads N] [--json]` prints, for each kind of number that the processor
//! has instructions for, the rate in GFLOP/s weighted by the operations of each shape, and the operations that one
//! token costs in linear layers.

#![allow(clippy::print_stdout, clippy::cast_precision_loss)] // A program for people; counts are far below 2^53.

use std::path::PathBuf;

use clap::Parser;
use model::{Device, Instructions, Precision, gemm_rate, prepare};
use serde::Deserialize;

/// Repetitions of each product; the best counts.
const REPETITIONS: usize = 12;

#[derive(Parser)]
struct Args {
    /// Directory with a config.json.
    #[arg(long)]
    model: PathBuf,
    /// Tokens of a batch.
    #[arg(long, default_value_t = 2048)]
    rows: i64,
    /// Threads; default: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Config {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let config: Config = serde_json::from_slice(&std::fs::read(args.model.join("config.json"))?)?;
    let threads = args
        .threads
        .map_or_else(std::thread::available_parallelism, |n| n.try_into().map_err(std::io::Error::other))?;
    prepare(Device::Cpu, threads.get())?;
    let Config { hidden_size: hidden, intermediate_size: wide, num_hidden_layers: layers } = config;
    let shapes = [[hidden, 3 * hidden], [hidden, hidden], [hidden, wide], [wide, hidden]];
    let flops_per_token: i64 = shapes.iter().map(|[input, output]| 2 * input * output * layers).sum();
    let instructions = Instructions::detect();
    let mut rates = serde_json::Map::new();
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        if precision == Precision::Bf16 && !instructions.bf16 {
            continue;
        }
        // The rate of the whole is the harmonic mean over shapes, weighted by operations.
        let (mut operations, mut seconds) = (0.0, 0.0);
        for [input, output] in shapes {
            let cost = (2 * args.rows * input * output) as f64;
            operations += cost;
            seconds += cost / gemm_rate(precision, [args.rows, input, output], REPETITIONS)?;
        }
        rates.insert(name.to_owned(), (operations / seconds).into());
    }
    let device = Device::Cpu.describe();
    if args.json {
        let report = serde_json::json!({
            "device": device, "threads": threads, "rows": args.rows,
            "gflops": rates, "flops_per_token": flops_per_token,
        });
        println!("{report}");
    } else {
        println!("{device}, {threads} threads, {} rows", args.rows);
        println!("{:.1} MFLOP per token in linear layers", flops_per_token as f64 / 1e6);
        for (name, rate) in rates {
            println!("{name}: {:.1} GFLOP/s", rate.as_f64().unwrap_or_default());
        }
    }
    Ok(())
}
