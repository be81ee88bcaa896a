//! `beige`: embeds, reranks, looks at a cluster, and runs a whole one on this machine.
//!
//! A client like any other: it speaks `beige.v1` and nothing else, and it links neither the gateway nor the
//! worker. One file per verb; this one only picks it.

mod args;
mod bench;
mod config;
mod embed;
mod failure;
mod keys;
mod meter;
mod models;
mod print;
mod remote;
mod rerank;
mod status;
mod target;
mod texts;
mod tokens;
mod train;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Beige, Verb};
use failure::Failure;

fn main() -> ExitCode {
    match run(Beige::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// One thread carries every verb: `up` must start its children from a thread that lives as long as the
/// process, and `bench` must leave the machine to what it measures.
fn run(verb: Verb) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    runtime.block_on(async {
        match verb {
            Verb::Up(args) => up::run(args).await,
            Verb::Embed(args) => embed::run(args).await,
            Verb::Rerank(args) => rerank::run(args).await,
            Verb::Models(args) => models::run(args).await,
            Verb::Train(args) => train::run(args).await,
            Verb::Keys(args) => keys::run(args),
            Verb::Status(args) => status::run(args).await,
            Verb::Tokens(args) => tokens::run(args).await,
            Verb::Bench(args) => bench::run(args).await,
        }
    })
}
