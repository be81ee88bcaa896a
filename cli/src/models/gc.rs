//! `beige models gc`: forgets what nothing uses.

use clap::Args;
use proto::v1::CollectRequest;
use serde_json::json;

use super::objects;
use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

/// Forget versions that nothing uses, and delete what only they had in the store.
///
/// What a model's name means, meant before or is about to mean stays, and so does what is pinned or still loaded. Files
/// younger than the gateways' `--collect-grace`, an hour unless they say otherwise, stay in the store.
#[derive(Args, Debug)]
pub(super) struct CollectArgs {
    /// The model [default: all]
    model: Option<String>,
    /// Versions of each model to keep beside those in use, the newest first [default: 3]
    #[arg(long, value_name = "N")]
    keep: Option<u32>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: CollectArgs, remote: &Remote) -> Result<(), Failure> {
    let CollectArgs { model, keep, dry_run } = args;
    let gateway = remote.connect().await?;
    let asked = CollectRequest { model: model.unwrap_or_default(), keep, dry_run };
    // It lists the whole store, and may wait for a publication: no single call's deadline bounds it.
    let collected = gateway.models().collect(gateway.unhurried(asked)).await?.into_inner();
    if remote.json {
        return print::json(&json!({
            "dry_run": dry_run,
            "bytes": collected.bytes,
            "versions": collected.versions.iter().map(objects::version).collect::<Vec<_>>(),
        }));
    }
    for version in &collected.versions {
        let digest = version.checkpoint.as_ref().map(|it| it.digest.as_str()).unwrap_or_default();
        let model = print::printable(&version.model, 60);
        print::line(format_args!(
            "{model}@{}  {}",
            print::short(digest),
            print::ago(version.created_unix_ms)
        ))?;
    }
    let (forgotten, freed) =
        if dry_run { ("would be forgotten", "would be free") } else { ("forgotten", "freed") };
    let versions = print::count(collected.versions.len() as u64, "version");
    print::line(format_args!("{versions} {forgotten}, {} {freed}", print::bytes(collected.bytes)))
}
