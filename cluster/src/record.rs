//! What the values in etcd say: JSON objects with a version field `v`.
//!
//! A reader takes the versions it knows and leaves the others alone, so that two releases can share a cluster;
//! fields it does not know are ignored. A change that an old reader would misunderstand gets a new `v`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::name::WorkerId;

/// The version this release writes, and the only one it reads.
const VERSION: u64 = 1;

/// A worker, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Which one.
    pub id: WorkerId,
    /// `host:port` at which gateways reach it.
    pub address: String,
    /// Chosen at random at its start: another value means another process, with nothing loaded yet.
    pub boot_id: String,
    /// The device it runs on, for people: `cpu`, `cuda:0`.
    pub device: String,
    /// Memory of the device, in bytes.
    pub memory: u64,
    /// It is about to leave: send it nothing new, and do not be surprised when it is gone.
    pub draining: bool,
}

/// [`Worker`] without its id, which is in the key.
#[derive(Serialize, Deserialize)]
struct WorkerRecord {
    address: String,
    boot_id: String,
    device: String,
    memory: u64,
    #[serde(default)]
    draining: bool,
}

impl Worker {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { id: _, address, boot_id, device, memory, draining } = self.clone();
        encode(&WorkerRecord { address, boot_id, device, memory, draining })
    }

    pub(crate) fn decode(id: WorkerId, bytes: &[u8]) -> Result<Self, Unreadable> {
        let WorkerRecord { address, boot_id, device, memory, draining } = decode(bytes)?;
        Ok(Self { id, address, boot_id, device, memory, draining })
    }
}

/// That a worker has a checkpoint loaded, and that a warm-up batch came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// The [`Worker::boot_id`] of the process that loaded it. A view leaves out what another process left behind.
    pub boot_id: String,
    /// How long loading and warming took, in milliseconds.
    pub load_ms: u64,
    /// Lowest cosine between the checkpoint's golden vectors and this worker's; none where it has no golden inputs.
    #[serde(default)]
    pub golden_cosine: Option<f32>,
}

/// What a model's name means at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The checkpoint that answers.
    pub digest: String,
    /// How many times the alias was moved, from 1. It never goes back.
    pub epoch: u64,
    /// The checkpoint that answered before, if any.
    #[serde(default)]
    pub prev: Option<String>,
}

impl Alias {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

impl Ready {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }
}

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

fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(&Versioned { v: VERSION, record }).expect("a flat record is always JSON")
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

    fn worker() -> Worker {
        Worker {
            id: WorkerId::parse("w1").unwrap(),
            address: "10.0.0.7:7001".into(),
            boot_id: "b".into(),
            device: "cpu".into(),
            memory: 1 << 33,
            draining: false,
        }
    }

    #[test]
    fn a_worker_is_written_as_the_design_says() {
        let json: serde_json::Value = serde_json::from_slice(&worker().encode()).unwrap();
        let expected = serde_json::json!({
            "v": 1, "address": "10.0.0.7:7001", "boot_id": "b", "device": "cpu", "memory": 1_u64 << 33,
            "draining": false,
        });
        assert_eq!(json, expected);
        assert_eq!(Worker::decode(worker().id, &worker().encode()).unwrap(), worker());
    }

    #[test]
    fn fields_of_a_later_release_are_ignored() {
        let alias: Alias =
            decode(br#"{"v":1,"digest":"d","epoch":3,"prev":null,"swap_id":"s","canary":{"share":0.1}}"#)
                .unwrap();
        assert_eq!(alias, Alias { digest: "d".into(), epoch: 3, prev: None });
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
        fn an_alias_read_back_is_the_alias_written(digest in ".*", epoch: u64, prev: Option<String>) {
            let alias = Alias { digest, epoch, prev };
            prop_assert_eq!(decode::<Alias>(&alias.encode()).unwrap(), alias);
        }

        #[test]
        fn ready_read_back_is_ready_written(boot_id in ".*", load_ms: u64, cosine in proptest::option::of(-1.0_f32..=1.0)) {
            let ready = Ready { boot_id, load_ms, golden_cosine: cosine };
            prop_assert_eq!(decode::<Ready>(&ready.encode()).unwrap(), ready);
        }
    }
}
