//! The one door through which errors become gRPC statuses.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::error::CallError;

/// `reason` and `domain` of the `ErrorInfo` by which gateways know that a checkpoint is not here.
const NOT_LOADED: (&str, &str) = ("CHECKPOINT_NOT_LOADED", "beige");

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        match error {
            CallError::Invalid(invalid) => {
                let details =
                    ErrorDetails::with_bad_request_violation(invalid.field, invalid.fault.to_string());
                Self::with_error_details(Code::InvalidArgument, text, details)
            }
            CallError::NotLoaded(digest) => {
                let about = HashMap::from([("digest".to_owned(), digest)]);
                let details = ErrorDetails::with_error_info(NOT_LOADED.0, NOT_LOADED.1, about);
                Self::with_error_details(Code::FailedPrecondition, text, details)
            }
            CallError::Overloaded(overloaded) => {
                let details = ErrorDetails::with_retry_info(Some(overloaded.retry_after));
                Self::with_error_details(Code::ResourceExhausted, text, details)
            }
            CallError::Deadline => Self::deadline_exceeded(text),
            CallError::Leaving => Self::unavailable(text),
            CallError::Bug(defect) => {
                // Logged here and nowhere else; the caller gets the id and not the text.
                let id = Uuid::new_v4();
                tracing::error!(%id, field = defect.field, reason = defect.reason, "a call failed");
                Self::internal(format!("{}: internal error {id}", defect.field))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::error::Defect;
    use crate::load::{Overloaded, Shortage};
    use crate::wire::{Fault, InvalidRequest};

    #[test]
    fn an_invalid_request_names_the_field() {
        let fault = Fault::TooLong { tokens: 600, max: 512 };
        let status = Status::from(CallError::from(InvalidRequest { field: "inputs[7]".into(), fault }));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "inputs[7]: it has 600 tokens, and the model's window 512");
        let violation = status.get_details_bad_request().unwrap().field_violations.remove(0);
        assert_eq!(violation.field, "inputs[7]");
        assert_eq!(violation.description, "it has 600 tokens, and the model's window 512");
    }

    #[test]
    fn a_missing_checkpoint_has_its_reason() {
        let status = Status::from(CallError::NotLoaded("abc".into()));
        let info = status.get_details_error_info().unwrap();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!((&*info.reason, &*info.domain), ("CHECKPOINT_NOT_LOADED", "beige"));
        assert_eq!(info.metadata["digest"], "abc");
    }

    #[test]
    fn an_overload_says_when_to_come_back() {
        let why = Shortage::Room { waiting: 1, asked: 2, limit: 3 };
        let overloaded = Overloaded { why, retry_after: Duration::from_millis(1500) };
        let status = Status::from(CallError::from(overloaded));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn a_defect_keeps_its_text_to_itself() {
        let defect = Defect { field: "inputs[0]".into(), reason: "segment 7 of /secret".into() };
        let status = Status::from(CallError::from(defect));
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().starts_with("inputs[0]: internal error "), "{}", status.message());
        assert!(!status.message().contains("secret"));
    }

    #[test]
    fn the_others_have_their_codes() {
        assert_eq!(Status::from(CallError::Deadline).code(), Code::DeadlineExceeded);
        assert_eq!(Status::from(CallError::Leaving).code(), Code::Unavailable);
    }
}
