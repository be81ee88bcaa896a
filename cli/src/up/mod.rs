//! `beige up`: a whole cluster on this machine, of the processes that run in production.
//!
//! This process is their supervisor and nothing else: it starts etcd, then the gateways and the workers,
//! says when all are ready, starts again what dies, and ends them in the order in which they need each other.

mod child;
mod http;
mod logs;
mod plan;
mod ports;
mod restarts;
mod signals;
mod spec;
mod supervisor;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time;

use crate::failure::Failure;
use crate::print;
use crate::remote::Gateway;
use crate::target::{Access, Target};

use child::GaveUp;
use plan::Plan;
use signals::Signals;
use spec::{Device, ModelSpec};
use supervisor::{Role, Supervisor};

/// How long to wait, when all processes are ready, for the gateway to have heard of every worker.
const SETTLE: Duration = Duration::from_secs(10);

const AFTER_HELP: &str = "\
Starts etcd, a gateway and the workers, waits until they are ready and prints their addresses. Ctrl-C (or \
SIGTERM) drains the gateways, then the workers, then etcd; a second one kills them at once. A process that \
dies is started again; one that cannot start ends everything, with exit code 1 and its last lines.

A model is a directory in Hugging Face layout, `[NAME=]DIR[,pooling=cls|mean|last][,max_tokens=N]`; its name \
is the directory's unless one is given. Without --model it is the default model that set-up has fetched.

Fine-tuning jobs (`beige train`) run on a trainer, which reads below --data-root and the models' directories.

etcd's data, published checkpoints, the workers' cache of them and what jobs write are in a temporary \
directory that is removed at the end, unless --data names one to keep. --store puts checkpoints elsewhere: file:///DIR, \
s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.

Examples:
  beige up
  beige up --model ./bge-base-en-v1.5 --model rerank=./bge-reranker-base,max_tokens=512
  beige up --workers 1 --device cuda:0 --dtype bf16 --listen 0.0.0.0:8080
  beige up --json --log-dir /tmp/beige-logs";

/// Run a whole cluster on this machine: etcd, gateways, workers, a trainer.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct UpArgs {
    /// A model to serve; repeat for several
    #[arg(long = "model", value_name = "SPEC")]
    models: Vec<ModelSpec>,
    /// Workers to run; all serve all models
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Directory that fine-tuning jobs read from; what they name is relative to it
    #[arg(long, default_value = ".", value_name = "DIR")]
    data_root: PathBuf,
    /// Run no trainer: jobs cannot be submitted
    #[arg(long)]
    no_trainer: bool,
    /// Gateways to run; one of them leads
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    gateways: u16,
    /// Where workers compute: `auto`, `cpu` or `cuda:K`; where it is repeated, workers take turns
    #[arg(long = "device", default_value = "auto", value_name = "DEVICE")]
    devices: Vec<Device>,
    /// Arithmetic of the workers
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// Threads of each worker; by default the processor's cores are shared out
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Where the first gateway listens
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    listen: SocketAddr,
    /// Where the first gateway's health and metrics are
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "ADDR")]
    admin: SocketAddr,
    /// Keep etcd's data, published checkpoints and the cache in this directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where published checkpoints are; by default in the data's directory
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Write each process's log to a file in this directory instead of standard error
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// How the gateway and the workers write their logs
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// How long everything may take to end before it is killed, seconds; the gateway gives running calls 30
    #[arg(long, default_value_t = 40, value_name = "SECONDS")]
    grace: u64,
    /// Print the addresses as one line of JSON
    #[arg(long)]
    json: bool,
}

/// Arithmetic of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dtype {
    /// What suits the device
    Auto,
    /// Single precision
    F32,
    /// bfloat16
    Bf16,
    /// Half precision
    F16,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Human,
    /// One JSON object per line
    Json,
}

/// Why a cluster ends.
enum End {
    /// A signal asked for it.
    Asked,
    /// A process cannot be kept running.
    GaveUp(GaveUp),
    /// It did not come up.
    Failed(Failure),
}

