//! `beige models show`: one model with all its checkpoints, or one checkpoint.

use clap::Args;
use proto::v1::{Checkpoint, GetModelRequest, GetSwapRequest, ListVersionsRequest, Swap, Version};
use tonic::Code;

use super::list::or_dash;
use super::{objects, swap};
use crate::failure::Failure;
use crate::print;
use crate::remote::{Gateway, Remote};

/// Show one model with all its checkpoints, or one checkpoint.
#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// Its name; with `@DIGEST` behind it, one version of it
    #[arg(value_name = "MODEL[@DIGEST]")]
    name: String,
}

pub(super) async fn run(args: ShowArgs, remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    match args.name.split_once('@') {
        Some((model, digest)) => version(&gateway, model, digest, remote).await,
        None => model(&gateway, args.name, remote).await,
    }
}

async fn model(gateway: &Gateway, name: String, remote: &Remote) -> Result<(), Failure> {
    let asked = gateway.request(GetModelRequest { name: name.clone() });
    let model = gateway.models().get(asked).await?.into_inner();
    if remote.json {
        return print::json(&objects::model(&model));
    }
    print::line(format_args!("{}, epoch {}", print::printable(&model.name, 80), model.epoch))?;
    for checkpoint in model.checkpoint.iter().chain(&model.others) {
        print::line("")?;
        facts(&of_checkpoint(checkpoint))?;
    }
    match last_swap(gateway, name).await? {
        None => Ok(()),
        Some(last) => {
            print::line("")?;
            swap::story(&last)
        }
    }
}

/// A model's last swap, if there was one and this server knows of swaps.
async fn last_swap(gateway: &Gateway, model: String) -> Result<Option<Swap>, Failure> {
    match gateway.models().get_swap(gateway.request(GetSwapRequest { model })).await {
        Ok(swap) => Ok(Some(swap.into_inner())),
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
        Err(status) => Err(status.into()),
    }
}

async fn version(gateway: &Gateway, model: &str, digest: &str, remote: &Remote) -> Result<(), Failure> {
    let asked = gateway.request(ListVersionsRequest { model: model.to_owned() });
    let versions = gateway.models().list_versions(asked).await?.into_inner().versions;
    let version = named(&versions, model, digest)?;
    if remote.json {
        return print::json(&objects::version(version));
    }
    print::line(format_args!("{}, {}", print::printable(model, 80), objects::role(version.role())))?;
    print::line("")?;
    let mut shown = version.checkpoint.as_ref().map(of_checkpoint).unwrap_or_default();
    shown.extend(of_version(version));
    facts(&shown)?;
    print::line("")?;
    for file in &version.files {
        let path = print::printable(&file.path, 80);
        print::line(format_args!(
            "  {:>9}  {}  {path}",
            print::bytes(file.size),
            print::short(&file.sha256)
        ))?;
    }
    Ok(())
}

/// The version that a digest or the beginning of one names.
fn named<'a>(versions: &'a [Version], model: &str, digest: &str) -> Result<&'a Version, Failure> {
    let is_it = |version: &&Version| {
        version.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.digest.starts_with(digest))
    };
    let found: Vec<_> = versions.iter().filter(is_it).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::Refused(format!("no version of {model} has a digest that begins with {digest}"))),
        many => {
            let count = many.len();
            Err(Failure::Refused(format!(
                "{count} versions of {model} have digests that begin with {digest}"
            )))
        }
    }
}

fn of_checkpoint(checkpoint: &Checkpoint) -> Vec<(&'static str, String)> {
    let pooling = if checkpoint.pooling.is_empty() { "-" } else { &checkpoint.pooling };
    let normalize = if checkpoint.normalize { "yes" } else { "no" };
    vec![
        ("digest", checkpoint.digest.clone()),
        ("index space", checkpoint.index_space.clone()),
        ("kind", objects::kind(checkpoint.kind()).to_owned()),
        ("architecture", checkpoint.architecture.clone()),
        ("dimensions", or_dash(checkpoint.dimensions)),
        ("max tokens", checkpoint.max_tokens.to_string()),
        ("pooling", pooling.to_owned()),
        ("normalizes", normalize.to_owned()),
        ("dtypes", checkpoint.dtypes.join(", ")),
        ("ready workers", checkpoint.ready_workers.to_string()),
    ]
}

fn of_version(version: &Version) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("published", print::ago(version.created_unix_ms)),
        (
            "stored",
            if version.stored { "yes" } else { "no: only workers that have its directory" }.to_owned(),
        ),
        ("pinned", if version.pinned { "yes" } else { "no" }.to_owned()),
        ("tokenizer", version.tokenizer_sha256.clone()),
        ("golden inputs", golden(version)),
    ];
    let known = [("parent", &version.parent), ("job", &version.job)];
    facts.extend(
        known.into_iter().filter(|(_, text)| !text.is_empty()).map(|(name, text)| (name, text.clone())),
    );
    facts.extend(
        version
            .evaluation
            .iter()
            .map(|metric| ("evaluation", format!("{} {:.4}", metric.name, metric.value))),
    );
    facts
}

/// How many there are, and whose vectors workers are held to.
fn golden(version: &Version) -> String {
    let count = version.golden_inputs;
    match objects::golden_from(version.golden_from()) {
        Some(source) => format!("{count}, from the {source}"),
        None => count.to_string(),
    }
}

fn facts(facts: &[(&str, String)]) -> Result<(), Failure> {
    facts.iter().try_for_each(|(name, fact)| {
        print::line(format_args!("  {name:<14} {}", print::printable(fact, 100)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_named_by_the_beginning_of_its_digest() {
        let version = |digest: &str| Version {
            checkpoint: Some(Checkpoint { digest: digest.into(), ..Checkpoint::default() }),
            ..Version::default()
        };
        let versions = [version("abc1"), version("abd2"), version("e3")];
        let found = |digest| match named(&versions, "m", digest) {
            Ok(version) => version.checkpoint.clone().unwrap().digest,
            Err(failure) => failure.to_string(),
        };
        assert_eq!(found("abc"), "abc1");
        assert_eq!(found("e3"), "e3");
        assert_eq!(found("ab"), "2 versions of m have digests that begin with ab");
        assert_eq!(found("f"), "no version of m has a digest that begins with f");
    }
}
