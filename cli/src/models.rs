//! `beige models`: what is served, and by which checkpoints.

use clap::{Args, Subcommand};
use proto::v1::{Checkpoint, GetModelRequest, Model, ModelKind};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

const AFTER_HELP: &str = "\
Examples:
  beige models
  beige models get all-MiniLM-L6-v2
  beige models --json | jq -r '.models[].digest'";

/// List the models the cluster serves, or show one.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    remote: Remote,
}

/// Which models to show.
#[derive(Debug, Subcommand)]
enum What {
    /// Show one model with all its checkpoints
    Get {
        /// Its name
        #[arg(value_name = "MODEL")]
        name: String,
    },
}

/// Prints the models.
pub(crate) async fn run(args: ModelsArgs) -> Result<(), Failure> {
    match args.what {
        Some(What::Get { name }) => get(name, &args.remote).await,
        None => list(&args.remote).await,
    }
}

async fn list(remote: &Remote) -> Result<(), Failure> {
    let models = remote.connect().await?.list_models().await?;
    if remote.json {
        return print::json(&json!({ "models": models.iter().map(object).collect::<Vec<_>>() }));
    }
    let header =
        ["MODEL", "KIND", "DIGEST", "EPOCH", "DIMENSIONS", "MAX TOKENS", "POOLING", "DTYPE", "READY"];
    let mut table = print::table(&header, &[3, 4, 5, 8]);
    for model in &models {
        let checkpoint = model.checkpoint.clone().unwrap_or_default();
        table.add_row([
            print::printable(&model.name, 60),
            kind(checkpoint.kind()).to_owned(),
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

async fn get(name: String, remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    let model = gateway.models().get(gateway.request(GetModelRequest { name })).await?.into_inner();
    if remote.json {
        return print::json(&object(&model));
    }
    print::line(format_args!("{}, epoch {}", print::printable(&model.name, 80), model.epoch))?;
    model.checkpoint.iter().chain(&model.others).try_for_each(show)
}

fn show(checkpoint: &Checkpoint) -> Result<(), Failure> {
    let pooling = if checkpoint.pooling.is_empty() { "-" } else { &checkpoint.pooling };
    let normalize = if checkpoint.normalize { "yes" } else { "no" };
    let facts = [
        ("digest", checkpoint.digest.clone()),
        ("index space", checkpoint.index_space.clone()),
        ("kind", kind(checkpoint.kind()).to_owned()),
        ("architecture", checkpoint.architecture.clone()),
        ("dimensions", or_dash(checkpoint.dimensions)),
        ("max tokens", checkpoint.max_tokens.to_string()),
        ("pooling", pooling.to_owned()),
        ("normalizes", normalize.to_owned()),
        ("dtypes", checkpoint.dtypes.join(", ")),
        ("ready workers", checkpoint.ready_workers.to_string()),
    ];
    print::line("")?;
    facts.iter().try_for_each(|(name, fact)| {
        print::line(format_args!("  {name:<14} {}", print::printable(fact, 100)))
    })
}

fn object(model: &Model) -> Value {
    let mut object = model.checkpoint.as_ref().map_or_else(|| json!({}), checkpoint_object);
    object["name"] = json!(model.name);
    object["epoch"] = json!(model.epoch);
    object["others"] = model.others.iter().map(checkpoint_object).collect();
    object
}

fn checkpoint_object(checkpoint: &Checkpoint) -> Value {
    json!({
        "digest": checkpoint.digest,
        "index_space": checkpoint.index_space,
        "kind": kind(checkpoint.kind()),
        "dimensions": checkpoint.dimensions,
        "max_tokens": checkpoint.max_tokens,
        "pooling": checkpoint.pooling,
        "normalize": checkpoint.normalize,
        "architecture": checkpoint.architecture,
        "dtypes": checkpoint.dtypes,
        "ready_workers": checkpoint.ready_workers,
    })
}

fn kind(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::Unspecified => "unknown",
        ModelKind::Embedder => "embedder",
        ModelKind::CrossEncoder => "cross-encoder",
    }
}

fn or_dash(number: u32) -> String {
    if number == 0 { "-".to_owned() } else { number.to_string() }
}
