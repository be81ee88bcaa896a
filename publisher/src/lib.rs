//! A checkpoint's way to a gateway: which files of a directory make it up, their hashes, the vectors that its publisher
//! computed, the stream that uploads what is missing, and how long a server that is busy or away is waited for.
//!
//! Used by whoever publishes: the command line, and trainers.

mod files;
mod golden;
mod makes;
mod patience;
mod upload;

pub use files::{find, hash};
pub use golden::{golden, golden_line};
pub use patience::{is_lost, persist, timed_out};
pub use upload::{Cut, News, Outgoing, attempt};

/// Why a directory is not published, on this side.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It holds no checkpoint that can be.
    #[error("{0}")]
    NoCheckpoint(String),
    /// A file of golden samples is not one: which file, which line, and why.
    #[error("{0}")]
    NoSamples(String),
    /// The server does not keep to the protocol.
    #[error("the server does not keep to the protocol: {0}")]
    Protocol(String),
    /// This machine did not play along.
    #[error("{0:#}")]
    Local(#[from] anyhow::Error),
}
