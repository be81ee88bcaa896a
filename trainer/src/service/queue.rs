//! Whose turn it is: jobs that nobody runs, by age, on devices that are free.

use std::time::Duration;

use cluster::{Etcd, Job, JobState, LeaseId, ListedJob, TrainerId};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time;

use super::devices::{Devices, Share};
use super::foreman::Shop;
use super::journal::Journal;

/// Between two looks for jobs.
const LOOK: Duration = Duration::from_millis(500);

/// Finds jobs and has them run.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) etcd: Etcd,
    pub(super) id: TrainerId,
    pub(super) leases: watch::Receiver<Option<LeaseId>>,
    pub(super) devices: Devices,
    pub(super) shop: Shop,
}

impl Queue {
    /// Until the shop is told to stop.
    pub(super) async fn run(self) {
        let stop = self.shop.stop.clone();
        stop.run_until_cancelled(self.look()).await;
    }

    async fn look(&self) {
        loop {
            let lease = *self.leases.borrow();
            if let Some(lease) = lease {
                match self.etcd.jobs().await {
                    Ok(jobs) => self.begin(&jobs, lease).await,
                    Err(error) => tracing::debug!(%error, "jobs cannot be listed"),
                }
            }
            time::sleep(LOOK).await;
        }
    }

    /// Claims and begins what there are devices for.
    async fn begin(&self, jobs: &[ListedJob], lease: LeaseId) {
        for (found, share) in allotted(jobs, &self.devices) {
            let job = Job { trainer: Some(self.id.clone()), ..found.job.clone() };
            match self.etcd.claim_job(found, &job, (&self.id, lease)).await {
                Ok(Some(fence)) => {
                    tracing::info!(job = %found.name, "the job is ours");
                    let curve = self.etcd.job_curve(&found.name).await.unwrap_or_default();
                    let progress = found.progress.clone().unwrap_or_default();
                    let journal = Journal::new(self.etcd.clone(), fence, job, progress, curve);
                    let (shop, cancelled, leases) = (self.shop.clone(), found.cancelled, self.leases.clone());
                    let runtime = Handle::current();
                    // A thread of its own, on which it may also calculate.
                    self.shop.tasks.spawn_blocking(move || {
                        runtime.block_on(shop.run(journal, cancelled, (lease, leases), share));
                    });
                }
                // Another trainer was faster.
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a job cannot be claimed"),
            }
        }
    }
}

/// Jobs that can begin, each with what it runs on. Nobody who takes devices overtakes an older one: else one that takes many
/// would wait for ever. Who takes none waits for nobody.
fn allotted<'j>(jobs: &'j [ListedJob], devices: &Devices) -> Vec<(&'j ListedJob, Share)> {
    let (mut allotted, mut is_full) = (Vec::new(), false);
    for found in turns(jobs, devices.count()) {
        let wanted = wanted(found);
        let share = if is_full && wanted > 0 { None } else { devices.take(wanted) };
        is_full |= share.is_none();
        allotted.extend(share.map(|share| (found, share)));
    }
    allotted
}

/// Jobs that nobody runs and that `devices` are enough for, the oldest first.
fn turns(jobs: &[ListedJob], devices: usize) -> Vec<&ListedJob> {
    let waits = |found: &&ListedJob| {
        !found.job.state.is_final() && found.owner.is_none() && found.job.ranks as usize <= devices
    };
    let mut turns: Vec<_> = jobs.iter().filter(waits).collect();
    turns.sort_by_key(|found| (found.job.submitted_unix_ms, found.name.clone()));
    turns
}

/// The devices that a job takes. To end it takes none, nor to hand its model over.
fn wanted(found: &ListedJob) -> usize {
    let is_trained = found.job.state == JobState::Publishing && !found.job.outcome.model.is_empty();
    if found.cancelled || is_trained { 0 } else { found.job.ranks as usize }
}

#[cfg(test)]
mod tests {
    use cluster::{JobOutcome, Name};
    use model::Device;

    use super::*;

    fn job(name: &str, ranks: u32, submitted_unix_ms: u64) -> ListedJob {
        ListedJob::new(Name::parse(name).unwrap(), Job { ranks, submitted_unix_ms, ..Job::default() })
    }

    #[track_caller]
    fn check(jobs: &[ListedJob], devices: usize, expected: &[&str]) {
        let found: Vec<&str> = turns(jobs, devices).iter().map(|found| found.name.as_str()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_oldest_comes_first_that_devices_are_enough_for() {
        let jobs = [job("young", 1, 30), job("wide", 4, 10), job("old", 2, 20), job("also-old", 1, 20)];
        check(&jobs, 4, &["wide", "also-old", "old", "young"]);
        check(&jobs, 2, &["also-old", "old", "young"]);
        check(&jobs, 1, &["also-old", "young"]);
        check(&[], 1, &[]);
    }

    #[test]
    fn what_is_run_or_has_ended_waits_for_nothing() {
        let mut jobs = [job("a", 1, 1), job("b", 1, 2), job("c", 1, 3), job("d", 1, 4), job("e", 1, 5)];
        jobs[0].owner = Some(TrainerId::parse("other").unwrap());
        for (job, state) in
            jobs[1..].iter_mut().zip([JobState::Succeeded, JobState::Failed, JobState::Cancelled])
        {
            job.job.state = state;
        }
        check(&jobs, 1, &["e"]);
        // One whose trainer died in the middle of it.
        jobs[4].job.state = JobState::Running;
        check(&jobs, 1, &["e"]);
    }

    #[test]
    fn a_job_that_will_not_train_wants_no_device() {
        let mut found = job("job", 2, 1);
        assert_eq!(wanted(&found), 2);
        // It was told to publish, and what it had trained is not known.
        found.job.state = JobState::Publishing;
        assert_eq!(wanted(&found), 2);
        found.job.outcome = JobOutcome { model: "/jobs/job/model".to_owned(), ..JobOutcome::default() };
        assert_eq!(wanted(&found), 0);
        found.job = Job { state: JobState::Running, ..found.job };
        assert_eq!(wanted(&found), 2);
        found.cancelled = true;
        assert_eq!(wanted(&found), 0);
    }

    #[test]
    fn who_takes_no_device_waits_for_nobody() {
        let mut jobs = [job("wide", 2, 1), job("small", 1, 2), job("trained", 2, 3), job("unwanted", 2, 4)];
        jobs[2].job.state = JobState::Publishing;
        jobs[2].job.outcome.model = "/jobs/trained/model".to_owned();
        jobs[3].cancelled = true;
        let devices = Devices::new(&[Device::Cpu, Device::Cpu]);
        let begun = || -> Vec<(String, usize)> {
            let allotted = allotted(&jobs, &devices);
            allotted.iter().map(|(found, share)| (found.name.to_string(), share.devices().len())).collect()
        };
        let of = |name: &str, devices| (name.to_owned(), devices);
        assert_eq!(begun(), [of("wide", 2), of("trained", 0), of("unwanted", 0)]);
        let _other = devices.take(1).unwrap();
        // One is free, and kept for the oldest.
        assert_eq!(begun(), [of("trained", 0), of("unwanted", 0)]);
    }
}
