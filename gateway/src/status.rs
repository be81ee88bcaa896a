//! One door for errors: the only file that makes a [`Status`].
//!
//! What is said to callers is said here: internal text is logged, once, under an id that the answer carries.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::admit::{Overloaded, Why};
use crate::error::{CallError, Defect, ManageError, NotServed, Unmet, Unreachable};
use crate::keys::Unauthorized;
use crate::wire::InvalidRequest;

/// How the message of each INTERNAL of ours begins.
const INTERNAL: &str = "internal error, id ";

/// When to come back where too many are publishing.
const COME_BACK: std::time::Duration = std::time::Duration::from_secs(10);

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Invalid(invalid) => invalid.into(),
            CallError::UnknownModel(model) => {
                let sentence = format!("there is no model {model}");
                let details = ErrorDetails::with_resource_info("model", model.as_str(), "", &sentence);
                Self::with_error_details(Code::NotFound, sentence, details)
            }
            CallError::NotServed(not_served) => not_served.into(),
            CallError::Overloaded(overloaded) => overloaded.into(),
            CallError::Unreachable(unreachable) => unreachable.into(),
            CallError::Deadline => Self::deadline_exceeded(CallError::Deadline.to_string()),
            // The metadata of a worker's answer is between the worker and us.
            CallError::Refused(status) => {
                Self::with_details(status.code(), status.message(), status.details().to_vec().into())
            }
            CallError::Bug(defect) => defect.into(),
        }
    }
}

impl From<ManageError> for Status {
    fn from(error: ManageError) -> Self {
        match error {
            ManageError::Invalid(invalid) => invalid.into(),
            ManageError::NotFound { kind, name, sentence } => {
                let details = ErrorDetails::with_resource_info(kind, name, "", &sentence);
                Self::with_error_details(Code::NotFound, sentence, details)
            }
            ManageError::Unmet(Unmet { what, subject, sentence }) => {
                let details = ErrorDetails::with_precondition_failure_violation(what, subject, &sentence);
                Self::with_error_details(Code::FailedPrecondition, sentence, details)
            }
            ManageError::Contended(_) => {
                let details = ErrorDetails::with_retry_info(Some(std::time::Duration::ZERO));
                Self::with_error_details(Code::Aborted, error.to_string(), details)
            }
            ManageError::Full(why) => {
                let details = ErrorDetails::with_retry_info(Some(COME_BACK));
                Self::with_error_details(Code::ResourceExhausted, why, details)
            }
            ManageError::Unreachable(unreachable) => unreachable.into(),
            ManageError::Refused(status) => CallError::Refused(status).into(),
            ManageError::Bug(defect) => defect.into(),
        }
    }
}

impl From<InvalidRequest> for Status {
    fn from(invalid: InvalidRequest) -> Self {
        let sentence = invalid.to_string();
        let details = ErrorDetails::with_bad_request_violation(invalid.field, &sentence);
        Self::with_error_details(Code::InvalidArgument, sentence, details)
    }
}

impl From<NotServed> for Status {
    fn from(not_served: NotServed) -> Self {
        let (what, model) = match &not_served {
            NotServed::NotLoaded { model, .. } => ("CHECKPOINT_LOADED", model.as_str()),
            NotServed::OtherDigest { model, .. } => ("DIGEST", model.as_str()),
            NotServed::OtherSpace { model, .. } => ("INDEX_SPACE", model.as_str()),
            NotServed::Leaving { model, .. } | NotServed::Retired { model, .. } => {
                ("CHECKPOINT_RETIRED", model.as_str())
            }
            NotServed::EarlierEpoch { model, .. } => ("EPOCH", model.as_str()),
            NotServed::OtherThanStream { .. } => ("SAME_CHECKPOINT", "stream"),
        };
        let sentence = not_served.to_string();
        let details = ErrorDetails::with_precondition_failure_violation(what, model, &sentence);
        Self::with_error_details(Code::FailedPrecondition, sentence, details)
    }
}

impl From<Overloaded> for Status {
    fn from(overloaded: Overloaded) -> Self {
        let sentence = overloaded.to_string();
        let mut details = ErrorDetails::with_retry_info(Some(overloaded.retry_after));
        match &overloaded.why {
            Why::Full | Why::Late => {}
            Why::PerSecond { key } | Why::AtATime { key } => {
                details.add_quota_failure_violation(format!("key:{key}"), &sentence);
            }
        }
        Self::with_error_details(Code::ResourceExhausted, sentence, details)
    }
}

/// `domain` of each `ErrorInfo` of ours.
const DOMAIN: &str = "beige";

impl From<Unauthorized> for Status {
    fn from(unauthorized: Unauthorized) -> Self {
        let (code, right) = match &unauthorized {
            Unauthorized::Missing
            | Unauthorized::Malformed
            | Unauthorized::Unknown
            | Unauthorized::Expired { .. } => (Code::Unauthenticated, None),
            Unauthorized::Denied { right, .. } => (Code::PermissionDenied, Some(right.name())),
        };
        let facts = [("key", unauthorized.key()), ("right", right)];
        let facts: HashMap<String, String> =
            facts.into_iter().filter_map(|(name, fact)| Some((name.to_owned(), fact?.to_owned()))).collect();
        let details = ErrorDetails::with_error_info(unauthorized.reason(), DOMAIN, facts);
        Self::with_error_details(code, unauthorized.to_string(), details)
    }
}

