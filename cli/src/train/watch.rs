//! `beige train watch`: a job as it goes.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use proto::v1::{Job, JobEvent, JobState, WatchJobRequest};
use publisher::{is_lost, persist};
use tonic::Code;

use super::bar::{self, Bar};
use super::objects;
use crate::failure::{Failure, waiting};
use crate::print;
use crate::remote::{Gateway, Remote};

/// How long a gateway or a trainer that is away is waited for: a job outlives them.
const PATIENCE: Duration = Duration::from_secs(300);

/// Shows a job until it has ended: exit code 0 where it succeeded.
pub(super) async fn run(name: &str, remote: &Remote) -> Result<(), Failure> {
    let gateway = remote.connect().await?;
    let mut show = Show::of(remote);
    let last = follow(&gateway, name, &mut show).await?;
    show.finish();
    match last.state() {
        JobState::Succeeded if remote.json => Ok(()),
        JobState::Succeeded => print::line(conclusion(&last)),
        JobState::Cancelled => Err(Failure::Refused(format!("{name} was cancelled"))),
        JobState::Failed
        | JobState::Queued
        | JobState::Running
        | JobState::Publishing
        | JobState::Unspecified => Err(Failure::Refused(format!("{name} failed: {}", last.reason))),
    }
}

async fn follow(gateway: &Gateway, name: &str, show: &mut Show) -> Result<Job, Failure> {
    loop {
        let asked = WatchJobRequest { name: name.to_owned() };
        let open = async || gateway.training().watch(gateway.unhurried(asked.clone())).await;
        let mut jobs = persist(PATIENCE, waiting, open).await?.into_inner();
        loop {
            match jobs.message().await {
                Ok(Some(job)) => {
                    show.update(&job)?;
                    if objects::is_final(job.state()) {
                        return Ok(job);
                    }
                }
                // Whoever told of it leaves; another one knows the same.
                Ok(None) => break,
                Err(status) if is_lost(&status) || status.code() == Code::Unavailable => break,
                Err(status) => return Err(status.into()),
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn conclusion(job: &Job) -> String {
    let made = match job.digest.as_str() {
        "" => job.model_dir.clone(),
        digest => format!("{}@{digest}", job.alias),
    };
    let gate = job.gate.as_ref().map(|gate| format!("; gate {}", objects::gate_line(gate)));
    format!("{} succeeded: {made}{}", job.name, gate.unwrap_or_default())
}

/// How a job is shown.
enum Show {
    /// One object per change on standard output.
    Json,
    /// A bar on a terminal.
    Live(Bar),
    /// A line for whatever happens, and now and then one for the steps.
    Lines { seen: Option<JobEvent>, told: Option<tokio::time::Instant> },
}

/// Between two lines about steps.
const STEPS: Duration = Duration::from_secs(5);

impl Show {
    fn of(remote: &Remote) -> Self {
        match (remote.json, io::stderr().is_terminal()) {
            (true, _) => Self::Json,
            (false, true) => Self::Live(Bar::new()),
            (false, false) => Self::Lines { seen: None, told: None },
        }
    }

    fn update(&mut self, job: &Job) -> Result<(), Failure> {
        match self {
            Self::Json => print::json(&objects::job(job)),
            Self::Live(bar) => {
                bar.update(job);
                Ok(())
            }
            Self::Lines { seen, told } => {
                for event in objects::news(&job.events, seen.as_ref()) {
                    print::line(print::printable(&event.what, 1_000))?;
                }
                *seen = job.events.last().cloned();
                if let Some(last) = job.last
                    && told.is_none_or(|told| told.elapsed() > STEPS)
                {
                    *told = Some(tokio::time::Instant::now());
                    print::line(format_args!("step {} of {}: {}", last.step, job.steps, bar::numbers(job)))?;
                }
                Ok(())
            }
        }
    }

    fn finish(&self) {
        match self {
            Self::Live(bar) => bar.finish(),
            Self::Json | Self::Lines { .. } => {}
        }
    }
}