/// Runs the cluster until a signal comes or a process is beyond help.
pub(crate) async fn run(args: UpArgs) -> Result<(), Failure> {
    let plan = Plan::from_args(&args)?;
    let mut signals = Signals::listen()?;
    if !plan.json {
        let names: Vec<&str> = plan.models.iter().map(|model| model.name.as_str()).collect();
        let workers = print::count(plan.workers.len() as u64, "worker");
        let gateways = print::count(plan.gateways.len() as u64, "gateway");
        print::note(format_args!("starting etcd, {gateways} and {workers} for {}", names.join(", ")));
    }
    let (mut supervisor, mut beyond_help) = Supervisor::new(args.log_dir.clone())?;
    let end = serve(&plan, &mut supervisor, (&mut signals, &mut beyond_help)).await;
    match &end {
        End::Asked => {
            print::note("stopping: the trainer and the gateways first, then the workers, then etcd");
        }
        End::GaveUp(_) | End::Failed(_) => {}
    }
    let orderly = supervisor.stop(&mut signals, plan.grace).await;
    match end {
        End::Asked if orderly => Ok(()),
        End::Asked => {
            Err(Failure::Local(anyhow::anyhow!("not every process ended by itself; the rest was killed")))
        }
        End::GaveUp(gave_up) => Err(gave_up.into_failure()),
        End::Failed(failure) => Err(failure),
    }
}

async fn serve(
    plan: &Plan,
    supervisor: &mut Supervisor,
    (signals, beyond_help): (&mut Signals, &mut mpsc::Receiver<GaveUp>),
) -> End {
    let up = async {
        match bring_up(plan, supervisor).await {
            Ok(()) => std::future::pending::<Infallible>().await,
            Err(failure) => return failure,
        };
        unreachable!("what is pending does not end")
    };
    tokio::select! {
        biased;
        Some(gave_up) = beyond_help.recv() => End::GaveUp(gave_up),
        () = signals.next() => End::Asked,
        failure = up => End::Failed(failure),
    }
}

async fn bring_up(plan: &Plan, supervisor: &mut Supervisor) -> Result<(), Failure> {
    supervisor.start(Role::Etcd, plan.etcd())?;
    supervisor.all_ready().await;
    for number in 0..plan.gateways.len() {
        supervisor.start(Role::Gateway, plan.gateway(number))?;
    }
    for number in 0..plan.workers.len() {
        supervisor.start(Role::Worker, plan.worker(number))?;
    }
    if let Some(trainer) = plan.trainer() {
        supervisor.start(Role::Trainer, trainer)?;
    }
    supervisor.all_ready().await;
    let models = settled_models(plan).await?;
    match announce(plan, &models) {
        // That nobody reads the addresses is no reason to end what serves at them.
        Err(Failure::ReaderGone) => Ok(()),
        announced => announced,
    }
}

/// The models' names, when every worker is known to serve them or waiting any longer is pointless.
async fn settled_models(plan: &Plan) -> Result<Vec<String>, Failure> {
    let target: Target =
        ports::reachable(plan.gateways[0].listen).to_string().parse().map_err(Failure::Usage)?;
    let gateway = Gateway::connect(&target, &Access::default(), SETTLE).await?;
    let deadline = time::Instant::now() + SETTLE;
    loop {
        let models = gateway.list_models().await?;
        let ready = |model: &proto::v1::Model| {
            let workers = model.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.ready_workers);
            usize::try_from(workers).is_ok_and(|workers| workers >= plan.workers.len())
        };
        let all = models.len() >= plan.models.len() && models.iter().all(ready);
        if all || time::Instant::now() > deadline {
            return Ok(models.into_iter().map(|model| model.name).collect());
        }
        time::sleep(Duration::from_millis(50)).await;
    }
}

fn announce(plan: &Plan, models: &[String]) -> Result<(), Failure> {
    let gateways: Vec<_> = plan
        .gateways
        .iter()
        .map(|gateway| (&gateway.id, ports::reachable(gateway.listen), ports::reachable(gateway.admin)))
        .collect();
    if plan.json {
        let (_, address, admin) = gateways[0];
        let all: Vec<_> = gateways
            .iter()
            .map(|(id, address, admin)| {
                json!({ "id": id, "address": address.to_string(), "admin": admin.to_string() })
            })
            .collect();
        let workers: Vec<_> = plan
            .workers
            .iter()
            .map(|worker| json!({ "id": worker.id, "admin": worker.admin.to_string() }))
            .collect();
        return print::json(&json!({
            "address": address.to_string(),
            "admin": admin.to_string(),
            "gateways": all,
            "workers": workers,
            "models": models,
            "etcd": plan.etcd_url(),
            "store": plan.store,
        }));
    }
    print::line(format_args!("Beige is ready and serves {}.", models.join(", ")))?;
    for (id, address, admin) in &gateways {
        print::line(format_args!("  gRPC      {address}"))?;
        print::line(format_args!("  {id:<9} http://{admin} (livez, readyz, metrics)"))?;
    }
    for worker in &plan.workers {
        print::line(format_args!("  {:<9} http://{}", worker.id, worker.admin))?;
    }
    print::line(format_args!("  etcd      {}", plan.etcd_url()))?;
    print::line(format_args!("  store     {}", plan.store))?;
    print::line("Ctrl-C drains and stops all of it.")
}
