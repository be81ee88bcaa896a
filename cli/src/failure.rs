//! Why a verb did not do what it was asked: one sentence and an exit code.

use std::io;
use std::process::ExitCode;

use publisher::{is_lost, timed_out};
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::print;

/// A failure, by what the user can do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The server said no: the sentence is its own. Exit code 1.
    #[error("{0}")]
    Refused(String),
    /// The command line or its input is at fault. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers there. Exit code 69, as `EX_UNAVAILABLE`.
    #[error("{0}")]
    Unreachable(String),
    /// This machine did not play along: a disk, a process, a thread. Exit code 1.
    #[error("{0:#}")]
    Local(#[from] anyhow::Error),
    /// Whoever read standard output has seen enough. Not an error.
    #[error("standard output was closed")]
    ReaderGone,
}

impl Failure {
    /// Says it on standard error and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if !matches!(self, Self::ReaderGone) {
            print::note(format_args!("error: {self}"));
        }
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Refused(_) | Self::Local(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 69,
        }
    }

    /// A failed write to standard output.
    pub(crate) fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::ReaderGone;
        }
        Self::Local(anyhow::Error::new(error).context("cannot write to standard output"))
    }
}

impl From<publisher::Failure> for Failure {
    fn from(failure: publisher::Failure) -> Self {
        match failure {
            publisher::Failure::NoCheckpoint(why) | publisher::Failure::NoSamples(why) => Self::Usage(why),
            publisher::Failure::Protocol(_) => Self::Refused(failure.to_string()),
            publisher::Failure::Local(error) => Self::Local(error),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        if timed_out(&status) {
            return Self::Refused("no answer came within the time that --timeout allows".to_owned());
        }
        if is_lost(&status) {
            return Self::Unreachable(format!(
                "the connection to the server is lost: {}",
                innermost(&status)
            ));
        }
        Self::Refused(sentence(&status))
    }
}

/// The server's message, with the field at fault where it names one that the message does not.
pub(crate) fn sentence(status: &Status) -> String {
    let message = match status.message() {
        "" => format!("the server answered {} and said no more", bench::code_name(status.code())),
        message => print::printable(message, 1_000),
    };
    match field(status) {
        Some(field) if !message.contains(&field) => format!("{message} (field {field})"),
        Some(_) | None => message,
    }
}

/// Tells whoever waits why.
pub(crate) fn waiting(status: &Status) {
    print::note(format_args!("waiting for the server: {}", sentence(status)));
}

/// The first field at fault.
pub(crate) fn field(status: &Status) -> Option<String> {
    let violations = status.get_details_bad_request()?.field_violations;
    violations.into_iter().next().map(|violation| violation.field).filter(|field| !field.is_empty())
}

/// The cause below all causes: what is above it repeats "transport error".
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::Code;
    use tonic_types::ErrorDetails;

    use super::*;

    #[track_caller]
    fn check(status: Status, code: u8, message: &str) {
        let failure = Failure::from(status);
        assert_eq!((failure.code(), failure.to_string().as_str()), (code, message));
    }

    #[test]
    fn a_refusal_is_the_servers_sentence_and_the_field() {
        check(Status::not_found("there is no model x"), 1, "there is no model x");
        check(Status::unavailable("no worker is ready"), 1, "no worker is ready");
        check(Status::internal(""), 1, "the server answered INTERNAL and said no more");
        let bad = |message: &str| {
            let details = ErrorDetails::with_bad_request_violation("inputs[3]", "is empty");
            Status::with_error_details(Code::InvalidArgument, message, details)
        };
        check(bad("a text is empty"), 1, "a text is empty (field inputs[3])");
        check(bad("inputs[3] is empty"), 1, "inputs[3] is empty");
    }

    #[test]
    fn a_broken_connection_is_not_a_refusal() {
        let mut status = Status::unknown("transport error");
        status.set_source(Arc::new(io::Error::other("connection reset")));
        check(status, 69, "the connection to the server is lost: connection reset");
    }

    #[test]
    fn a_deadline_passed_names_the_flag() {
        check(
            Status::cancelled("Timeout expired"),
            1,
            "no answer came within the time that --timeout allows",
        );
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        assert_eq!(Failure::Usage(String::new()).code(), 2);
        assert_eq!(Failure::Local(anyhow::anyhow!("disk")).code(), 1);
        assert_eq!(Failure::stdout(io::ErrorKind::BrokenPipe.into()).code(), 0);
        assert_eq!(Failure::stdout(io::ErrorKind::StorageFull.into()).code(), 1);
    }
}
