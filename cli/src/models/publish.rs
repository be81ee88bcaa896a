//! `beige models publish`: a directory becomes a version of a model.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use manifest::ManifestFile;
use proto::v1::{
    CheckpointFile, GetSwapRequest, GoldenSample, GoldenSource, Metric, Preparation, PublishBegin, Stage,
    Swap, Version,
};
use publisher::{Cut, News, Outgoing, persist};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task;
use tonic::Status;

use super::plan::PlanArgs;
use super::{objects, swap, watch};
use crate::failure::{Failure, waiting};
use crate::meter::Meter;
use crate::print;
use crate::remote::{Gateway, Remote};

/// Upload a checkpoint; a worker tries it before anybody can see it.
///
/// Sends the files that loaders read, and of those only what the store does not have. Where it is cut off, the same
/// command goes on from there.
#[derive(Args, Debug)]
pub(super) struct PublishArgs {
    /// The checkpoint, in the layout of Hugging Face
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The model it is a version of; a new name begins a model
    #[arg(long, value_name = "NAME")]
    alias: String,
    /// How vectors are pooled, where the files do not say
    #[arg(long, value_enum)]
    pooling: Option<Pooling>,
    /// Longest input, tokens, where it is not what the files say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// The index space that its vectors belong to, as the digest that names it [default: one of its own]
    #[arg(long, value_name = "DIGEST")]
    index_space: Option<String>,
    /// The checkpoint that it was made of
    #[arg(long, value_name = "DIGEST")]
    parent: Option<String>,
    /// What its makers measured, such as `ndcg_at_10=0.61`; repeat for more
    #[arg(long = "metric", value_name = "NAME=VALUE", value_parser = metric)]
    metrics: Vec<Metric>,
    /// What an implementation of your own makes of some inputs; all workers are held to it
    ///
    /// Lines of `{"text": …, "embedding": […]}`, or, for a cross-encoder, of `{"query": …, "text": …, "score": …}`: vectors
    /// as long as the checkpoint's, or scores from 0 to 1, computed in f32 of the texts as they are, without prompts. At
    /// most 64. The worker that tries the checkpoint has to agree, else nothing is published.
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// How long a server that is busy or away is waited for, seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    patience: u64,
    /// Have the model's name mean it, as `promote` does
    #[arg(long)]
    promote: bool,
    #[command(flatten)]
    plan: PlanArgs,
}

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pooling {
    /// The first token's
    Cls,
    /// The mean of all
    Mean,
    /// The last token's
    Last,
}

impl Pooling {
    fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Last => "last",
        }
    }
}

pub(super) async fn run(args: PublishArgs, remote: &Remote) -> Result<(), Failure> {
    if !args.promote {
        args.plan.without_swap()?;
    }
    let paths = publisher::find(&args.dir)?;
    let golden = args.golden.as_deref().map(|file| publisher::golden(file, &args.dir));
    let golden = golden.transpose()?.unwrap_or_default();
    // Before the bytes are read, so that a wrong address is known at once.
    let gateway = remote.connect().await?;
    let files = hashed(&args, paths, remote).await?;
    let begun = Instant::now();
    let first = begin(&args, &files, golden);
    let version = publish(&gateway, &args, (&first, &files), remote).await?;
    let digest = version.checkpoint.as_ref().map(|it| it.digest.clone()).unwrap_or_default();
    let seconds = begun.elapsed().as_secs_f64();
    if !remote.json {
        let model = print::printable(&version.model, 60);
        print::line(format_args!("{model}@{digest} is published, in {seconds:.1} s"))?;
    }
    if let Some(file) = &args.golden
        && version.golden_from() != GoldenSource::Publisher
    {
        let file = file.display();
        print::note(format_args!(
            "it was known before: it meets {file}, and workers are held to what they were held to"
        ));
    }
    let swap = if args.promote { last_swap(&gateway, &version.model, &digest).await? } else { None };
    let ended = match swap {
        Some(swap) => Some(watch::until_decided(&gateway, swap, remote).await?),
        None => None,
    };
    if remote.json {
        print::json(&json!({
            "version": objects::version(&version),
            "swap": ended.as_ref().map(objects::swap),
            "seconds": seconds,
        }))?;
    }
    match ended.as_ref().map(swap::conclusion).transpose()? {
        Some(conclusion) if !remote.json => print::line(conclusion),
        Some(_) | None => Ok(()),
    }
}

