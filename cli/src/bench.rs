//! `beige bench`: throughput and latency under a load of one's choosing.

use std::path::Path;
use std::time::Duration;

use ::bench::{Arrivals, Call, Corpus, Pacing, Plan, Report};
use clap::{Args, ValueEnum};
use proto::v1::{EmbedRequest, RerankRequest};

use crate::embed::Encoding;
use crate::failure::Failure;
use crate::print;
use crate::remote::{Purpose, Remote};
use crate::rerank::Truncate;

const AFTER_HELP: &str = "\
Closed loop: --concurrency callers, each with one call open at a time. It shows what the cluster can carry.

Open loop: calls fall due --rate times a second, whatever becomes of those before. Latency is taken from the \
moment a call was due, so a stall shows in full.

Throughput is of the answers that arrive within the measured seconds, latency and errors are of the calls \
due within them.

Examples:
  beige bench --concurrency 1 --corpus short
  beige bench --concurrency 32 --batch 16 --seconds 30 --json
  beige bench --mode open --rate 200 --corpus my-queries.jsonl
  beige bench --call rerank --batch 20 --model bge-reranker-base";

/// Load the cluster and measure throughput and latency.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct BenchArgs {
    /// What each call asks
    #[arg(long, value_enum, default_value_t = Kind::Embed)]
    call: Kind,
    /// Texts to send: `short` (5 to 20 tokens each), `medium` (50 to 250), `long` (512), or a file of JSON lines
    /// with a `text`
    #[arg(long, default_value = "medium", value_name = "NAME|FILE")]
    corpus: String,
    /// Texts (documents) per call
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    batch: usize,
    #[command(flatten)]
    load: LoadArgs,
    /// Load before measuring, seconds
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS", value_parser = seconds)]
    warmup: f64,
    /// How long is measured, seconds
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = above_zero)]
    seconds: f64,
    /// Connections, used in turn
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    connections: usize,
    /// The model, or MODEL@DIGEST; by default the only one there is
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// How numbers travel
    #[arg(long, value_enum, default_value_t = Encoding::F32)]
    encoding: Encoding,
    /// What happens to texts beyond the model's window
    #[arg(long, value_enum, default_value_t = Truncate::End)]
    truncate: Truncate,
    #[command(flatten)]
    remote: Remote,
}

/// When calls are made.
#[derive(Args, Debug)]
struct LoadArgs {
    /// Whether callers wait for their answers before they call again
    #[arg(long, value_enum, default_value_t = Mode::Closed)]
    mode: Mode,
    /// Closed loop: callers [default: 16]
    #[arg(long, short, value_name = "C", value_parser = at_least_one)]
    concurrency: Option<usize>,
    /// Open loop: calls per second
    #[arg(long, value_name = "R", value_parser = above_zero, required_if_eq("mode", "open"))]
    rate: Option<f64>,
    /// Open loop: how calls are spread
    #[arg(long, value_enum, default_value_t = Spread::Poisson)]
    arrivals: Spread,
    /// Open loop: calls open at once at most; beyond it calls are sent late, which counts as latency
    #[arg(long, default_value_t = 4_096, value_name = "N", value_parser = at_least_one)]
    outstanding: usize,
    /// Open loop: makes the Poisson schedule repeatable
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

/// What each call asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Vectors of the texts
    Embed,
    /// Scores of the texts against a query out of the same corpus
    Rerank,
}

/// The two loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// A caller waits for its answer
    Closed,
    /// Calls fall due by a schedule
    Open,
}

/// How arrivals of an open loop are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Spread {
    /// As those of many independent users
    Poisson,
    /// Evenly
    Fixed,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| "it is not a whole number above zero".to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| (0.0..=1e6).contains(number));
    number.ok_or_else(|| "it is not a number from 0 to 1000000".to_owned())
}

fn above_zero(text: &str) -> Result<f64, String> {
    seconds(text)
        .and_then(|number| if number > 0.0 { Ok(number) } else { Err("it must be above zero".to_owned()) })
}

/// Measures and prints what was found.
pub(crate) async fn run(args: BenchArgs) -> Result<(), Failure> {
    let pacing = args.load.pacing()?;
    let corpus = corpus(&args.corpus)?;
    let purpose = match args.call {
        Kind::Embed => Purpose::Embed,
        Kind::Rerank => Purpose::Rerank,
    };
    let model = args.remote.connect().await?.model_for(args.model.as_deref(), purpose).await?;
    let plan = plan(&args, pacing, model).await?;
    if !args.remote.json {
        let (model, name) = (plan.call.model(), corpus.name());
        print::note(format_args!(
            "{model}, corpus {name}: {} s to warm up, {} s to measure",
            args.warmup, args.seconds
        ));
    }
    let report = ::bench::run(&plan, &corpus).await.map_err(anyhow::Error::from)?;
    if args.remote.json {
        print::json(&report)?;
    } else {
        show(&report)?;
    }
    warn(&report);
    match (report.calls, report.first_failure) {
        (0, Some(status)) => Err(Failure::from(status)),
        (0, None) => Err(Failure::Refused("no call was answered within the measured seconds".to_owned())),
        _ => Ok(()),
    }
}

