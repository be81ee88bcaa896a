//! What can go wrong with etcd, by what the caller can do about it.

use std::error::Error as StdError;

use tls::Distrust;

use crate::name::InvalidName;
use crate::record::Unreadable;

/// Why something asked of etcd was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Correct the name.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),

    /// Try again later: no answer, not in time, or etcd has no leader at present.
    #[error("etcd is not available to {call}")]
    Unavailable {
        /// What was asked, as a verb and its object.
        call: &'static str,
        /// What the client says.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// Repair the certificates, ours or etcd's: no connection was made that both ends trust.
    #[error("there is no connection to etcd that both ends trust, to {call}")]
    Untrusted {
        /// What was asked, as a verb and its object.
        call: &'static str,
        /// Which end did not trust which.
        source: Distrust,
    },

    /// Repair etcd or the permissions in it: the same request will get the same answer.
    #[error("etcd refused to {call}")]
    Refused {
        /// What was asked, as a verb and its object.
        call: &'static str,
        /// What etcd says.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// List again: the watch ended, and what happened since the last list is not known.
    #[error("the watch ended: {reason}")]
    WatchEnded {
        /// What etcd says.
        reason: String,
    },

    /// Run the release that wrote this value, or remove it: it cannot be read here, and was left alone.
    #[error("cannot read {key}")]
    Unreadable {
        /// Where it is.
        key: String,
        /// What is the matter with it.
        source: Unreadable,
    },

    /// Try again: others changed the key each time between reading and writing it.
    #[error("{key} was being changed by others")]
    Contended {
        /// Where it is.
        key: String,
    },
}

impl Error {
    /// Sorts what the client says when it was asked to `call`.
    #[allow(clippy::wildcard_enum_match_arm, reason = "what has no source to tell is its own")]
    pub(crate) fn of(call: &'static str, error: etcd_client::Error) -> Self {
        // Trust is a matter of making a connection, before anything is asked.
        if let etcd_client::Error::TransportError(error) = &error
            && let Some(source) = Distrust::among(error)
        {
            return Self::Untrusted { call, source };
        }
        let refused = is_lost_lease(&error)
            || matches!(&error, etcd_client::Error::GRpcStatus(status) if refuses(status.code()));
        if refused {
            return Self::Refused { call, source: error.into() };
        }
        // Of the connection, or of a stream that ended. The client does not tell the sources of its own errors.
        let source = match error {
            etcd_client::Error::TransportError(error) => error.into(),
            etcd_client::Error::GRpcStatus(status) => status.into(),
            other => other.into(),
        };
        Self::Unavailable { call, source }
    }

    /// Whether etcd said that the lease in the request does not exist.
    pub(crate) fn says_lease_is_lost(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.downcast_ref().is_some_and(is_lost_lease))
    }
}

/// Whether an error is etcd's "no such lease".
fn is_lost_lease(error: &etcd_client::Error) -> bool {
    // Of the calls made by this crate only those that name a lease can be answered "not found". The other is how
    // the client renders a renewal that was answered with no time left.
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.code() == tonic::Code::NotFound)
        || matches!(error, etcd_client::Error::LeaseKeepAliveError(_))
}

/// Whether a status is an answer to the request rather than a failure to answer.
fn refuses(code: tonic::Code) -> bool {
    use tonic::Code;
    match code {
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable => false,
    }
}
