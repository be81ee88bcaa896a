//! That a worker cannot run a checkpoint.

use std::fmt;

use serde::{Deserialize, Serialize};

/// That a worker tried to get a checkpoint ready and could not. It lasts an hour: whatever was wrong may be mended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nack {
    /// What kind of thing was wrong.
    pub reason: NackReason,
    /// What happened, for people.
    pub detail: String,
    /// The swap for which it was tried; it says nothing about a later one. None where the name meant it already.
    #[serde(default)]
    pub swap_id: Option<String>,
    /// The [`Worker::boot_id`](super::Worker::boot_id) of the process that tried; it says nothing about a later one.
    pub boot_id: String,
    /// Whether the old checkpoint had been let go before the try, as in a wave.
    #[serde(default)]
    pub made_room: bool,
}

/// Why a worker cannot run a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NackReason {
    /// A file is not what the manifest says.
    Checksum,
    /// It is not a checkpoint that this release can load.
    Format,
    /// Its vectors are not those that were recorded when it was published.
    Golden,
    /// It does not fit into the device's memory beside what is loaded.
    Memory,
    /// Its files do not fit onto the disk.
    Disk,
    /// The store does not have it, or does not answer.
    Store,
    /// It was not ready in time. Also written by the leader for who never said anything.
    Timeout,
}

impl NackReason {
    /// As in the record and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checksum => "checksum",
            Self::Format => "format",
            Self::Golden => "golden",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Store => "store",
            Self::Timeout => "timeout",
        }
    }
}

impl fmt::Display for NackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_written_as_they_are_shown() {
        for reason in [
            NackReason::Checksum,
            NackReason::Format,
            NackReason::Golden,
            NackReason::Memory,
            NackReason::Disk,
            NackReason::Store,
            NackReason::Timeout,
        ] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.to_string());
        }
    }
}
