//! Locks between processes: of the system, on files, gone with whoever holds them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::time;

use crate::Error;
use crate::error::At as _;

/// Between two tries for a lock that another process has.
const LOOK: Duration = Duration::from_millis(100);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    path: PathBuf,
}

#[derive(Clone, Copy)]
enum Kind {
    Shared,
    Exclusive,
}

impl Lock {
    /// Waits for the lock beside others who share it. `waiting` is called now and then while it waits. Cancel safe.
    pub(crate) async fn shared(path: PathBuf, waiting: impl Fn()) -> Result<Self, Error> {
        Self::wait(path, Kind::Shared, waiting).await
    }

    /// Waits for the lock for oneself. Cancel safe.
    pub(crate) async fn exclusive(path: PathBuf, waiting: impl Fn()) -> Result<Self, Error> {
        Self::wait(path, Kind::Exclusive, waiting).await
    }

    /// The lock for oneself, if nobody has it.
    pub(crate) fn try_exclusive(path: PathBuf) -> Result<Option<Self>, Error> {
        Self::take(&path, Kind::Exclusive).at(&path).map(|file| Some(Self { file: file?, path }))
    }

    async fn wait(path: PathBuf, kind: Kind, waiting: impl Fn()) -> Result<Self, Error> {
        loop {
            if let Some(file) = Self::take(&path, kind).at(&path)? {
                return Ok(Self { file, path });
            }
            waiting();
            time::sleep(LOOK).await;
        }
    }

    fn take(path: &PathBuf, kind: Kind) -> io::Result<Option<File>> {
        let file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        let taken = match kind {
            Kind::Shared => file.try_lock_shared(),
            Kind::Exclusive => file.try_lock(),
        };
        match taken {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever had it may have removed it: then it is a lock on nothing that others would see.
        let here = file.metadata()?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => Ok(Some(file)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Notes that what is locked was used now.
    pub(crate) fn touch(&self) {
        // It only orders what is evicted first.
        let _ = self.file.set_modified(SystemTime::now());
    }

    /// Removes it, where what was locked is no more. It must be held exclusively.
    pub(crate) fn remove(self) {
        // A file that stays is empty, and taken again.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_shared_or_had_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let one = Lock::shared(path.clone(), || ()).await.unwrap();
        let two = Lock::shared(path.clone(), || ()).await.unwrap();
        assert!(Lock::try_exclusive(path.clone()).unwrap().is_none());
        drop((one, two));
        let alone = Lock::try_exclusive(path.clone()).unwrap().unwrap();
        let waited = time::timeout(Duration::from_millis(300), Lock::shared(path.clone(), || ())).await;
        assert!(waited.is_err());
        drop(alone);
        Lock::shared(path, || ()).await.unwrap();
    }

    #[tokio::test]
    async fn a_lock_that_was_removed_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::try_exclusive(path.clone()).unwrap().unwrap();
        let behind = OpenOptions::new().write(true).open(&path).unwrap();
        first.remove();
        behind.try_lock().unwrap(); // On the file that is gone.
        assert!(Lock::try_exclusive(path).unwrap().is_some());
    }
}
