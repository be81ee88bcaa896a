//! `beige models pin` and `unpin`: what is kept whatever happens.

use clap::Args;
use proto::v1::PinRequest;

use super::objects;
use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

/// Keep a checkpoint loaded and stored, or no longer.
#[derive(Args, Debug)]
pub(super) struct PinArgs {
    /// The model
    model: String,
    /// The checkpoint; the beginning of its digest will do
    digest: String,
}

/// What is to become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Keep,
    LetGo,
}

pub(super) async fn run(args: PinArgs, wish: Wish, remote: &Remote) -> Result<(), Failure> {
    let PinArgs { model, digest } = args;
    let gateway = remote.connect().await?;
    let asked = gateway.request(PinRequest { model, digest, unpin: wish == Wish::LetGo });
    let version = gateway.models().pin(asked).await?.into_inner();
    if remote.json {
        return print::json(&objects::version(&version));
    }
    let model = print::printable(&version.model, 60);
    let digest = version.checkpoint.map(|checkpoint| checkpoint.digest).unwrap_or_default();
    let what = match wish {
        Wish::Keep => "is kept loaded and stored",
        Wish::LetGo => "is no longer kept",
    };
    print::line(format_args!("{model}@{} {what}", print::short(&digest)))
}
