//! One call as the scheduler and the device see it, and the texts it is made of.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use model::Sequence;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::Span;

/// Who goes first when the device is busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Someone is waiting.
    Interactive,
    /// A job: it yields to interactive calls, up to a bounded wait.
    Bulk,
}

/// What all texts of a call have in common.
#[derive(Debug)]
pub struct Call {
    /// Numbers of its texts in the order of arrival, unique in the process.
    pub serials: Range<u64>,
    /// The name under which the checkpoint was loaded, for people.
    pub model: Arc<str>,
    /// The checkpoint to run.
    pub digest: Arc<str>,
    /// Who asked; work is shared fairly between callers.
    pub caller: Arc<str>,
    /// How urgent it is.
    pub class: Class,
    /// When its texts began to wait.
    pub arrived: Instant,
    /// When its answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Takes one answer per text, and has room for all of them. Closed once the caller is gone.
    pub answers: mpsc::Sender<Answer>,
    /// The span of the call; the spans of its batches belong to it.
    pub span: Span,
}

impl Call {
    /// Whether its time is over.
    #[must_use]
    pub fn is_expired(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether nobody waits for it any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.answers.is_closed()
    }

    /// How long its texts have waited.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.arrived)
    }
}

/// One text of a call, or one pair, as the model reads it.
#[derive(Debug)]
pub struct Entry {
    /// The call it belongs to.
    pub call: Arc<Call>,
    /// Its number in [`Call::serials`].
    pub serial: u64,
    /// What the model reads.
    pub sequence: Sequence,
}

impl Entry {
    /// Tells the caller. A caller who is gone is not told.
    pub fn answer(&self, outcome: Result<Vec<f32>, Failure>) {
        // The distance is below the number of texts in a call.
        #[allow(clippy::cast_possible_truncation)]
        let index = (self.serial - self.call.serials.start) as usize;
        // There is room for every text of the call, so this fails only when the call is over.
        let _ = self.call.answers.try_send(Answer { index, outcome });
    }
}

/// What became of one text.
#[derive(Debug)]
pub struct Answer {
    /// Its position in the call.
    pub index: usize,
    /// The row the model made of it, `[width]`.
    pub outcome: Result<Vec<f32>, Failure>,
}

/// Why a text has no row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Its deadline passed while it waited.
    #[error("the deadline passed in the queue")]
    Expired,
    /// It does not fit into the device's memory, even alone.
    #[error("the device is out of memory")]
    OutOfMemory,
    /// The model fails on this very text.
    #[error("{0}")]
    Poisonous(String),
    /// The device has ended.
    #[error("the device has ended")]
    Stopped,
}
