//! What to do when a worker has not answered a shard.
//!
//! Only a shard that has no answer is tried again, always on the checkpoint the call was pinned to. Some failures
//! cost nobody anything and are always tried again, or the death of one of two workers would fail calls: the
//! checkpoint is not loaded there, the connection could not be made, the worker is leaving, the worker died. A
//! busy worker is another matter: passing its shards on makes an overload worse, so that is done within a budget,
//! a tenth of all shards.
//!
//! A shard that was lost with its worker three times may be what kills them: it is given up.

use std::error::Error as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cluster::Name;
use proto::worker::v1::{AliasSeen, CanarySeen};
use tonic::{Code, ConnectError, Status};
use tonic_types::{ErrorInfo, StatusExt as _};

use crate::error::{CallError, Defect, Unreachable};

/// A shard is sent no more often than this.
const MOST_ATTEMPTS: u32 = 8;
/// And is lost with its worker no more often than this.
const MOST_LOSSES: u32 = 3;
/// A busy worker that does not say for how long is left alone for this long.
const USUAL_WAIT: Duration = Duration::from_secs(1);
/// What the caller of a shard that was given up is told to wait.
const COME_BACK: Duration = Duration::from_secs(1);

/// `reason` and `domain` of the `ErrorInfo` with which a worker says that it lacks a checkpoint.
const NOT_LOADED: (&str, &str) = ("CHECKPOINT_NOT_LOADED", "beige");

/// What became of a shard that was not answered.
#[derive(Debug)]
pub enum Failure {
    /// The worker does not have the checkpoint.
    Absent,
    /// No connection, so nothing was begun.
    Unsent,
    /// The connection broke, or the worker fell silent: it may have been begun.
    Lost,
    /// The worker takes nothing new.
    Leaving,
    /// The worker has too much to do.
    Busy(Status),
    /// The answer is no, here and anywhere.
    Refused(Status),
    /// Time was up.
    Late,
    /// A worker said what it should never say.
    Defect(Status),
}

impl Failure {
    /// Sorts the status of a call to a worker.
    ///
    /// A status that tonic made up here, for a broken connection, has a source; one that came over the wire has
    /// none.
    #[must_use]
    pub fn of(status: Status) -> Self {
        if status.source().is_some() {
            return if was_not_sent(&status) { Self::Unsent } else { Self::Lost };
        }
        match status.code() {
            Code::FailedPrecondition if says_not_loaded(&status) => Self::Absent,
            Code::Unavailable => Self::Leaving,
            Code::ResourceExhausted => Self::Busy(status),
            Code::DeadlineExceeded | Code::Cancelled => Self::Late,
            Code::InvalidArgument | Code::FailedPrecondition => Self::Refused(status),
            Code::Ok
            | Code::Unknown
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Self::Defect(status),
        }
    }

    /// The label of its metric.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Absent => "not_loaded",
            Self::Unsent => "not_connected",
            Self::Lost => "lost",
            Self::Leaving => "leaving",
            Self::Busy(_) => "busy",
            Self::Refused(_) => "refused",
            Self::Late => "late",
            Self::Defect(_) => "defect",
        }
    }
}

/// Whether tonic gave up before the first byte: there was no connection, or it closed (the worker says goodbye, say)
/// while the request waited for its turn. The latter is what its CANCELLED means; the deadline it is told is later
/// than ours.
fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    status.code() == Code::Cancelled
}

/// What the name means by a worker that refuses because it lacks the checkpoint, where it knows.
#[must_use]
pub fn alias(status: &Status, model: &Name) -> Option<AliasSeen> {
    let info = status.get_details_error_info().filter(is_not_loaded)?;
    let digest = info.metadata.get("digest")?.clone();
    let epoch = info.metadata.get("epoch")?.parse().ok()?;
    let canary = || {
        let said = |key| info.metadata.get(key).cloned();
        let per_mille = said("canary_per_mille")?.parse().ok()?;
        Some(CanarySeen { digest: said("canary_digest")?, per_mille, salt: said("canary_salt")? })
    };
    Some(AliasSeen { model: model.to_string(), digest, epoch, canary: canary() })
}

fn says_not_loaded(status: &Status) -> bool {
    status.get_details_error_info().is_some_and(|info| is_not_loaded(&info))
}

fn is_not_loaded(info: &ErrorInfo) -> bool {
    (info.reason.as_str(), info.domain.as_str()) == NOT_LOADED
}

/// How long a refusal asks to be left alone.
#[must_use]
pub fn retry_after(status: &Status) -> Duration {
    status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or(USUAL_WAIT)
}

/// What a caller wants of a busy cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// A call: to be told soon, so that it can go elsewhere.
    Refuse,
    /// An item of a stream: to wait, for the stream itself holds back its source.
    Wait,
}

/// Whether another worker, not yet tried, has the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// There is one.
    Somebody,
    /// There is none.
    Nobody,
}

