//! `beige models`: which checkpoints there are, which one a name means, and how that is changed.
//!
//! One file per group of verbs. A swap is the cluster's business: what is asked for here goes on when this process is
//! gone, and is only watched.

mod gc;
mod list;
mod objects;
mod pin;
mod plan;
mod promote;
mod publish;
mod show;
mod swap;
mod watch;

use clap::{Args, Subcommand};

use crate::failure::Failure;
use crate::remote::Remote;

const AFTER_HELP: &str = "\
A checkpoint is named by its digest, and a prefix will do where it names one version of the model. What a name means \
is changed by a swap: workers get the new checkpoint ready beside the old one, and then all calls change over at once.

Examples:
  beige models
  beige models ls bge-base
  beige models publish ./bge-base-tuned --alias bge-base --promote
  beige models promote bge-base 5d2fd3 --canary 5
  beige models watch bge-base --follow
  beige models rollback bge-base
  beige models --json | jq -r '.models[].digest'";

/// List the models the cluster serves, or show, publish and change them.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    remote: Remote,
}

/// What to do with models.
#[derive(Debug, Subcommand)]
enum What {
    /// List the models, or what was published of one
    #[command(visible_alias = "list")]
    Ls(list::ListArgs),
    /// Show one model with all its checkpoints, or one checkpoint
    #[command(alias = "get")]
    Show(show::ShowArgs),
    /// Upload a checkpoint; a worker tries it before anybody can see it
    Publish(Box<publish::PublishArgs>),
    /// Have a model's name mean another checkpoint
    Promote(Box<promote::PromoteArgs>),
    /// Have a model's name mean what it meant before, at once
    Rollback(promote::ModelArgs),
    /// Let go of the checkpoint that a model's name meant before
    Retire(promote::RetireArgs),
    /// Keep a checkpoint loaded and stored
    Pin(pin::PinArgs),
    /// No longer keep it
    Unpin(pin::PinArgs),
    /// Forget versions that nothing uses, and delete their files
    Gc(gc::CollectArgs),
    /// Watch a swap: which workers download, verify, load, warm up, are ready
    Watch(watch::WatchArgs),
}

/// Does it.
pub(crate) async fn run(args: ModelsArgs) -> Result<(), Failure> {
    let ModelsArgs { what, remote } = args;
    match what.unwrap_or_else(|| What::Ls(list::ListArgs::default())) {
        What::Ls(args) => list::run(args, &remote).await,
        What::Show(args) => show::run(args, &remote).await,
        What::Publish(args) => publish::run(*args, &remote).await,
        What::Promote(args) => promote::promote(*args, &remote).await,
        What::Rollback(args) => promote::rollback(args, &remote).await,
        What::Retire(args) => promote::retire(args, &remote).await,
        What::Pin(args) => pin::run(args, pin::Wish::Keep, &remote).await,
        What::Unpin(args) => pin::run(args, pin::Wish::LetGo, &remote).await,
        What::Gc(args) => gc::run(args, &remote).await,
        What::Watch(args) => watch::run(args, &remote).await,
    }
}
