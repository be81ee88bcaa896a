//! Measures an encoder alone: no scheduler and no network. Compare with `gemm_rate`.
//!
//! `encode_rate --model DIR --texts FILE.jsonl [--batch-tokens 2048] [--seconds 10] [--max-tokens N]` prints load
//! times, tokens/s and peak memory.

#![allow(clippy::print_stdout, clippy::cast_precision_loss)] // A program for people; counts are far below 2^53.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use model::{Checkpoint, Device, Model, Overrides, Precision, Sequence, Truncation, prepare};

#[derive(Parser)]
struct Args {
    /// Directory of the checkpoint.
    #[arg(long)]
    model: PathBuf,
    /// JSON lines with a field `text`.
    #[arg(long)]
    texts: PathBuf,
    /// Most tokens in a batch.
    #[arg(long, default_value_t = 2048)]
    batch_tokens: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Window in place of the checkpoint's own.
    #[arg(long)]
    max_tokens: Option<usize>,
    /// auto, f32 or bf16.
    #[arg(long, default_value = "auto")]
    dtype: Precision,
    /// Threads; default: all cores.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let threads = args.threads.map_or_else(|| std::thread::available_parallelism().map(Into::into), Ok)?;
    prepare(Device::Cpu, threads)?;

    println!("resident with libtorch alone {}", memory("VmRSS"));
    let overrides = Overrides { max_tokens: args.max_tokens, ..Overrides::default() };
    let (checkpoint, hashing) = timed(|| Checkpoint::open(&args.model, &overrides))?;
    let (tokenizer, reading) = timed(|| checkpoint.tokenizer())?;
    let (model, packing) = timed(|| Model::load(&checkpoint, Device::Cpu, args.dtype))?;
    println!("hashed {hashing:.2?}, tokenizer {reading:.2?}, weights {packing:.2?}");
    println!("resident {}", memory("VmRSS"));

    let texts = std::fs::read_to_string(&args.texts)?;
    let start = Instant::now();
    let encode = |line: &str| -> Result<Sequence, Box<dyn Error>> {
        let text: serde_json::Value = serde_json::from_str(line)?;
        Ok(tokenizer.encode(text["text"].as_str().ok_or("no field text")?, Truncation::End)?)
    };
    let sequences: Vec<_> = texts.lines().map(encode).collect::<Result<_, _>>()?;
    let tokens: usize = sequences.iter().map(Sequence::tokens).sum();
    println!(
        "{} texts, {tokens} tokens; tokenised at {:.0}/s",
        sequences.len(),
        tokens as f64 / start.elapsed().as_secs_f64()
    );

    let batches = batches(&sequences, args.batch_tokens);
    let (start, mut done) = (Instant::now(), 0);
    for batch in batches.iter().cycle() {
        model.run(batch)?;
        done += batch.iter().map(|sequence| sequence.tokens()).sum::<usize>();
        if start.elapsed() > Duration::from_secs(args.seconds) {
            break;
        }
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    println!(
        "{}: {rate:.0} tokens/s in batches of {} tokens, peak {}",
        model.dtype(),
        args.batch_tokens,
        memory("VmHWM")
    );
    Ok(())
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, Duration), E> {
    let start = Instant::now();
    work().map(|done| (done, start.elapsed()))
}

fn batches(sequences: &[Sequence], budget: usize) -> Vec<Vec<&Sequence>> {
    let (mut batches, mut tokens) = (vec![Vec::new()], 0);
    for sequence in sequences {
        tokens += sequence.tokens();
        if tokens > budget && tokens > sequence.tokens() {
            batches.push(Vec::new());
            tokens = sequence.tokens();
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(sequence);
        }
    }
    batches
}

/// A line of `/proc/self/status`.
fn memory(field: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or("unknown").trim().to_owned()
}
