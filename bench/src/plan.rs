//! What is asked of whom, how fast and for how long.

use std::time::Duration;

use proto::v1::{EmbedRequest, RerankRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::Arrivals;

/// One measurement.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections to the gateway that calls are spread over in turn, at least 1.
    pub connections: Vec<Channel>,
    /// What each call shows as its `authorization`.
    pub authorization: Option<MetadataValue<Ascii>>,
    /// What each call asks.
    pub call: Call,
    /// Texts (documents) per call, at least 1.
    pub batch: usize,
    /// When calls are made.
    pub pacing: Pacing,
    /// Load before measuring.
    pub warmup: Duration,
    /// How long is measured.
    pub window: Duration,
    /// Longest wait for one answer, from the moment the call was due.
    pub timeout: Duration,
}

/// What each call asks: a message that is complete but for its texts.
#[derive(Clone, Debug)]
pub enum Call {
    /// `inputs` are filled from the corpus.
    Embed(EmbedRequest),
    /// `query` and `documents` are filled from the corpus.
    Rerank(RerankRequest),
}

impl Call {
    /// The model asked for.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Embed(request) => &request.model,
            Self::Rerank(request) => &request.model,
        }
    }
}

/// When calls are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pacing {
    /// A caller makes its next call when the last is answered.
    Closed {
        /// Callers, at least 1.
        concurrency: usize,
    },
    /// Calls fall due by a schedule, whatever becomes of those before.
    Open {
        /// Calls per second on average, above zero.
        rate: f64,
        /// How they are spread.
        arrivals: Arrivals,
        /// Makes a schedule repeatable.
        seed: u64,
        /// Calls open at once at most. Beyond it calls are sent late, and their lateness is counted as
        /// latency.
        outstanding: usize,
    },
}
