//! Why a checkpoint is not ready, by what is to be done about it.

use std::io;

use cluster::NackReason;
use model::LoadError;

use crate::apart::Unfinished;
use crate::bisect::EncodeError;
use crate::memory::Short;
use crate::models::BuildError;

/// Why a checkpoint is not ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Say so: another try of the same would end the same.
    #[error("{detail}")]
    Refused {
        /// What kind of thing was wrong.
        reason: NackReason,
        /// What happened, for people.
        detail: String,
    },
    /// Try again in a while: somebody does not answer.
    #[error("{0}")]
    Later(String),
    /// Its files are not to be had here: it was never published, or there is no store.
    #[error("{0}")]
    Absent(String),
    /// Nobody wants it any more.
    #[error("it is not wanted any more")]
    Cancelled,
}

impl Failure {
    /// A refusal.
    #[allow(clippy::needless_pass_by_value)] // Errors and texts alike, as `map_err` has them.
    pub fn refused(reason: NackReason, detail: impl ToString) -> Self {
        Self::Refused { reason, detail: detail.to_string() }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        use store::Error;
        let detail = chain(&error);
        match error {
            Error::Missing(_) => Self::refused(NackReason::Store, detail),
            Error::Checksum { .. } => Self::refused(NackReason::Checksum, detail),
            Error::Format { .. } => Self::refused(NackReason::Format, detail),
            Error::Disk { .. } | Error::Room { .. } => Self::refused(NackReason::Disk, detail),
            // Credentials may be mended, and are often late.
            Error::Denied { .. } | Error::Unreachable { .. } | Error::Busy => Self::Later(detail),
        }
    }
}

impl From<cluster::Error> for Failure {
    fn from(error: cluster::Error) -> Self {
        Self::Later(chain(&error))
    }
}

impl From<Short> for Failure {
    fn from(short: Short) -> Self {
        Self::refused(NackReason::Memory, short)
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let reason = match &error {
            LoadError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => NackReason::Format,
            // Its bytes were good a moment ago.
            LoadError::Read { .. } => NackReason::Disk,
            LoadError::Torch(text) if is_want_of_memory(text) => NackReason::Memory,
            LoadError::Format { .. }
            | LoadError::MissingTensor { .. }
            | LoadError::Shape { .. }
            | LoadError::Unsupported { .. }
            | LoadError::Device(_)
            | LoadError::Torch(_) => NackReason::Format,
        };
        Self::refused(reason, error)
    }
}

impl From<EncodeError> for Failure {
    fn from(error: EncodeError) -> Self {
        let reason = match &error {
            EncodeError::OutOfMemory(_) => NackReason::Memory,
            EncodeError::Failed(_) => NackReason::Format,
        };
        Self::refused(reason, error)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Load(error) => error.into(),
            BuildError::Run(error) => error.into(),
            BuildError::Golden(reason) => Self::refused(NackReason::Golden, reason),
        }
    }
}

impl From<Unfinished> for Failure {
    fn from(error: Unfinished) -> Self {
        match error {
            Unfinished::Thread(_) => Self::Later(error.to_string()),
            Unfinished::Panicked(_) => Self::refused(NackReason::Format, error),
        }
    }
}

/// The words of libtorch's two allocators.
fn is_want_of_memory(text: &str) -> bool {
    text.contains("out of memory") || text.contains("can't allocate memory")
}

/// An error and what is behind it, in one sentence.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(failure: impl Into<Failure>, expected: Option<NackReason>, part: &str) {
        let failure = failure.into();
        assert!(failure.to_string().contains(part), "{failure}");
        match (failure, expected) {
            (Failure::Refused { reason, .. }, Some(expected)) => assert_eq!(reason, expected),
            (Failure::Later(_), None) => {}
            (failure, _) => panic!("{failure:?}"),
        }
    }

    #[test]
    fn each_failure_has_its_reason() {
        use store::Error;
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        check(Error::Missing("blob".into()), Some(NackReason::Store), "blob is not in the store");
        let damaged = Error::Checksum { what: "b".into(), found: "other".into() };
        check(damaged, Some(NackReason::Checksum), "b is damaged: other");
        let malformed = Error::Format { what: "b".into(), source: "odd".into() };
        check(malformed, Some(NackReason::Format), ": odd");
        let disk = Error::Disk { path: "/c".into(), source: full() };
        check(disk, Some(NackReason::Disk), "/c cannot be written");
        check(Error::Room { wanted: 3, bound: 2, held: 1 }, Some(NackReason::Disk), "do not fit");
        check(Error::Unreachable { what: "b".into(), source: "timed out".into() }, None, "b: timed out");
        check(Error::Busy, None, "collected");

        let torch = |text: &str| LoadError::Torch(text.to_owned());
        check(torch("CUDA out of memory"), Some(NackReason::Memory), "out of memory");
        check(torch("no kernel"), Some(NackReason::Format), "no kernel");
        check(LoadError::Read { path: "/w".into(), source: full() }, Some(NackReason::Disk), "/w");
        let absent = io::ErrorKind::NotFound.into();
        check(LoadError::Read { path: "/w".into(), source: absent }, Some(NackReason::Format), "/w");
        check(EncodeError::OutOfMemory("x".into()), Some(NackReason::Memory), "x");
        check(BuildError::Golden("cosine".into()), Some(NackReason::Golden), "cosine");
        check(Short { wanted: 9, free: 1, limit: 5 }, Some(NackReason::Memory), "about 9 bytes");
        check(Unfinished::Panicked("p".into()), Some(NackReason::Format), "it panicked: p");
        check(Unfinished::Thread(full()), None, "no thread");
    }
}