/// The swap to what was just published. There is none where the name means it already.
async fn last_swap(gateway: &Gateway, model: &str, digest: &str) -> Result<Option<Swap>, Failure> {
    let asked = GetSwapRequest { model: model.to_owned() };
    match gateway.models().get_swap(gateway.request(asked)).await {
        Ok(swap) => Ok(Some(swap.into_inner()).filter(|swap| swap.to == digest)),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// Reads every byte, on a thread that may block, and shows how far it is.
async fn hashed(
    args: &PublishArgs,
    paths: Vec<PathBuf>,
    remote: &Remote,
) -> Result<Vec<ManifestFile>, Failure> {
    let dir = args.dir.clone();
    let size = |path: &PathBuf| std::fs::metadata(dir.join(path)).map_or(0, |meta| meta.len());
    let total = paths.iter().map(size).sum();
    let mut meter = if remote.json { Meter::Nothing } else { Meter::new(0, Some(total)) };
    let (progress, mut reports) = mpsc::channel(1);
    let told = move |read| {
        // One that finds another waiting is not missed.
        let _ = progress.try_send(read);
    };
    let work = move || publisher::hash(&dir, &paths, &told);
    let work = task::spawn_blocking(work);
    while let Some(read) = reports.recv().await {
        meter.advance(read, "hashing");
    }
    meter.finish();
    Ok(work.await.map_err(anyhow::Error::from)??)
}

async fn publish(
    gateway: &Gateway,
    args: &PublishArgs,
    (begin, files): (&PublishBegin, &[ManifestFile]),
    remote: &Remote,
) -> Result<Version, Failure> {
    let total = files.iter().map(|file| file.size).sum();
    let mut meter = if remote.json { Meter::Nothing } else { Meter::new(0, Some(total)) };
    let mut trial = String::new();
    let mut told = |news: News<'_>| match news {
        News::Sent { done, total } => {
            meter.advance(done, format_args!("sent {} of {}", print::bytes(done), print::bytes(total)));
        }
        News::Trial(worker) if !remote.json => tell(worker, &meter, &mut trial),
        News::Trial(_) => {}
    };
    // A failure of this machine is not cured by patience.
    let mut here = None;
    let call = async |outgoing: Outgoing| gateway.models().publish(gateway.unhurried(outgoing)).await;
    let attempt = async || match publisher::attempt(call, &args.dir, begin, files, &mut told).await {
        Ok(version) => Ok(Some(version)),
        Err(Cut::Status(status)) => Err(status),
        Err(Cut::Here(failure)) => {
            here = Some(failure.into());
            Ok(None)
        }
    };
    let published: Result<_, Status> = persist(Duration::from_secs(args.patience), waiting, attempt).await;
    meter.finish();
    match published? {
        Some(version) => Ok(version),
        None => Err(here.unwrap_or_else(|| Failure::Local(anyhow::anyhow!("nothing was published")))),
    }
}

/// A line for each step of the worker that tries it.
fn tell(worker: &Preparation, meter: &Meter, last: &mut String) {
    let stage = objects::stage(worker.stage());
    if last != stage {
        meter.finish();
        stage.clone_into(last);
        let ready = worker.stage() == Stage::Ready;
        let line = if ready { format!("{} is content", worker.worker) } else { swap::step(worker) };
        print::note(format_args!("on trial: {line}"));
    }
}

fn begin(args: &PublishArgs, files: &[ManifestFile], golden: Vec<GoldenSample>) -> PublishBegin {
    let file = |file: &ManifestFile| CheckpointFile {
        path: file.path.clone(),
        size: file.size,
        sha256: file.sha256.clone(),
    };
    PublishBegin {
        model: args.alias.clone(),
        files: files.iter().map(file).collect(),
        pooling: args.pooling.map(Pooling::name).unwrap_or_default().to_owned(),
        max_tokens: args.max_tokens,
        parent: args.parent.clone().unwrap_or_default(),
        index_space: args.index_space.clone().unwrap_or_default(),
        evaluation: args.metrics.clone(),
        job: String::new(),
        job_owner_revision: 0,
        promote: args.promote.then(|| args.plan.to_plan()),
        golden,
    }
}

fn metric(text: &str) -> Result<Metric, String> {
    let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE")?;
    let value = value.parse::<f64>().ok().filter(|value| value.is_finite());
    match (name.is_empty(), value) {
        (false, Some(value)) => Ok(Metric { name: name.to_owned(), value }),
        (true, _) => Err("it has no name".to_owned()),
        (_, None) => Err("its value is no number".to_owned()),
    }
}
