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