impl From<Unreachable> for Status {
    fn from(unreachable: Unreachable) -> Self {
        let details = ErrorDetails::with_retry_info(Some(unreachable.retry_after));
        Self::with_error_details(Code::Unavailable, unreachable.to_string(), details)
    }
}

impl From<Defect> for Status {
    fn from(defect: Defect) -> Self {
        let id = Uuid::new_v4().simple();
        // Logged here and nowhere else: here an error stops being one and becomes an answer.
        tracing::error!(%id, error = %defect, "a call failed by a defect");
        Self::internal(format!("{INTERNAL}{id}"))
    }
}

/// Puts in our terms what tonic says about a request that never reached us: to tonic a message over the limit is
/// OUT_OF_RANGE, and one that it cannot take apart is INTERNAL; both are the caller's to repair.
#[must_use]
pub fn canonical(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => refused_message(status.message()),
        Code::Internal if !status.message().starts_with(INTERNAL) => refused_message(status.message()),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => status,
    }
}

/// A code as the specification spells it.
#[must_use]
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// What those are told whose answers the gateway cannot wait for, because it ends.
#[must_use]
pub fn leaving() -> Status {
    let details = ErrorDetails::with_retry_info(Some(std::time::Duration::ZERO));
    Status::with_error_details(Code::Unavailable, "this gateway is leaving: go to another one", details)
}

/// What a publisher is told that sent nothing `for_so_long`.
#[must_use]
pub fn idle(for_so_long: std::time::Duration) -> Status {
    Status::deadline_exceeded(format!(
        "nothing came for {} seconds, and bytes are wanted",
        for_so_long.as_secs()
    ))
}

fn refused_message(why: &str) -> Status {
    let sentence = format!("the request message cannot be taken: {why}");
    let details = ErrorDetails::with_bad_request_violation("", &sentence);
    Status::with_error_details(Code::InvalidArgument, sentence, details)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cluster::Name;

    use super::*;
    use crate::wire::Fault;

    fn model() -> Name {
        Name::parse("mini").unwrap()
    }

    #[test]
    fn each_error_has_its_code() {
        #[track_caller]
        fn check(error: impl Into<CallError>, code: Code) {
            assert_eq!(Status::from(error.into()).code(), code);
        }
        let second = Duration::from_secs(1);
        check(InvalidRequest { field: "inputs".into(), fault: Fault::Empty }, Code::InvalidArgument);
        check(CallError::UnknownModel(model()), Code::NotFound);
        check(NotServed::NotLoaded { model: model(), digest: "d".into() }, Code::FailedPrecondition);
        check(Overloaded { why: Why::Full, retry_after: second }, Code::ResourceExhausted);
        check(Unreachable { what: "nobody".into(), retry_after: second }, Code::Unavailable);
        check(CallError::Deadline, Code::DeadlineExceeded);
        check(Defect("oh".into()), Code::Internal);
    }

    #[test]
    fn a_bad_request_names_its_field() {
        let status = Status::from(InvalidRequest { field: "inputs[3]".into(), fault: Fault::Blank });
        let violation = status.get_details_bad_request().unwrap().field_violations.remove(0);
        assert_eq!(violation.field, "inputs[3]");
        assert_eq!(violation.description, status.message());
    }

    #[test]
    fn who_should_come_back_is_told_when() {
        let retry_after = Duration::from_millis(700);
        for status in [
            Status::from(Overloaded { why: Why::Late, retry_after }),
            Status::from(Unreachable { what: "nobody".into(), retry_after }),
        ] {
            assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(retry_after));
        }
    }

    #[test]
    fn a_workers_refusal_passes_with_its_details_and_without_its_metadata() {
        let details = ErrorDetails::with_bad_request_violation("inputs[7]", "has 600 tokens");
        let mut said = Status::with_error_details(Code::InvalidArgument, "inputs[7] has 600 tokens", details);
        said.metadata_mut().insert("x-internal", "1".parse().unwrap());
        let status = Status::from(CallError::Refused(said));
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "inputs[7] has 600 tokens"));
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, "inputs[7]");
        assert!(status.metadata().is_empty());
    }

    #[test]
    fn a_defect_is_told_by_its_id_alone() {
        let status = Status::from(Defect("the password is 1234".into()));
        assert!(status.message().starts_with(INTERNAL) && !status.message().contains("1234"));
        assert_eq!(canonical(status).code(), Code::Internal);
    }

    #[test]
    fn what_tonic_says_of_a_bad_message_becomes_the_callers_to_repair() {
        let large = canonical(Status::out_of_range("decoded message length too large"));
        assert_eq!(large.code(), Code::InvalidArgument);
        assert!(large.message().contains("too large"));
        assert_eq!(canonical(Status::internal("Missing request message.")).code(), Code::InvalidArgument);
        assert_eq!(canonical(Status::unimplemented("")).code(), Code::Unimplemented);
    }
}
