//! A job from the moment it is claimed to its end: attempts, and what becomes of the model.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fs, io};

use cluster::{JobState, LeaseId, unix_ms};
use model::Device;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempt::{self, End, Watch};
use super::devices::Share;
use super::fields::{Fault, Faults};
use super::gateway::Gateways;
use super::handover::{self, Undelivered};
use super::journal::Journal;
use super::ranks::Plan;
use super::root::Roots;
use super::shelf::Shelf;
use super::spec::Spec;
use crate::checkpoint;

/// Between an attempt that died and the next.
const PAUSE: Duration = Duration::from_millis(500);

/// The directory of links to objects that somebody looks at who submits a job, below the trainer's output.
const LOOKS: &str = ".data/looks";

/// How much is looked at of what a job names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// All of it, for whoever submits the job, in a cluster whose trainers have so many devices at most; nothing is kept.
    Submitted(usize),
    /// All of it, and what is fetched stays as long as the job.
    Begun,
    /// It is trained: what its gate measures it on is to be there.
    Trained,
    /// It is trained and measured.
    Measured,
}

/// What a trainer runs jobs with.
#[derive(Clone, Debug)]
pub(super) struct Shop {
    /// Where jobs read.
    pub(super) roots: Roots,
    /// Where jobs write, a directory each.
    pub(super) output: PathBuf,
    /// Threads of a rank.
    pub(super) threads: usize,
    /// Who takes what is trained.
    pub(super) gateways: Gateways,
    /// Whose turn it is to look at what a job names: one at a time.
    pub(super) turn: Arc<Mutex<()>>,
    /// Where tasks belong.
    pub(super) tasks: TaskTracker,
    /// Ends everything.
    pub(super) stop: CancellationToken,
}

impl Shop {
    /// Where objects are linked that somebody looks at who submits a job.
    pub(super) fn looks(&self) -> PathBuf {
        self.output.join(LOOKS)
    }

    /// The directory of a job.
    pub(super) fn directory(&self, job: &str) -> PathBuf {
        self.output.join(job)
    }

    /// Runs a job that was claimed under `lease` to its end, and gives it up. Its ranks run on the devices of `share`.
    pub(super) async fn run(
        &self,
        mut journal: Journal,
        is_cancelled: bool,
        (lease, leases): (LeaseId, watch::Receiver<Option<LeaseId>>),
        share: Share,
    ) {
        let mut watch = Watch { lease, leases, share: Some(share), stop: &self.stop, tasks: &self.tasks };
        let end = if is_cancelled { End::Cancelled } else { self.work(&mut journal, &mut watch).await };
        let is_over = !matches!(end, End::Leaving | End::Lost);
        match end {
            End::Trained => {
                journal.event("done");
                journal.state(JobState::Succeeded);
            }
            End::Died(why) | End::Failed(why) => {
                journal.event(format!("failed: {why}"));
                journal.job.reason = why;
                journal.state(JobState::Failed);
            }
            End::Cancelled => {
                journal.event("cancelled");
                journal.state(JobState::Cancelled);
            }
            End::Leaving => {
                // A model that is there need not be trained again.
                if journal.job.state == JobState::Running {
                    journal.state(JobState::Queued);
                }
                journal.event("its trainer leaves; another one goes on from the newest checkpoint");
            }
            End::Lost => {
                tracing::warn!(job = %journal.fence.job, "the job is lost: etcd may have given it to another trainer");
                return;
            }
        }
        if is_over {
            self.let_go(journal.fence.job.as_str());
        }
        journal.release().await;
    }

    /// Removes what was fetched for a job that has ended.
    fn let_go(&self, name: &str) {
        if let Err(error) = checkpoint::clear(&Shelf::below(&self.directory(name))) {
            tracing::warn!(job = name, %error, "what was fetched for a job stays");
        }
    }

    /// The job's document, all that it needs found; or how it ends without that.
    async fn settled(&self, journal: &Journal, watch: &mut Watch<'_>, look: Look) -> Result<Spec, End> {
        let (name, stop) = (journal.fence.job.to_string(), watch.stop.clone());
        // Data may have to be fetched first.
        let settled = tokio::select! {
            settled = self.settle(&journal.job.spec, &name, look) => settled,
            () = journal.cancelled() => return Err(End::Cancelled),
            () = watch.lost() => return Err(End::Lost),
            () = stop.cancelled() => return Err(End::Leaving),
        };
        settled.map_err(|faults| {
            let all: Vec<_> =
                faults.iter().map(|fault| format!("{}: {}", fault.field, fault.reason)).collect();
            End::Failed(all.join("; "))
        })
    }