impl LoadArgs {
    /// Flags of the other loop are refused: who gives them expects an effect.
    fn pacing(&self) -> Result<Pacing, Failure> {
        match (self.mode, self.rate) {
            (Mode::Closed, None) => Ok(Pacing::Closed { concurrency: self.concurrency.unwrap_or(16) }),
            (Mode::Open, Some(_)) if self.concurrency.is_some() => {
                Err(Failure::Usage("--concurrency is for --mode closed".to_owned()))
            }
            (Mode::Open, Some(rate)) => {
                let arrivals = match self.arrivals {
                    Spread::Poisson => Arrivals::Poisson,
                    Spread::Fixed => Arrivals::Fixed,
                };
                Ok(Pacing::Open { rate, arrivals, seed: self.seed, outstanding: self.outstanding })
            }
            (Mode::Closed, Some(_)) => Err(Failure::Usage("--rate is for --mode open".to_owned())),
            (Mode::Open, None) => Err(Failure::Usage("--mode open needs --rate".to_owned())),
        }
    }
}

fn corpus(name: &str) -> Result<Corpus, Failure> {
    let corpus = Corpus::fixed(name).unwrap_or_else(|| Corpus::load(Path::new(name)));
    corpus.map_err(|error| Failure::Usage(format!("{:#}", anyhow::Error::new(error))))
}

async fn plan(args: &BenchArgs, pacing: Pacing, model: String) -> Result<Plan, Failure> {
    let (mut connections, mut authorization) = (Vec::new(), None);
    for _ in 0..args.connections {
        let (channel, bearer) = args.remote.dial().await?;
        connections.push(channel);
        authorization = bearer;
    }
    let truncation = args.truncate.to_wire().into();
    let call = match args.call {
        Kind::Embed => {
            let encoding = args.encoding.to_wire().into();
            Call::Embed(EmbedRequest { model, encoding, truncation, ..EmbedRequest::default() })
        }
        Kind::Rerank => Call::Rerank(RerankRequest { model, truncation, ..RerankRequest::default() }),
    };
    Ok(Plan {
        connections,
        authorization,
        call,
        batch: args.batch,
        pacing,
        warmup: Duration::from_secs_f64(args.warmup),
        window: Duration::from_secs_f64(args.seconds),
        timeout: Duration::from_secs(args.remote.timeout),
    })
}

fn show(report: &Report) -> Result<(), Failure> {
    let load = match (report.concurrency, report.rate) {
        (Some(callers), _) => format!("closed loop, {}", print::count(callers as u64, "caller")),
        (None, rate) => format!("open loop, {} calls/s asked for", rate.unwrap_or_default()),
    };
    let latency = report.latency_ms;
    print::line(format_args!("model       {}@{}", report.model, print::short(&report.digest)))?;
    let unit = if report.call == "rerank" { "document" } else { "text" };
    print::line(format_args!("load        {load}, {} per call", print::count(report.batch as u64, unit)))?;
    print::line(format_args!("answered    {} in {} s", print::count(report.calls, "call"), report.seconds))?;
    print::line(format_args!("texts/s     {:.1}", report.texts_per_s))?;
    print::line(format_args!("tokens/s    {}", print::rate(report.tokens_per_s)))?;
    print::line(format_args!(
        "latency ms  p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
        latency.p50, latency.p90, latency.p99, latency.p999, latency.max
    ))?;
    if report.rate.is_some() {
        print::line(format_args!("sent late   p99 {:.2} ms", report.lag_p99_ms))?;
    }
    for (name, count) in &report.errors {
        print::line(format_args!("errors      {} {name}", print::thousands(*count)))?;
    }
    Ok(())
}

/// Says what makes the figures less than they seem.
fn warn(report: &Report) {
    if report.latency_ms.p50 > report.seconds * 250.0 {
        print::note("half of the calls took over a quarter of the measured seconds: measure longer");
    }
    if report.rate.is_some() && report.lag_p99_ms > report.latency_ms.p50 {
        print::note(
            "calls were sent late: --outstanding or this machine was the limit, not the cluster alone",
        );
    }
    if report.digests.len() > 1 {
        print::note(format_args!("{} checkpoints answered in this run", report.digests.len()));
    }
    match &report.first_failure {
        Some(status) if report.calls > 0 => {
            print::note(format_args!("first failure: {}", Failure::from(status.clone())));
        }
        Some(_) | None => {}
    }
}
