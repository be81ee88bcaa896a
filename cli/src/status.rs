//! `beige status`: the workers as the gateway sees them.

use clap::Args;
use proto::v1::{ListWorkersRequest, LoadedModel, Worker, WorkerState};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

const AFTER_HELP: &str = "\
Examples:
  beige status
  beige status --target http://gateway:8080 --json
  watch beige status";

/// Show the workers: state, device, models, queue, speed.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    remote: Remote,
}

/// Prints a table of workers.
pub(crate) async fn run(args: StatusArgs) -> Result<(), Failure> {
    let gateway = args.remote.connect().await?;
    let answer = gateway.cluster().list_workers(gateway.request(ListWorkersRequest {})).await?;
    let workers = answer.into_inner().workers;
    if args.remote.json {
        return print::json(&json!({ "workers": workers.iter().map(object).collect::<Vec<_>>() }));
    }
    let header = ["WORKER", "ADDRESS", "STATE", "DEVICE", "MODELS", "QUEUE", "TOKENS/S", "TOKENS", "MEMORY"];
    let mut table = print::table(&header, &[5, 6, 7, 8]);
    for worker in &workers {
        table.add_row([
            print::printable(&worker.id, 40),
            print::printable(&worker.address, 40),
            state(worker.state()).to_owned(),
            print::printable(&worker.device, 40),
            worker.models.iter().map(loaded).collect::<Vec<_>>().join("\n"),
            print::thousands(worker.queued_tokens),
            print::rate(worker.tokens_per_second),
            print::thousands(worker.total_tokens),
            print::bytes(worker.memory_bytes),
        ]);
    }
    print::rows(&table)
}

/// `name@digest (dtype)`.
fn loaded(model: &LoadedModel) -> String {
    let name = print::printable(&model.name, 40);
    format!("{name}@{} ({})", print::short(&model.digest), print::printable(&model.dtype, 10))
}

fn object(worker: &Worker) -> Value {
    let models = worker
        .models
        .iter()
        .map(|model| json!({ "name": model.name, "digest": model.digest, "dtype": model.dtype }));
    json!({
        "id": worker.id,
        "address": worker.address,
        "state": state(worker.state()),
        "device": worker.device,
        "queued_tokens": worker.queued_tokens,
        "tokens_per_second": worker.tokens_per_second,
        "total_tokens": worker.total_tokens,
        "memory_bytes": worker.memory_bytes,
        "models": models.collect::<Vec<_>>(),
    })
}

fn state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Unspecified => "unknown",
        WorkerState::Serving => "serving",
        WorkerState::Draining => "draining",
        WorkerState::Unreachable => "unreachable",
    }
}
