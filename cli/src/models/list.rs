//! `beige models ls`: the models, or what was published of one.

use clap::Args;
use proto::v1::{ListVersionsRequest, Version};
use serde_json::json;

use super::objects;
use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

/// List the models, or what was published of one.
#[derive(Args, Debug, Default)]
pub(super) struct ListArgs {
    /// The model whose versions to list, the newest first
    #[arg(value_name = "MODEL")]
    model: Option<String>,
}

pub(super) async fn run(args: ListArgs, remote: &Remote) -> Result<(), Failure> {
    match args.model {
        Some(model) => versions(model, remote).await,
        None => models(remote).await,
    }
}

async fn models(remote: &Remote) -> Result<(), Failure> {
    let models = remote.connect().await?.list_models().await?;
    if remote.json {
        return print::json(&json!({ "models": models.iter().map(objects::model).collect::<Vec<_>>() }));
    }
    let header =
        ["MODEL", "KIND", "DIGEST", "EPOCH", "DIMENSIONS", "MAX TOKENS", "POOLING", "DTYPE", "READY"];
    let mut table = print::table(&header, &[3, 4, 5, 8]);
    for model in &models {
        let checkpoint = model.checkpoint.clone().unwrap_or_default();
        table.add_row([
            print::printable(&model.name, 60),
            objects::kind(checkpoint.kind()).to_owned(),
            print::short(&checkpoint.digest).to_owned(),
            model.epoch.to_string(),
            or_dash(checkpoint.dimensions),
            checkpoint.max_tokens.to_string(),
            if checkpoint.pooling.is_empty() { "-".to_owned() } else { checkpoint.pooling.clone() },
            checkpoint.dtypes.join(","),
            checkpoint.ready_workers.to_string(),
        ]);
    }
    print::rows(&table)
}

async fn versions(model: String, remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    let asked = gateway.request(ListVersionsRequest { model });
    let versions = gateway.models().list_versions(asked).await?.into_inner().versions;
    if remote.json {
        return print::json(
            &json!({ "versions": versions.iter().map(objects::version).collect::<Vec<_>>() }),
        );
    }
    let header = ["MODEL", "DIGEST", "ROLE", "PUBLISHED", "SIZE", "READY", "PINNED", "PARENT", "EVALUATION"];
    let mut table = print::table(&header, &[4, 5]);
    for version in &versions {
        table.add_row(row(version));
    }
    print::rows(&table)
}

fn row(version: &Version) -> [String; 9] {
    let checkpoint = version.checkpoint.clone().unwrap_or_default();
    let bytes = version.files.iter().map(|file| file.size).sum();
    let metrics: Vec<_> =
        version.evaluation.iter().map(|metric| format!("{} {:.4}", metric.name, metric.value)).collect();
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { print::printable(text, 60) };
    [
        print::printable(&version.model, 60),
        print::short(&checkpoint.digest).to_owned(),
        objects::role(version.role()).to_owned(),
        print::ago(version.created_unix_ms),
        if version.stored { print::bytes(bytes) } else { "not stored".to_owned() },
        checkpoint.ready_workers.to_string(),
        if version.pinned { "yes" } else { "no" }.to_owned(),
        dash(print::short(&version.parent)),
        dash(&metrics.join(", ")),
    ]
}

pub(super) fn or_dash(number: u32) -> String {
    if number == 0 { "-".to_owned() } else { number.to_string() }
}
