//! Workers, and what they have loaded.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Unreadable, decode, encode};
use crate::name::WorkerId;

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
    /// The models that it may serve; any, where there is no list. Who may not serve a model has no say in its swaps.
    pub serves: Option<BTreeSet<String>>,
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
    #[serde(default)]
    serves: Option<BTreeSet<String>>,
}

impl Worker {
    /// Whether it may serve `model`.
    #[must_use]
    pub fn may_serve(&self, model: &str) -> bool {
        self.serves.as_ref().is_none_or(|models| models.contains(model))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let Self { id: _, address, boot_id, device, memory, draining, serves } = self.clone();
        encode(&WorkerRecord { address, boot_id, device, memory, draining, serves })
    }

    pub(crate) fn decode(id: WorkerId, bytes: &[u8]) -> Result<Self, Unreadable> {
        let WorkerRecord { address, boot_id, device, memory, draining, serves } = decode(bytes)?;
        Ok(Self { id, address, boot_id, device, memory, draining, serves })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> Worker {
        Worker {
            id: WorkerId::parse("w1").unwrap(),
            address: "10.0.0.7:7001".into(),
            boot_id: "b".into(),
            device: "cpu".into(),
            memory: 1 << 33,
            draining: false,
            serves: Some(BTreeSet::from(["m".to_owned()])),
        }
    }

    #[test]
    fn a_worker_is_written_as_the_design_says() {
        let json: serde_json::Value = serde_json::from_slice(&worker().encode()).unwrap();
        let expected = serde_json::json!({
            "v": 1, "address": "10.0.0.7:7001", "boot_id": "b", "device": "cpu", "memory": 1_u64 << 33,
            "draining": false, "serves": ["m"],
        });
        assert_eq!(json, expected);
        assert_eq!(Worker::decode(worker().id, &worker().encode()).unwrap(), worker());
    }

    #[test]
    fn a_worker_of_an_earlier_release_may_serve_anything() {
        let value = br#"{"v":1,"address":"a:1","boot_id":"b","device":"cpu","memory":1}"#;
        let worker = Worker::decode(worker().id, value).unwrap();
        assert_eq!((worker.may_serve("m"), worker.draining), (true, false));
    }

    #[test]
    fn a_list_of_models_leaves_the_others_out() {
        assert!(worker().may_serve("m"));
        assert!(!worker().may_serve("n"));
    }
}