/// What one shard has been through.
#[derive(Debug, Default)]
pub struct Tries {
    attempts: u32,
    losses: u32,
}

impl Tries {
    /// Whether this is the first try.
    #[must_use]
    pub fn fresh(&self) -> bool {
        self.attempts == 0
    }

    /// How long to wait before the next try.
    ///
    /// # Errors
    /// What to tell the caller where there should be none.
    pub fn after(
        &mut self,
        failure: Failure,
        elsewhere: Elsewhere,
        patience: Patience,
        budget: &Budget,
    ) -> Result<Duration, CallError> {
        self.attempts += 1;
        match failure {
            Failure::Refused(status) => Err(CallError::Refused(status)),
            Failure::Late => Err(CallError::Deadline),
            Failure::Defect(status) => Err(Defect(format!("a worker answered {status}")).into()),
            // A stream waits as long as its deadline allows.
            Failure::Busy(status) if patience == Patience::Wait => Ok(retry_after(&status).min(USUAL_WAIT)),
            Failure::Busy(status) => {
                let again =
                    elsewhere == Elsewhere::Somebody && self.attempts < MOST_ATTEMPTS && budget.spend();
                if again { Ok(Duration::ZERO) } else { Err(CallError::Refused(with_retry_info(status))) }
            }
            Failure::Lost => {
                self.losses += 1;
                if self.losses < MOST_LOSSES { self.once_more() } else { Err(given_up()) }
            }
            Failure::Absent | Failure::Unsent | Failure::Leaving => self.once_more(),
        }
    }

    fn once_more(&self) -> Result<Duration, CallError> {
        if self.attempts < MOST_ATTEMPTS { Ok(Duration::ZERO) } else { Err(given_up()) }
    }
}

fn given_up() -> CallError {
    let what =
        "the workers that took part of this call were lost or turned it away, again and again".to_owned();
    Unreachable { what, retry_after: COME_BACK }.into()
}

/// Every RESOURCE_EXHAUSTED says when to come back, also where the worker forgot.
fn with_retry_info(status: Status) -> Status {
    if status.get_details_retry_info().is_some() {
        return status;
    }
    let mut details = status.get_error_details();
    details.set_retry_info(Some(USUAL_WAIT));
    Status::with_error_details(status.code(), status.message(), details)
}

/// What may be spent beside what is needed: a share of what was sent, and a little to begin with.
#[derive(Debug)]
pub struct Budget {
    share: f64,
    saved: Mutex<f64>,
}

impl Budget {
    const MOST: f64 = 100.0;
    const FIRST: f64 = 10.0;

    /// A budget of this share.
    #[must_use]
    pub fn of(share: f64) -> Self {
        Self { share, saved: Mutex::new(Self::FIRST) }
    }

    /// Counts what is sent for the first time.
    pub fn earn(&self) {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        *saved = (*saved + self.share).min(Self::MOST);
    }

    /// Takes one; `false` where none is left.
    pub fn spend(&self) -> bool {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let enough = *saved >= 1.0;
        if enough {
            *saved -= 1.0;
        }
        enough
    }
}

/// Retries that may be spent on busy workers: a tenth of the shards.
impl Default for Budget {
    fn default() -> Self {
        Self::of(0.1)
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn not_loaded(reason: &str, domain: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, domain, std::collections::HashMap::new());
        Status::with_error_details(Code::FailedPrecondition, "not here", details)
    }

    #[test]
    fn a_status_is_sorted_by_what_can_be_done() {
        #[track_caller]
        fn check(status: Status, expected: &str) {
            assert_eq!(Failure::of(status).label(), expected);
        }
        check(not_loaded("CHECKPOINT_NOT_LOADED", "beige"), "not_loaded");
        check(not_loaded("CHECKPOINT_NOT_LOADED", "elsewhere"), "refused");
        check(not_loaded("OTHER", "beige"), "refused");
        check(Status::unavailable("leaving"), "leaving");
        check(Status::resource_exhausted("full"), "busy");
        check(Status::invalid_argument("inputs[0]"), "refused");
        check(Status::deadline_exceeded(""), "late");
        check(Status::cancelled(""), "late");
        check(Status::internal("oh"), "defect");
        check(Status::unknown("oh"), "defect");
    }

