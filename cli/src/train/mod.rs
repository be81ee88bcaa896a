//! `beige train`: fine-tuning jobs.

mod bar;
mod html;
mod objects;
mod report;
mod submit;
mod watch;

use clap::{Args, Subcommand};
use proto::v1::{CancelJobRequest, DeleteJobRequest, GetJobRequest, Job, JobState, ListJobsRequest};
use serde_json::json;

use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

const EXAMPLES: &str = "\
Examples:
  beige train example > job.yaml
  beige train submit packages-1 job.yaml --watch
  beige train watch packages-1
  beige train report packages-1 --output packages-1.html
  beige train cancel packages-1
  beige train rm packages-1";

/// Fine-tune models: submit jobs, watch them, report on them.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the jobs
    Ls,
    /// Show a job: what it is, how far it is, what happened
    Show(Named),
    /// Check a job and have it wait for its turn
    Submit(submit::SubmitArgs),
    /// Watch a job until it has ended
    Watch(Named),
    /// Say that a job is wanted no more
    Cancel(Named),
    /// Remove a job that has ended, and its directory at the trainer
    ///
    /// What was published stays. The job's name may be used again.
    Rm(Named),
    /// Write a page with a job's curves, configuration and quality
    Report(report::ReportArgs),
    /// Print a job's document with every field and its default
    Example,
}

#[derive(Args, Debug)]
struct Named {
    /// The job
    #[arg(value_name = "JOB")]
    name: String,
}

/// A document to start from.
const EXAMPLE: &str = include_str!("../../../trainer/job.yaml");

/// Does it.
pub(crate) async fn run(TrainArgs { what, remote }: TrainArgs) -> Result<(), Failure> {
    match what.unwrap_or(What::Ls) {
        What::Ls => list(&remote).await,
        What::Show(Named { name }) => show(name, &remote).await,
        What::Submit(args) => submit::run(args, &remote).await,
        What::Watch(Named { name }) => watch::run(&name, &remote).await,
        What::Cancel(Named { name }) => cancel(name, &remote).await,
        What::Rm(Named { name }) => remove(name, &remote).await,
        What::Report(args) => report::run(args, &remote).await,
        What::Example => print::line(EXAMPLE.trim_end()),
    }
}

async fn list(remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    let jobs = gateway.training().list(gateway.request(ListJobsRequest {})).await?.into_inner().jobs;
    if remote.json {
        return print::json(&json!({ "jobs": jobs.iter().map(objects::job).collect::<Vec<_>>() }));
    }
    let header = ["JOB", "STATE", "RANKS", "STEP", "LOSS", "SUBMITTED", "QUALITY", "RESULT"];
    let mut table = print::table(&header, &[2, 3, 4]);
    for job in &jobs {
        table.add_row(row(job));
    }
    print::rows(&table)
}

fn row(job: &Job) -> [String; 8] {
    let last = job.last.unwrap_or_default();
    let result = if job.state() == JobState::Failed {
        print::printable(&job.reason, 60)
    } else if job.digest.is_empty() {
        print::printable(&job.model_dir, 60)
    } else {
        format!("{}@{}", print::printable(&job.alias, 40), print::short(&job.digest))
    };
    let dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    [
        print::printable(&job.name, 60),
        objects::state(job.state()).to_owned(),
        job.ranks.to_string(),
        dash(job.last.map(|_| format!("{}/{}", last.step, job.steps)).unwrap_or_default()),
        dash(job.last.map(|_| format!("{:.4}", last.loss)).unwrap_or_default()),
        print::ago(job.submitted_unix_ms),
        dash(quality(job)),
        dash(result),
    ]
}

/// The first metric, before and after.
fn quality(job: &Job) -> String {
    let Some([first, last]) = objects::before_and_after(job) else { return String::new() };
    let wanted = |metric: &&proto::v1::Metric| metric.name == "ndcg_at_10";
    let metric = last.metrics.iter().find(wanted).or(last.metrics.first());
    let Some(metric) = metric else { return String::new() };
    let before = first.metrics.iter().find(|before| before.name == metric.name && first.step != last.step);
    match before {
        Some(before) => format!("{} {:.4} to {:.4}", metric.name, before.value, metric.value),
        None => format!("{} {:.4}", metric.name, metric.value),
    }
}

async fn show(name: String, remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    let job = gateway.training().get(gateway.request(GetJobRequest { name })).await?.into_inner();
    if remote.json {
        return print::json(&objects::job(&job));
    }
    for (name, value) in facts(&job) {
        print::line(format_args!("{name:<12} {value}"))?;
    }
    section("evaluations", job.evaluations.iter().map(objects::evaluation_line))?;
    section(
        "events",
        job.events.iter().map(|event| format!("{:<14} {}", print::ago(event.at_unix_ms), event.what)),
    )?;
    section("log", job.log.iter().cloned())
}

/// What a job is, name by name.
fn facts(job: &Job) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("job", job.name.clone()),
        ("state", objects::state(job.state()).to_owned()),
        ("ranks", job.ranks.to_string()),
        ("submitted", print::ago(job.submitted_unix_ms)),
    ];
    let mut more = |name, value: String| {
        if !value.is_empty() {
            facts.push((name, print::printable(&value, 1_000)));
        }
    };
    if job.attempt > 0 {
        more("attempt", job.attempt.to_string());
    }
    more("trainer", job.trainer.clone());
    more("reason", job.reason.clone());
    if let Some(last) = job.last {
        let proto::v1::JobStep { step, loss, learning_rate, grad_norm } = last;
        more("step", format!("{step} of {}", job.steps));
        more("loss", format!("{loss:.4}, gradient norm {grad_norm:.3}, learning rate {learning_rate:.2e}"));
        more("speed", format!("{:.0} tokens/s", job.tokens_per_second));
    }
    more("model", job.model_dir.clone());
    if !job.digest.is_empty() {
        more("version", format!("{}@{}", job.alias, job.digest));
    }
    if let Some(gate) = &job.gate {
        more("gate", objects::gate_line(gate));
    }
    more("swap", job.swap_id.clone());
    facts
}

fn section(title: &str, lines: impl ExactSizeIterator<Item = String>) -> Result<(), Failure> {
    if lines.len() == 0 {
        return Ok(());
    }
    print::line(format_args!("\n{title}"))?;
    lines.into_iter().try_for_each(|line| print::line(format_args!("  {}", print::printable(&line, 1_000))))
}

async fn cancel(name: String, remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    let job = gateway.training().cancel(gateway.request(CancelJobRequest { name })).await?.into_inner();
    if remote.json {
        return print::json(&objects::job(&job));
    }
    let (name, state) = (job.name.as_str(), job.state());
    if state == JobState::Cancelled {
        print::line(format_args!("{name} is cancelled"))
    } else if objects::is_final(state) {
        print::line(format_args!("{name} had ended before: {}", objects::state(state)))
    } else {
        print::line(format_args!("{name} is being cancelled"))
    }
}

async fn remove(name: String, remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    let asked = gateway.request(DeleteJobRequest { name: name.clone() });
    gateway.training().delete(asked).await?;
    if remote.json {
        return print::json(&json!({ "removed": name }));
    }
    print::line(format_args!("{name} is removed"))
}
