//! That a checkpoint is to be kept.

use serde::{Deserialize, Serialize};

/// That a checkpoint is kept loaded and stored, whatever the model's name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Since when.
    pub since_unix_ms: u64,
}
