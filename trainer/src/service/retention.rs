//! Directories of jobs that have ended: removed at somebody's wish, or when enough of later ones are there.

use std::cmp::Reverse;
use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;
use std::time::Duration;

use cluster::{Error, Etcd, ListedJob};
use tokio::{task, time};
use uuid::Uuid;

use super::foreman::Shop;
use crate::checkpoint;
use crate::error::TrainError;

/// Between two looks for directories that are not kept.
const LOOK: Duration = Duration::from_secs(5);
/// How directories are called that are being removed.
const REMOVED: &str = ".removed-";
/// How long somebody may look at objects that were fetched for a job that is submitted.
const LONGEST_LOOK: Duration = Duration::from_secs(24 * 3600);

/// Keeps the directories of the jobs that ended last.
#[derive(Debug)]
pub(super) struct Retention {
    pub(super) etcd: Etcd,
    pub(super) shop: Shop,
    /// How many; all where nothing is said.
    pub(super) kept: Option<usize>,
}

impl Retention {
    /// Until the shop is told to stop.
    pub(super) async fn run(self) {
        let stop = self.shop.stop.clone();
        stop.run_until_cancelled(self.look()).await;
    }

    async fn look(&self) {
        loop {
            if let Some(kept) = self.kept
                && let Err(error) = self.remove_old(kept).await
            {
                tracing::debug!(%error, "jobs cannot be listed");
            }
            self.shop.finish_removals().await;
            time::sleep(LOOK).await;
        }
    }

    async fn remove_old(&self, kept: usize) -> Result<(), Error> {
        for name in old(self.etcd.jobs().await?, kept) {
            if !self.shop.directory(&name).exists() {
                continue;
            }
            match self.shop.remove(&name).await {
                Ok(()) => tracing::info!(job = name, "the directory of a job that has ended is removed"),
                Err(error) => tracing::warn!(job = name, %error, "the directory of a job stays"),
            }
        }
        Ok(())
    }
}

/// Jobs that have ended, but for the last `kept` of them.
fn old(jobs: Vec<ListedJob>, kept: usize) -> Vec<String> {
    let mut ended: Vec<ListedJob> = jobs.into_iter().filter(|found| found.job.state.is_final()).collect();
    ended.sort_by_key(|found| Reverse(found.job.ended_unix_ms));
    ended.into_iter().skip(kept).map(|found| found.name.to_string()).collect()
}

impl Shop {
    /// Removes the directory of a job; that there is none is as good. It is gone by its name before anything in it is.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub(super) async fn remove(&self, job: &str) -> Result<(), TrainError> {
        let directory = self.directory(job);
        let aside = self.output.join(format!("{REMOVED}{}", Uuid::new_v4()));
        let work = move || match fs::rename(&directory, &aside) {
            Ok(()) => checkpoint::clear(&aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(TrainError::io(&directory, source)),
        };
        joined(task::spawn_blocking(work).await)
    }

    /// Removes what a trainer left that ended while it removed, or looked at fetched objects.
    async fn finish_removals(&self) {
        let (output, looks) = (self.output.clone(), self.looks());
        let work = move || clear_removed(&output).and_then(|()| clear_where(&looks, is_old));
        let cleared = joined(task::spawn_blocking(work).await);
        if let Err(error) = cleared {
            tracing::warn!(%error, "directories of jobs are not removed to the end");
        }
    }
}

fn clear_removed(output: &Path) -> Result<(), TrainError> {
    clear_where(output, |entry| entry.file_name().to_string_lossy().starts_with(REMOVED))
}

/// Removes the directories in `around` that `is_left` names; that it is not there is as good.
fn clear_where(around: &Path, is_left: impl Fn(&DirEntry) -> bool) -> Result<(), TrainError> {
    let entries = match fs::read_dir(around) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|source| TrainError::io(around, source))?,
    };
    for entry in entries {
        let entry = entry.map_err(|source| TrainError::io(around, source))?;
        if is_left(&entry) {
            checkpoint::clear(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether nobody can be looking at it any more.
fn is_old(look: &DirEntry) -> bool {
    let made = look.metadata().and_then(|meta| meta.modified());
    made.ok().and_then(|made| made.elapsed().ok()).is_some_and(|age| age > LONGEST_LOOK)
}

fn joined(work: Result<Result<(), TrainError>, task::JoinError>) -> Result<(), TrainError> {
    work.unwrap_or_else(|error| Err(TrainError::Unsupported(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_half_removed_goes() {
        let output = tempfile::tempdir().unwrap();
        for name in [".removed-1/model", "job/model", ".data/objects"] {
            fs::create_dir_all(output.path().join(name)).unwrap();
        }
        clear_removed(output.path()).unwrap();
        assert!(!output.path().join(".removed-1").exists());
        assert!(output.path().join("job/model").exists() && output.path().join(".data/objects").exists());
    }
}
