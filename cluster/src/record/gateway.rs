//! What a gateway has seen, and what its calls still need.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::sample::Sample;

/// A gateway, as it describes itself. The leader lets go of a checkpoint by what these say, so one thing matters:
/// **an epoch and what is busy at it are of one moment.** A gateway that has taken in an epoch pins no new call to
/// what the name meant before, and lists that as busy until the last call pinned before has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gateway {
    /// `host:port` of its public port, for people.
    pub address: String,
    /// The highest epoch it has taken in, by model. A model it has not seen is missing.
    #[serde(default)]
    pub epochs: BTreeMap<String, u64>,
    /// Checkpoints that calls in flight or open streams are pinned to, beside those that names mean now.
    #[serde(default)]
    pub busy: BTreeSet<String>,
    /// What it has seen of trials under way, by model.
    #[serde(default)]
    pub trials: BTreeMap<String, TrialSample>,
}

/// What one gateway has seen of a trial so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialSample {
    /// The swap it belongs to.
    pub swap_id: String,
    /// Counted since the trial began, or since the gateway did.
    pub sample: Sample,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{decode, encode};

    #[test]
    fn a_gateway_read_back_is_the_gateway_written() {
        let mut sample = Sample::default();
        sample.old.record(12.5, true);
        sample.new.record(1e-9, false);
        sample.shadow.record(0.25);
        sample.shadow.cosine.record(0.999);
        let gateway = Gateway {
            address: "10.0.0.1:8080".into(),
            epochs: BTreeMap::from([("m".to_owned(), 3)]),
            busy: BTreeSet::from(["d".to_owned()]),
            trials: BTreeMap::from([("m".to_owned(), TrialSample { swap_id: "s".into(), sample })]),
        };
        assert_eq!(decode::<Gateway>(&encode(&gateway)).unwrap(), gateway);
        assert_eq!(decode::<Gateway>(br#"{"v":1,"address":""}"#).unwrap(), Gateway::default());
    }
}
