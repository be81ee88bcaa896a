//! Why a call is not answered, by what the gateway can do about it.

use std::time::Duration;

use crate::call::Failure;
use crate::load::{Overloaded, Shortage};
use crate::tokenise::Unread;
use crate::wire::{Fault, InvalidRequest};
use model::TokenizeError;
use proto::worker::v1::AliasSeen;

/// When to come back to a device that has no memory for an input.
const MEMORY_PAUSE: Duration = Duration::from_secs(1);

/// Why a call is not answered.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Repair the request.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// Ask another worker, or for what the name means now.
    #[error("checkpoint {digest:?} is not loaded here")]
    NotLoaded {
        /// The model's name that was asked for.
        model: String,
        /// The checkpoint that was.
        digest: String,
        /// What the name means, as far as it is known here.
        alias: Option<Box<AliasSeen>>,
    },
    /// Come back later, or ask another worker.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Allow more time.
    #[error("the deadline passed before the answer was there")]
    Deadline,
    /// Ask another worker now.
    #[error("the worker is leaving")]
    Leaving,
    /// Tell us.
    #[error(transparent)]
    Bug(#[from] Defect),
}

/// Something that should not happen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Defect {
    /// The input it happened to, as the caller knows it.
    pub field: String,
    /// What happened, for us.
    pub reason: String,
}

impl CallError {
    /// A text that the tokenizer did not read; `field` names it by its position in the call.
    pub(crate) fn unread(unread: Unread, field: impl Fn(usize) -> String) -> Self {
        match unread {
            Unread::Text(at, TokenizeError::TooLong { tokens, max }) => {
                InvalidRequest { field: field(at), fault: Fault::TooLong { tokens, max } }.into()
            }
            Unread::Text(at, TokenizeError::Failed(reason)) => Defect { field: field(at), reason }.into(),
            Unread::Panicked(at) => {
                let reason = "the tokenizer panicked on it, or on one of those that follow".to_owned();
                Defect { field: field(at), reason }.into()
            }
            Unread::Stopped => Self::Leaving,
        }
    }

    /// A text that the device has no row for; `field` names it, and it has so many `tokens`.
    pub(crate) fn failed(failure: Failure, field: String, tokens: usize) -> Self {
        match failure {
            Failure::Expired => Self::Deadline,
            Failure::Stopped => Self::Leaving,
            Failure::OutOfMemory => {
                Overloaded { why: Shortage::Memory { tokens }, retry_after: MEMORY_PAUSE }.into()
            }
            Failure::Poisonous(reason) => Defect { field, reason }.into(),
        }
    }
}