    async fn work(&self, journal: &mut Journal, watch: &mut Watch<'_>) -> End {
        let is_trained = journal.job.state == JobState::Publishing && !journal.job.outcome.model.is_empty();
        let look = match &journal.job.outcome.gate {
            _ if !is_trained => Look::Begun,
            None => Look::Trained,
            Some(_) => Look::Measured,
        };
        let spec = match self.settled(journal, watch, look).await {
            Ok(spec) => spec,
            Err(end) => return end,
        };
        if !is_trained {
            let directory = self.directory(journal.fence.job.as_str());
            let end = self.train(&spec, directory, journal, watch).await;
            // Handing the model over takes none.
            watch.share = None;
            if end != End::Trained {
                return end;
            }
        }
        let Some(publish) = &spec.publish else { return End::Trained };
        journal.state(JobState::Publishing);
        let stop = watch.stop.clone();
        let delivered = handover::deliver(&spec, publish, &self.gateways, journal);
        tokio::select! {
            delivered = delivered => match delivered {
                Ok(()) => End::Trained,
                Err(Undelivered::Failed(why)) => End::Failed(why),
                Err(Undelivered::Cancelled) => End::Cancelled,
                Err(Undelivered::Lost) => End::Lost,
            },
            () = watch.lost() => End::Lost,
            () = stop.cancelled() => End::Leaving,
        }
    }

    async fn train(
        &self,
        spec: &Spec,
        directory: PathBuf,
        journal: &mut Journal,
        watch: &mut Watch<'_>,
    ) -> End {
        let job = directory.join("job.json");
        let written = fs::create_dir_all(&directory)
            .and_then(|()| fs::write(&job, serde_json::to_vec_pretty(&spec.job).map_err(io::Error::from)?));
        if let Err(error) = written {
            return End::Failed(format!("{}: {error}", directory.display()));
        }
        let devices = watch.share.as_ref().map(Share::devices).unwrap_or_default();
        let named: Vec<String> = devices.iter().map(Device::to_string).collect();
        let (mut farthest, mut in_vain) = (journal.step(), 0);
        loop {
            journal.job.attempt += 1;
            if journal.job.started_unix_ms == 0 {
                journal.job.started_unix_ms = unix_ms();
            }
            journal.state(JobState::Running);
            let attempt = journal.job.attempt;
            journal.event(format!("attempt {attempt} begins, ranks on {}", named.join(", ")));
            let plan = Plan {
                job: job.clone(),
                logs: directory.join("logs"),
                devices: devices.clone(),
                attempt,
                threads: self.threads,
                timeout_seconds: spec.timeout_seconds,
            };
            let end = attempt::run(&plan, journal, watch).await;
            let End::Died(why) = end else { return end };
            in_vain = if journal.step() > farthest { 0 } else { in_vain + 1 };
            farthest = farthest.max(journal.step());
            if in_vain > spec.max_restarts {
                return End::Failed(format!("{in_vain} attempts in a row came to nothing; the last: {why}"));
            }
            journal.event(format!("attempt {attempt} ended: {why}"));
            time::sleep(PAUSE).await;
        }
    }

    /// Reads the document of the job `name`, and of all that it names as much as `look` says.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub(super) async fn settle(&self, text: &str, name: &str, look: Look) -> Result<Spec, Vec<Fault>> {
        let failed = |error: &dyn std::fmt::Display| {
            vec![Fault { field: "spec".to_owned(), reason: error.to_string() }]
        };
        let (shop, text, name) = (self.clone(), text.to_owned(), name.to_owned());
        tokio::task::spawn_blocking(move || shop.read(&text, &name, look))
            .await
            .unwrap_or_else(|error| Err(failed(&error)))
    }

    fn read(&self, text: &str, name: &str, look: Look) -> Result<Spec, Vec<Fault>> {
        let (mut faults, output) = (Faults::default(), self.directory(name));
        let mut spec = Spec::read(text, &output, &mut faults);
        if let Some(spec) = &mut spec {
            let find = || match look {
                Look::Submitted(_) => Ok(Shelf::to_look(&self.roots, &self.looks())),
                Look::Begun | Look::Trained | Look::Measured => Shelf::of_job(&self.roots, &output),
            };
            let is_placed = look != Look::Measured && (look != Look::Trained || spec.is_gated());
            let mut files = if is_placed {
                find().map_err(|reason| faults.note("train_data", reason)).ok()
            } else {
                None
            };
            if let Some(files) = &mut files {
                spec.place(files, &mut faults);
                if look != Look::Trained {
                    // A model that is tried takes memory.
                    let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
                    spec.look(&mut faults);
                }
            }
            if let Look::Submitted(most) = look
                && spec.ranks > most
            {
                let ranks = spec.ranks;
                faults.note(
                    "ranks",
                    format!("it is {ranks}, and no trainer of the cluster has more than {most} devices"),
                );
            }
        }
        faults.or(spec)
    }
}
