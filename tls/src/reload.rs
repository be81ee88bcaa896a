//! What files say, read again when they change.
//!
//! Files are looked at when somebody asks, not watched: certificates are wanted a few times a second at most, and a
//! look costs microseconds. Any way of changing a file is seen: written in place, moved over, or the directory's link
//! moved to another one, as Kubernetes does it with Secrets.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

/// A file that changed within this time may change again without its times telling: clocks of file systems tick in
/// milliseconds, and some in seconds.
const SETTLED: Duration = Duration::from_secs(2);

/// A value that is made of files.
pub trait Source: Send + Sync + 'static {
    /// What is made of them.
    type Value: Send + Sync + 'static;
    /// Why it could not be made. Says which file, and nothing of what is in it.
    type Error: std::error::Error;

    /// The files.
    fn files(&self) -> Vec<&Path>;

    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// Where they do not fit together, or are only half written.
    fn read(&self) -> Result<Self::Value, Self::Error>;
}

/// The last value that could be made of some files.
pub struct Reloaded<S: Source> {
    source: S,
    value: ArcSwap<S::Value>,
    seen: Mutex<Seen>,
}

/// How the files were found.
#[derive(Debug, Default)]
struct Seen {
    /// When they were last read with success.
    read: Vec<Stamp>,
    /// When they were last complained about.
    refused: Option<Vec<Stamp>>,
}

/// What tells one state of a file from another; `None` where there is no file.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

impl<S: Source> Reloaded<S> {
    /// The value as the files have it now. Blocks.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn load(source: S) -> Result<Self, S::Error> {
        // Looked at before they are read: what changes in between is read again.
        let seen = Seen { read: stamps(&source), refused: None };
        let value = ArcSwap::from_pointee(source.read()?);
        Ok(Self { source, value, seen: Mutex::new(seen) })
    }

    /// The last value that was made. Never blocks.
    #[must_use]
    pub fn value(&self) -> Arc<S::Value> {
        self.value.load_full()
    }

    /// The value as the files have it now; the last one that could be made where they are of no use, which is said in
    /// the log once for each state they are in. Blocks.
    pub fn refresh(&self) -> Arc<S::Value> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.source);
        let changed = stamps != seen.read;
        if !changed && settled(&stamps) {
            return self.value();
        }
        let files = Named(self.source.files());
        match self.source.read() {
            Ok(value) => {
                self.value.store(Arc::new(value));
                if changed {
                    tracing::info!(%files, "files changed and were read again");
                }
                *seen = Seen { read: stamps, refused: None };
            }
            Err(error) if seen.refused.as_ref() != Some(&stamps) => {
                tracing::warn!(%files, %error, "files changed and are of no use, so what they said before stays");
                seen.refused = Some(stamps);
            }
            Err(_) => {}
        }
        self.value()
    }
}

impl<S: Source> fmt::Debug for Reloaded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("files", &self.source.files()).finish_non_exhaustive()
    }
}

/// Files, separated by commas.
struct Named<'a>(Vec<&'a Path>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, file) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{}", file.display())?;
        }
        Ok(())
    }
}

fn stamps(source: &impl Source) -> Vec<Stamp> {
    source.files().into_iter().map(stamp).collect()
}

fn stamp(file: &Path) -> Stamp {
    let file = fs::metadata(file).ok()?;
    Some((file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec()))
}

/// Whether the last change is so long ago that another one would show.
fn settled(stamps: &[Stamp]) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let latest = stamps.iter().flatten().map(|stamp| stamp.3).max().unwrap_or_default();
    u64::try_from(latest).is_ok_and(|latest| Duration::from_secs(latest) + SETTLED < now)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    /// A pair of numbers, which must be the same.
    struct Pair(PathBuf, PathBuf);

    #[derive(Debug, thiserror::Error)]
    #[error("they are no pair")]
    struct NoPair;

    impl Source for Pair {
        type Value = u32;
        type Error = NoPair;

        fn files(&self) -> Vec<&Path> {
            vec![&self.0, &self.1]
        }

        fn read(&self) -> Result<u32, NoPair> {
            let number = |path| fs::read_to_string(path).ok().and_then(|text| text.parse().ok());
            let pair: (Option<u32>, Option<u32>) = (number(&self.0), number(&self.1));
            pair.0.filter(|_| pair.0 == pair.1).ok_or(NoPair)
        }
    }

    fn pair(directory: &Path) -> Pair {
        Pair(directory.join("a"), directory.join("b"))
    }

    fn write(pair: &Pair, numbers: [&str; 2]) {
        fs::write(&pair.0, numbers[0]).unwrap();
        fs::write(&pair.1, numbers[1]).unwrap();
    }

    #[test]
    fn what_is_of_no_use_at_the_start_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Reloaded::load(pair(directory.path())).is_err());
        write(&pair(directory.path()), ["1", "2"]);
        assert!(Reloaded::load(pair(directory.path())).is_err());
        write(&pair(directory.path()), ["1", "1"]);
        assert_eq!(*Reloaded::load(pair(directory.path())).unwrap().value(), 1);
    }

    #[test]
    fn a_half_written_pair_keeps_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let files = pair(directory.path());
        write(&files, ["1", "1"]);
        let reloaded = Reloaded::load(pair(directory.path())).unwrap();
        fs::write(&files.0, "2").unwrap();
        assert_eq!(*reloaded.refresh(), 1);
        fs::remove_file(&files.1).unwrap();
        assert_eq!(*reloaded.refresh(), 1);
        fs::write(&files.1, "2").unwrap();
        assert_eq!(*reloaded.value(), 1, "it looks only when it is asked to");
        assert_eq!(*reloaded.refresh(), 2);
        assert_eq!(*reloaded.value(), 2);
    }

    #[test]
    fn a_change_of_the_same_size_at_the_same_moment_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let files = pair(directory.path());
        write(&files, ["1", "1"]);
        let reloaded = Reloaded::load(pair(directory.path())).unwrap();
        for number in ["2", "3", "4", "5", "6", "7", "8", "9"] {
            write(&files, [number, number]);
            assert_eq!(reloaded.refresh().to_string(), number);
        }
    }

    #[test]
    fn a_link_that_is_moved_is_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second, link) =
            (directory.path().join("1"), directory.path().join("2"), directory.path().join("data"));
        for (place, number) in [(&first, "1"), (&second, "2")] {
            fs::create_dir(place).unwrap();
            write(&pair(place), [number, number]);
        }
        symlink(&first, &link).unwrap();
        let reloaded = Reloaded::load(pair(&link)).unwrap();
        let moved = directory.path().join("moved");
        symlink(&second, &moved).unwrap();
        fs::rename(moved, link).unwrap();
        assert_eq!(*reloaded.refresh(), 2);
    }

    #[test]
    fn a_change_that_is_long_past_is_not_read_again() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let seconds = |ago: u64| i64::try_from(now.as_secs() - ago).unwrap();
        assert!(settled(&[Some((0, 0, 0, seconds(10), 0)), None]));
        assert!(!settled(&[Some((0, 0, 0, seconds(10), 0)), Some((0, 0, 0, seconds(0), 0))]));
    }
}