    #[test]
    fn who_lacks_a_checkpoint_may_say_what_the_name_means() {
        let model = Name::parse("m").unwrap();
        let said = |reason: &str, known: &[(&str, &str)]| {
            let known = known.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
            let known: std::collections::HashMap<_, _> = known.collect();
            let details = ErrorDetails::with_error_info(reason, "beige", known);
            alias(&Status::with_error_details(Code::FailedPrecondition, "not here", details), &model)
        };
        let seen = AliasSeen { model: "m".into(), digest: "d".into(), epoch: 7, canary: None };
        let known = [("digest", "d"), ("epoch", "7")];
        assert_eq!(said("CHECKPOINT_NOT_LOADED", &known), Some(seen.clone()));
        let canary = CanarySeen { digest: "e".into(), per_mille: 50, salt: "s".into() };
        let on_trial = [("canary_digest", "e"), ("canary_per_mille", "50"), ("canary_salt", "s")];
        let seen = AliasSeen { canary: Some(canary), ..seen };
        assert_eq!(said("CHECKPOINT_NOT_LOADED", &[known.as_slice(), &on_trial].concat()), Some(seen));
        assert_eq!(said("OTHER", &known), None);
        assert_eq!(said("CHECKPOINT_NOT_LOADED", &known[..1]), None);
        assert_eq!(said("CHECKPOINT_NOT_LOADED", &[("digest", "d"), ("epoch", "seven")]), None);
    }

    #[test]
    fn what_tonic_made_up_is_a_broken_connection() {
        let broken = Status::from_error(Box::new(std::io::Error::other("reset")));
        assert_eq!(Failure::of(broken).label(), "lost");
        let refused = ConnectError(Box::new(std::io::Error::other("refused")));
        assert_eq!(Failure::of(Status::from_error(Box::new(refused))).label(), "not_connected");
    }

    fn next(tries: &mut Tries, failure: Failure, elsewhere: Elsewhere) -> Result<Duration, Code> {
        tries
            .after(failure, elsewhere, Patience::Refuse, &Budget::default())
            .map_err(|error| Status::from(error).code())
    }

    #[test]
    fn what_costs_nobody_anything_is_tried_again() {
        for failure in [Failure::Absent, Failure::Unsent, Failure::Leaving, Failure::Lost] {
            assert_eq!(next(&mut Tries::default(), failure, Elsewhere::Nobody), Ok(Duration::ZERO));
        }
    }

    #[test]
    fn a_shard_that_may_be_killing_workers_is_given_up() {
        let mut tries = Tries::default();
        assert!(next(&mut tries, Failure::Lost, Elsewhere::Somebody).is_ok());
        assert!(next(&mut tries, Failure::Lost, Elsewhere::Somebody).is_ok());
        assert_eq!(next(&mut tries, Failure::Lost, Elsewhere::Somebody), Err(Code::Unavailable));
    }

    #[test]
    fn no_shard_is_tried_for_ever() {
        let mut tries = Tries::default();
        let ends = (0..100).find_map(|_| next(&mut tries, Failure::Leaving, Elsewhere::Somebody).err());
        assert_eq!((ends, tries.attempts), (Some(Code::Unavailable), MOST_ATTEMPTS));
    }

    #[test]
    fn a_final_answer_is_final() {
        let check = |failure, code| {
            assert_eq!(next(&mut Tries::default(), failure, Elsewhere::Somebody), Err(code));
        };
        check(Failure::Refused(Status::invalid_argument("inputs[0]")), Code::InvalidArgument);
        check(Failure::Late, Code::DeadlineExceeded);
        check(Failure::Defect(Status::internal("oh")), Code::Internal);
    }

    #[test]
    fn a_busy_worker_is_passed_over_within_the_budget() {
        let busy = || Failure::Busy(Status::resource_exhausted("full"));
        assert_eq!(next(&mut Tries::default(), busy(), Elsewhere::Somebody), Ok(Duration::ZERO));
        assert_eq!(next(&mut Tries::default(), busy(), Elsewhere::Nobody), Err(Code::ResourceExhausted));

        let budget = Budget::default();
        while budget.spend() {}
        let refused = Tries::default().after(busy(), Elsewhere::Somebody, Patience::Refuse, &budget);
        let status = Status::from(refused.unwrap_err());
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(USUAL_WAIT));
    }

    #[test]
    fn a_workers_own_retry_info_is_kept() {
        let wait = Duration::from_millis(123);
        let details = ErrorDetails::with_retry_info(Some(wait));
        let busy = || Status::with_error_details(Code::ResourceExhausted, "full", details.clone());
        let refused = Tries::default().after(
            Failure::Busy(busy()),
            Elsewhere::Nobody,
            Patience::Refuse,
            &Budget::default(),
        );
        assert_eq!(retry_after(&Status::from(refused.unwrap_err())), wait);
        let waits = Tries::default().after(
            Failure::Busy(busy()),
            Elsewhere::Nobody,
            Patience::Wait,
            &Budget::default(),
        );
        assert_eq!(waits.unwrap(), wait);
    }

    #[test]
    fn the_budget_is_a_tenth_of_the_shards() {
        let budget = Budget::default();
        while budget.spend() {}
        for _ in 0..200 {
            budget.earn();
        }
        let spent = (0..100).take_while(|_| budget.spend()).count();
        assert!((19..=20).contains(&spent), "{spent}");
    }
}
