//! `beige models promote`, `rollback` and `retire`: what a name means.

use clap::Args;
use proto::v1::{PromoteRequest, RetireRequest, RollbackRequest, Swap};

use super::plan::PlanArgs;
use super::{objects, swap, watch};
use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

/// Have a model's name mean another checkpoint.
///
/// Waits until it does, and says why where it does not come to that. The swap goes on without this process.
#[derive(Args, Debug)]
pub(super) struct PromoteArgs {
    /// The model
    model: String,
    /// The checkpoint; the beginning of its digest will do
    digest: String,
    #[command(flatten)]
    plan: PlanArgs,
    /// Only ask for it, and do not wait
    #[arg(long)]
    detach: bool,
}

/// A model.
#[derive(Args, Debug)]
pub(super) struct ModelArgs {
    /// The model
    model: String,
}

/// Let go of the checkpoint that a model's name meant before, once no call uses it.
#[derive(Args, Debug)]
pub(super) struct RetireArgs {
    /// The model
    model: String,
    /// The checkpoint [default: the one that the name meant before]
    digest: Option<String>,
}

pub(super) async fn promote(args: PromoteArgs, remote: &Remote) -> Result<(), Failure> {
    let PromoteArgs { model, digest, plan, detach } = args;
    let gateway = remote.connect().await?;
    let asked = PromoteRequest { model, digest, plan: Some(plan.to_plan()) };
    let begun = gateway.models().promote(gateway.request(asked)).await?.into_inner();
    if detach {
        return told(&begun, remote);
    }
    let ended = watch::until_decided(&gateway, begun, remote).await?;
    end(&ended, remote)
}

pub(super) async fn rollback(args: ModelArgs, remote: &Remote) -> Result<(), Failure> {
    let ModelArgs { model } = args;
    let gateway = remote.connect().await?;
    let swap = gateway.models().rollback(gateway.request(RollbackRequest { model })).await?.into_inner();
    told(&swap, remote)
}

pub(super) async fn retire(args: RetireArgs, remote: &Remote) -> Result<(), Failure> {
    let RetireArgs { model, digest } = args;
    let gateway = remote.connect().await?;
    let asked = RetireRequest { model, digest: digest.unwrap_or_default() };
    let swap = gateway.models().retire(gateway.request(asked)).await?.into_inner();
    told(&swap, remote)
}

/// Shows a swap as it is now.
fn told(swap: &Swap, remote: &Remote) -> Result<(), Failure> {
    if remote.json {
        return print::json(&objects::swap(swap));
    }
    print::line(swap::headline(swap))
}

/// Shows how a swap ended.
pub(super) fn end(ended: &Swap, remote: &Remote) -> Result<(), Failure> {
    if remote.json {
        print::json(&objects::swap(ended))?;
    }
    let conclusion = swap::conclusion(ended)?;
    if remote.json { Ok(()) } else { print::line(conclusion) }
}
