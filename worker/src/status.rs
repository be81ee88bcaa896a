//! The one door through which errors become gRPC statuses.

use std::collections::HashMap;
use std::time::Duration;

use cluster::NackReason;
use proto::worker::v1::{AliasSeen, CanarySeen};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use uuid::Uuid;

use crate::error::CallError;
use crate::prepare::Failure;
use crate::trial::TrialError;
use crate::wire::InvalidRequest;

/// `reason` and `domain` of the `ErrorInfo` by which gateways know that a checkpoint is not here.
const NOT_LOADED: (&str, &str) = ("CHECKPOINT_NOT_LOADED", "beige");
/// When to come back to a worker that tries out another checkpoint.
const TRIAL_PAUSE: Duration = Duration::from_secs(5);

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        match error {
            CallError::Invalid(invalid) => named(invalid),
            CallError::NotLoaded { model: _, digest: _, alias } => {
                let about = alias.map(|alias| about(*alias)).unwrap_or_default();
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

/// What a name means, as the metadata of an `ErrorInfo`.
fn about(alias: AliasSeen) -> HashMap<String, String> {
    let AliasSeen { model: _, digest, epoch, canary } = alias;
    let canary = canary.map(|CanarySeen { digest, per_mille, salt }| {
        [("canary_digest", digest), ("canary_per_mille", per_mille.to_string()), ("canary_salt", salt)]
    });
    let all =
        [("digest", digest), ("epoch", epoch.to_string())].into_iter().chain(canary.into_iter().flatten());
    all.map(|(key, value)| (key.to_owned(), value)).collect()
}

impl From<TrialError> for Status {
    fn from(error: TrialError) -> Self {
        let text = error.to_string();
        match error {
            TrialError::Invalid(invalid) => named(invalid),
            TrialError::Busy => {
                let details = ErrorDetails::with_retry_info(Some(TRIAL_PAUSE));
                Self::with_error_details(Code::ResourceExhausted, text, details)
            }
            TrialError::Failed(Failure::Refused { reason, detail }) => {
                let code = match reason {
                    NackReason::Checksum | NackReason::Format | NackReason::Golden => Code::InvalidArgument,
                    NackReason::Memory | NackReason::Disk => Code::ResourceExhausted,
                    // Its files should have been there before.
                    NackReason::Store | NackReason::Timeout => Code::FailedPrecondition,
                };
                Self::new(code, format!("{reason}: {detail}"))
            }
            TrialError::Failed(Failure::Later(_)) => Self::unavailable(text),
            TrialError::Failed(Failure::Absent(_)) => Self::failed_precondition(text),
            TrialError::Failed(Failure::Cancelled) => Self::cancelled(text),
        }
    }
}

/// A status that names the field at fault.
fn named(InvalidRequest { field, fault }: InvalidRequest) -> Status {
    let text = format!("{field}: {fault}");
    let details = ErrorDetails::with_bad_request_violation(field, fault.to_string());
    Status::with_error_details(Code::InvalidArgument, text, details)
}

#[cfg(test)]
mod tests {
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
    fn a_missing_checkpoint_has_its_reason_and_what_the_name_means() {
        let not_loaded = |alias| CallError::NotLoaded { model: "m".into(), digest: "abc".into(), alias };
        let status = Status::from(not_loaded(None));
        let info = status.get_details_error_info().unwrap();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!((&*info.reason, &*info.domain), ("CHECKPOINT_NOT_LOADED", "beige"));
        assert!(info.metadata.is_empty());

        let canary = CanarySeen { digest: "new".into(), per_mille: 50, salt: "s".into() };
        let alias = AliasSeen { model: "m".into(), digest: "def".into(), epoch: 7, canary: Some(canary) };
        let info = Status::from(not_loaded(Some(Box::new(alias)))).get_details_error_info().unwrap();
        assert_eq!((&*info.metadata["digest"], &*info.metadata["epoch"]), ("def", "7"));
        let said = ["canary_digest", "canary_per_mille", "canary_salt"].map(|key| &*info.metadata[key]);
        assert_eq!(said, ["new", "50", "s"]);
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
    fn a_trial_that_fails_says_whose_turn_it_is() {
        #[track_caller]
        fn check(failure: Failure, code: Code, message: &str) {
            let status = Status::from(TrialError::from(failure));
            assert_eq!((status.code(), status.message()), (code, message));
        }
        let refused = |reason| Failure::refused(reason, "d");
        check(refused(NackReason::Format), Code::InvalidArgument, "format: d");
        check(refused(NackReason::Checksum), Code::InvalidArgument, "checksum: d");
        check(refused(NackReason::Golden), Code::InvalidArgument, "golden: d");
        check(refused(NackReason::Memory), Code::ResourceExhausted, "memory: d");
        check(refused(NackReason::Disk), Code::ResourceExhausted, "disk: d");
        check(refused(NackReason::Store), Code::FailedPrecondition, "store: d");
        check(Failure::Later("d".into()), Code::Unavailable, "d");
        check(Failure::Absent("d".into()), Code::FailedPrecondition, "d");
        assert_eq!(Status::from(TrialError::from(Failure::Cancelled)).code(), Code::Cancelled);
        let busy = Status::from(TrialError::Busy);
        assert_eq!(busy.code(), Code::ResourceExhausted);
        assert!(busy.get_details_retry_info().is_some());
    }

    #[test]
    fn the_others_have_their_codes() {
        assert_eq!(Status::from(CallError::Deadline).code(), Code::DeadlineExceeded);
        assert_eq!(Status::from(CallError::Leaving).code(), Code::Unavailable);
    }
}
