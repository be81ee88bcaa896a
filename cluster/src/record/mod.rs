//! What the values in etcd say: JSON objects with a version field `v`, one kind of record a file.
//!
//! A reader takes the versions it knows and leaves the others alone, so that two releases can share a cluster;
//! fields it does not know are ignored. A change that an old reader would misunderstand gets a new `v`.
//!
//! Times are milliseconds since 1970, by the clock of whoever wrote them: they pace things and tell people, and
//! nothing's safety rests on them.

mod alias;
mod entry;
mod gateway;
mod golden;
mod job;
mod leader;
mod nack;
mod pin;
mod sample;
mod swap;
mod version;
mod worker;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use entry::{Raw, Record, Revision};

pub use alias::{Alias, Canary, Shadow};
pub(crate) use gateway::Seen;
pub use gateway::{Gateway, TrialSample};
pub use golden::{Golden, GoldenSource, MalformedGolden, Unfaithful};
pub use job::{
    Job, JobCurve, JobEvaluation, JobEvent, JobGate, JobOutcome, JobOwner, JobProgress, JobState, JobStep,
    Trainer,
};
pub use leader::Leader;
pub use nack::{Nack, NackReason};
pub use pin::Pin;
pub use sample::{Histogram, Sample, ShadowSample, Side, Spread};
pub use swap::{CanaryPlan, Comparison, Refusal, Swap, SwapEvent, SwapMode, SwapPlan, SwapState};
pub use version::{ModelKind, Version};
pub use worker::{Ready, Worker};

/// The version this release writes, and the only one it reads.
const VERSION: u64 = 1;

/// Why a value is skipped.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is not the JSON object it should be.
    #[error("malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// It is of a release that this one does not know.
    #[error("of version {0}, and this release reads version {VERSION}")]
    Version(u64),
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    v: u64,
    #[serde(flatten)]
    record: &'a T,
}

/// The value of `record`.
pub(crate) fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(&Versioned { v: VERSION, record }).expect("a record is always JSON")
}

/// Reads the version first: what a newer release wrote is called newer, not malformed.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    #[derive(Deserialize)]
    struct Version {
        v: u64,
    }
    let Version { v } = serde_json::from_slice(bytes)?;
    if v != VERSION {
        return Err(Unreadable::Version(v));
    }
    Ok(serde_json::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_of_a_later_release_are_ignored() {
        let alias: Alias =
            decode(br#"{"v":1,"digest":"d","epoch":3,"prev":null,"mood":{"share":0.1}}"#).unwrap();
        assert_eq!(alias, Alias::of("d", 3));
    }

    #[test]
    fn another_version_is_refused_by_its_number() {
        let read = decode::<Alias>(br#"{"v":2,"digests":["d"]}"#);
        assert!(matches!(read, Err(Unreadable::Version(2))), "{read:?}");
    }

    #[test]
    fn what_is_no_record_is_malformed() {
        for bytes in [
            b"".as_slice(),
            b"{}",
            b"[]",
            b"null",
            br#"{"v":1}"#,
            br#"{"v":"1","digest":"d","epoch":1}"#,
            br#"{"v":1,"digest":"d","epoch":-1}"#,
            b"\xff\xfe",
        ] {
            let read = decode::<Alias>(bytes);
            assert!(matches!(read, Err(Unreadable::Malformed(_))), "{bytes:?}: {read:?}");
        }
    }

    proptest! {
        #[test]
        fn ready_read_back_is_ready_written(boot_id in ".*", load_ms: u64, cosine in proptest::option::of(-1.0_f32..=1.0)) {
            let ready = Ready { boot_id, load_ms, golden_cosine: cosine };
            prop_assert_eq!(decode::<Ready>(&encode(&ready)).unwrap(), ready);
        }
    }
}
