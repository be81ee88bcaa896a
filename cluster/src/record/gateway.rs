//! What a gateway has seen, and what its calls still need.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::sample::Sample;

/// A gateway, as it describes itself. The leader lets go of a checkpoint by what these say, so one thing matters:
/// **an epoch and what is busy at it are of one moment.** A gateway that has taken in an epoch pins no new call to
/// what the name meant before, and lists that as busy until the last call pinned before has ended.
///
/// In etcd each model has an entry of its own, so that one about which nothing was said can be told from the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gateway {
    /// `host:port` of its public port, for people.
    pub address: String,
    /// The highest epoch it has taken in, by model. A model it has not seen is missing.
    #[serde(skip)]
    pub epochs: BTreeMap<String, u64>,
    /// Models and digests that calls in flight or open streams are pinned to, beside those that names mean now. What is
    /// said of a model without an epoch is not written.
    #[serde(skip)]
    pub busy: BTreeSet<(String, String)>,
    /// What it has seen of trials under way, by model.
    #[serde(skip)]
    pub trials: BTreeMap<String, TrialSample>,
}

/// What a gateway says of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The highest epoch it has taken in.
    pub(crate) epoch: u64,
    /// Digests that its calls are on.
    #[serde(default)]
    pub(crate) busy: BTreeSet<String>,
    /// Of the trial under way, if there is one.
    #[serde(default)]
    pub(crate) trial: Option<TrialSample>,
}

impl Gateway {
    /// What it says of each model that it has seen.
    pub(crate) fn seen(&self) -> impl Iterator<Item = (&str, Seen)> {
        self.epochs.iter().map(|(model, epoch)| {
            let busy = self.busy.iter().filter(|(of, _)| of == model).map(|(_, digest)| digest.clone());
            let trial = self.trials.get(model).cloned();
            (model.as_str(), Seen { epoch: *epoch, busy: busy.collect(), trial })
        })
    }

    /// Takes in what it says of `model`.
    pub(crate) fn take(&mut self, model: &str, seen: Seen) {
        let Seen { epoch, busy, trial } = seen;
        self.epochs.insert(model.to_owned(), epoch);
        self.busy.extend(busy.into_iter().map(|digest| (model.to_owned(), digest)));
        self.trials.extend(trial.map(|trial| (model.to_owned(), trial)));
    }
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
        let digest = |model: &str, digest: &str| (model.to_owned(), digest.to_owned());
        let gateway = Gateway {
            address: "10.0.0.1:8080".into(),
            epochs: BTreeMap::from([("m".to_owned(), 3), ("n".to_owned(), 1)]),
            busy: BTreeSet::from([digest("m", "d"), digest("m", "e"), digest("n", "d")]),
            trials: BTreeMap::from([("m".to_owned(), TrialSample { swap_id: "s".into(), sample })]),
        };
        let mut read = decode::<Gateway>(&encode(&gateway)).unwrap();
        assert_eq!(read, Gateway { address: gateway.address.clone(), ..Gateway::default() });
        for (model, seen) in gateway.seen() {
            read.take(model, decode(&encode(&seen)).unwrap());
        }
        assert_eq!(read, gateway);
    }

    #[test]
    fn what_another_release_says_of_itself_in_one_entry_counts_as_nothing_seen() {
        let whole = br#"{"v":1,"address":"a","epochs":{"m":3},"busy":["d"],"trials":{}}"#;
        let expected = Gateway { address: "a".into(), ..Gateway::default() };
        assert_eq!(decode::<Gateway>(whole).unwrap(), expected);
        let seen = Seen { epoch: 3, busy: BTreeSet::new(), trial: None };
        assert_eq!(decode::<Seen>(br#"{"v":1,"epoch":3}"#).unwrap(), seen);
    }
}
