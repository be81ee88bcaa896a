//! Whose turn it is: jobs that nobody runs, by age, on devices that are free.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Etcd, Job, JobState, LeaseId, ListedJob, TrainerId};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time;

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
    pub(super) devices: usize,
    pub(super) shop: Shop,
}

impl Queue {
    /// Until the shop is told to stop.
    pub(super) async fn run(self) {
        let stop = self.shop.stop.clone();
        stop.run_until_cancelled(self.look()).await;
    }

    async fn look(&self) {
        let free = Arc::new(Semaphore::new(self.devices));
        loop {
            let lease = *self.leases.borrow();
            if let Some(lease) = lease {
                match self.etcd.jobs().await {
                    Ok(jobs) => self.begin(&jobs, lease, &free).await,
                    Err(error) => tracing::debug!(%error, "jobs cannot be listed"),
                }
            }
            time::sleep(LOOK).await;
        }
    }

    /// Claims and begins what there are devices for.
    async fn begin(&self, jobs: &[ListedJob], lease: LeaseId, free: &Arc<Semaphore>) {
        for found in turns(jobs, self.devices) {
            let permit = Arc::clone(free).try_acquire_many_owned(devices(found));
            let Ok(permit) = permit else {
                // Nobody overtakes the oldest: else one that takes many devices would wait for ever.
                return;
            };
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
                        runtime.block_on(shop.run(journal, cancelled, (lease, leases)));
                        drop(permit);
                    });
                }
                // Another trainer was faster.
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "a job cannot be claimed"),
            }
        }
    }
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
fn devices(found: &ListedJob) -> u32 {
    let takes_none = found.cancelled || found.job.state == JobState::Publishing;
    if takes_none { 0 } else { found.job.ranks }
}
