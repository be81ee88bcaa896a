//! The time, as others mean it and as this process counts it.

use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::swap::Moment;

/// Milliseconds since 1970; 0 on a machine that believes to be before that.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Counts from when it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment { unix_ms: unix_ms(), uptime: self.started.elapsed() }
    }
}
