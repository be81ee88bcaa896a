//! `beige train report`: one page about a job, for people who were not there.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use proto::v1::GetJobRequest;

use super::html;
use crate::failure::Failure;
use crate::print;
use crate::remote::Remote;

/// Write a page with a job's curves, configuration and quality.
///
/// One HTML file that needs nothing else.
#[derive(Args, Debug)]
pub(super) struct ReportArgs {
    /// The job
    #[arg(value_name = "JOB")]
    name: String,
    /// Where the page goes [default: JOB.html]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn run(args: ReportArgs, remote: &Remote) -> Result<(), Failure> {
    let ReportArgs { name, output } = args;
    let output = output.unwrap_or_else(|| PathBuf::from(format!("{name}.html")));
    let gateway = remote.connect().await?;
    let job = gateway.training().get(gateway.request(GetJobRequest { name })).await?.into_inner();
    std::fs::write(&output, html::page(&job))
        .with_context(|| format!("cannot write {}", output.display()))?;
    print::line(format_args!("{}", output.display()))
}
