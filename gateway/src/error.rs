//! Why a call is not answered, by what the caller can do about it.

use std::time::Duration;

use cluster::Name;
use tonic::Status;

use crate::admit::Overloaded;
use crate::wire::InvalidRequest;

/// Why a call is not answered.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Repair the request.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// Ask for another model.
    #[error("there is no model {0}")]
    UnknownModel(Name),
    /// Ask for another checkpoint, or insist on less.
    #[error(transparent)]
    NotServed(#[from] NotServed),
    /// Come back later.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Try again now.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// Allow more time.
    #[error("the deadline passed before all of the answer was there")]
    Deadline,
    /// As the worker says, in the caller's terms.
    #[error("a worker refused: {0}")]
    Refused(Status),
    /// Tell us.
    #[error(transparent)]
    Bug(#[from] Defect),
}

/// Why a call that changes models is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// Repair the request.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// Name something else.
    #[error("{sentence}")]
    NotFound {
        /// `model`, `version` or `swap`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// Why it cannot be had.
        sentence: String,
    },
    /// Change what stands in the way, then ask again.
    #[error(transparent)]
    Unmet(#[from] Unmet),
    /// Ask again: others were changing it at the same time.
    #[error("{0} was being changed by others at the same time")]
    Contended(String),
    /// Come back later.
    #[error("{0}")]
    Full(&'static str),
    /// Try again now.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// As a worker says, in the caller's terms.
    #[error("a worker refused: {0}")]
    Refused(Status),
    /// Tell us.
    #[error(transparent)]
    Bug(#[from] Defect),
}

/// Something that has to be so before the call can be carried out, and is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Unmet {
    /// What kind of thing, for programs.
    pub what: &'static str,
    /// Which one.
    pub subject: String,
    /// What is the matter, and what can be done.
    pub sentence: String,
}

impl From<cluster::Error> for ManageError {
    fn from(error: cluster::Error) -> Self {
        match error {
            error @ (cluster::Error::Unavailable { .. } | cluster::Error::Untrusted { .. }) => {
                tracing::warn!(error = with_causes(&error), "etcd did not do as asked");
                unreachable(error.to_string()).into()
            }
            cluster::Error::Contended { key } => Self::Contended(key),
            cluster::Error::Unreadable { key, source: _ } => {
                let sentence = format!("{key} was written by a newer release, which has to be asked");
                Unmet { what: "RELEASE", subject: key, sentence }.into()
            }
            // Names were parsed, and nothing is watched here: what is left is for who runs etcd.
            error @ (cluster::Error::InvalidName(_)
            | cluster::Error::Refused { .. }
            | cluster::Error::WatchEnded { .. }) => Defect(with_causes(&error)).into(),
        }
    }
}

impl From<store::Error> for ManageError {
    fn from(error: store::Error) -> Self {
        match error {
            error @ (store::Error::Unreachable { .. } | store::Error::Busy) => {
                tracing::warn!(error = with_causes(&error), "the store did not do as asked");
                unreachable(error.to_string()).into()
            }
            error @ store::Error::Denied { .. } => {
                tracing::warn!(error = with_causes(&error), "the store refuses");
                let sentence = format!("{error}: correct the credentials of the gateway");
                Unmet { what: "STORE", subject: "store".to_owned(), sentence }.into()
            }
            error @ (store::Error::Missing(_)
            | store::Error::Checksum { .. }
            | store::Error::Format { .. }
            | store::Error::Disk { .. }
            | store::Error::Room { .. }) => Defect(with_causes(&error)).into(),
        }
    }
}

/// Something that is missing for the moment.
pub(crate) fn unreachable(what: String) -> Unreachable {
    Unreachable { what, retry_after: Duration::from_secs(1) }
}

/// An error, and what it came of.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// The checkpoint that the caller insists on cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// No worker has it.
    #[error("model {model} has no checkpoint {digest} that is loaded")]
    NotLoaded {
        /// The alias.
        model: Name,
        /// The checkpoint asked for.
        digest: String,
    },
    /// The alias means another one.
    #[error("model {model} is checkpoint {found}, not the required {required}")]
    OtherDigest {
        /// The alias.
        model: Name,
        /// What it means.
        found: String,
        /// What was required.
        required: String,
    },
    /// Its vectors cannot be compared with those the caller has.
    #[error("model {model} is of index space {found:?}, not the required {required:?}")]
    OtherSpace {
        /// The alias.
        model: Name,
        /// Its index space.
        found: String,
        /// What was required, cut where it is long.
        required: String,
    },
    /// It is to be let go, and waits only for the calls that are on it.
    #[error("checkpoint {digest} of model {model} is being retired")]
    Leaving {
        /// The alias.
        model: Name,
        /// The checkpoint asked for.
        digest: String,
    },
    /// It was let go everywhere, and the name means another one.
    #[error("checkpoint {digest} of model {model} has been retired: begin anew, on what the name means now")]
    Retired {
        /// The alias.
        model: Name,
        /// The checkpoint that was.
        digest: String,
    },
    /// The name has moved since the stream began.
    #[error("the stream is about epoch {found} of model {model}, and this request requires epoch {required}")]
    EarlierEpoch {
        /// The alias.
        model: Name,
        /// The epoch at which the stream began.
        found: u64,
        /// What was required.
        required: u64,
    },
    /// A stream is about one checkpoint.
    #[error("the stream is about {found}, and this request asks for {asked}")]
    OtherThanStream {
        /// What the first request fixed.
        found: String,
        /// What this one asks for.
        asked: String,
    },
}

/// Nobody is there to do it at present.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Unreachable {
    /// What is missing.
    pub what: String,
    /// When to try again.
    pub retry_after: Duration,
}

/// Something that cannot happen, of ours or of a worker's.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Defect(pub String);
