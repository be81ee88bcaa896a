//! `beige train submit`: a job is checked whole, and waits for its turn.

use std::path::PathBuf;

use clap::Args;
use proto::v1::SubmitJobRequest;

use super::{objects, watch};
use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

/// Check a job and have it wait for its turn.
///
/// Everything that is wrong with it is told at once, by field. The same job may be submitted again: it is there once.
#[derive(Args, Debug)]
pub(super) struct SubmitArgs {
    /// The job's name, used once
    #[arg(value_name = "JOB")]
    name: String,
    /// Its document, YAML or JSON; `beige train example` prints one with every field
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Watch it until it has ended
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(args: SubmitArgs, remote: &Remote) -> Result<(), Failure> {
    let SubmitArgs { name, file, watch } = args;
    let spec = std::fs::read_to_string(&file)
        .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", file.display())))?;
    let gateway = remote.connect().await?;
    let asked = gateway.request(SubmitJobRequest { name: name.clone(), spec });
    let job = gateway.training().submit(asked).await.map_err(refused)?.into_inner();
    if watch {
        return watch::run(&name, remote).await;
    }
    if remote.json {
        return print::json(&objects::job(&job));
    }
    if objects::is_final(job.state()) {
        return print::line(format_args!("{name} had ended before: {}", objects::state(job.state())));
    }
    print::line(format_args!("{name} is {}", objects::state(job.state())))
}

/// Several faults are lines of their own, and keep them.
fn refused(status: tonic::Status) -> Failure {
    if status.code() == tonic::Code::InvalidArgument && status.message().contains('\n') {
        let lines = status.message().lines().map(|line| format!("  {}", print::printable(line, 1_000)));
        return Failure::Refused(format!(
            "the job has several faults:\n{}",
            lines.collect::<Vec<_>>().join("\n")
        ));
    }
    status.into()
}
