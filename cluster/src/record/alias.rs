//! What a model's name means, and which checkpoints that keeps loaded.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// What a model's name means at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The checkpoint that answers.
    pub digest: String,
    /// From 1, and one more at every change of who is answered by what. It never goes back: of two meanings the one of
    /// the higher epoch holds.
    pub epoch: u64,
    /// The checkpoint that answered before and is still loaded: a rollback goes there.
    #[serde(default)]
    pub prev: Option<String>,
    /// The swap that last changed who is answered by what; none where a worker brought the checkpoint with it.
    #[serde(default)]
    pub swap_id: Option<String>,
    /// Some callers are answered by another checkpoint.
    #[serde(default)]
    pub canary: Option<Canary>,
    /// Some calls are tried on another checkpoint too.
    #[serde(default)]
    pub shadow: Option<Shadow>,
    /// Checkpoints that answer nobody any more, and stay loaded until no call is left on them.
    #[serde(default)]
    pub leaving: BTreeSet<String>,
}

/// A part of the callers, answered by another checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// The checkpoint that answers them.
    pub digest: String,
    /// How many of a thousand callers.
    pub per_mille: u32,
    /// Mixed into the hash of a caller, so that not every swap tries itself on the same callers.
    pub salt: String,
}

/// A part of the calls, tried on another checkpoint after they were answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// The checkpoint they are tried on.
    pub digest: String,
    /// How many of a thousand calls.
    pub per_mille: u32,
}

impl Alias {
    /// A name that means `digest` at `epoch`, and nothing else.
    #[must_use]
    pub fn of(digest: impl Into<String>, epoch: u64) -> Self {
        Self {
            digest: digest.into(),
            epoch,
            prev: None,
            swap_id: None,
            canary: None,
            shadow: None,
            leaving: BTreeSet::new(),
        }
    }

    /// Whether this cannot have been followed by `other`: epochs rise, and none has two meanings.
    pub(crate) fn overtakes(&self, other: &Self) -> bool {
        let answers = |alias: &Self| (alias.digest.clone(), alias.canary.clone());
        self.epoch > other.epoch || (self.epoch == other.epoch && answers(self) != answers(other))
    }

    /// Every checkpoint that workers keep loaded because of the name, each once.
    #[must_use]
    pub fn keeps(&self) -> BTreeSet<&str> {
        let Self { digest, epoch: _, prev, swap_id: _, canary, shadow, leaving } = self;
        let prev = prev.iter().map(String::as_str);
        let canary = canary.iter().map(|canary| canary.digest.as_str());
        let shadow = shadow.iter().map(|shadow| shadow.digest.as_str());
        let leaving = leaving.iter().map(String::as_str);
        std::iter::once(digest.as_str()).chain(prev).chain(canary).chain(shadow).chain(leaving).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{decode, encode};

    fn alias() -> impl Strategy<Value = Alias> {
        let canary = (".*", any::<u32>(), ".*");
        let canary = canary.prop_map(|(digest, per_mille, salt)| Canary { digest, per_mille, salt });
        let shadow = (".*", any::<u32>()).prop_map(|(digest, per_mille)| Shadow { digest, per_mille });
        let rest = (proptest::option::of(canary), proptest::option::of(shadow));
        let leaving = proptest::collection::btree_set(".*", 0..3);
        (".*", any::<u64>(), any::<Option<String>>(), any::<Option<String>>(), rest, leaving).prop_map(
            |(digest, epoch, prev, swap_id, (canary, shadow), leaving)| Alias {
                digest,
                epoch,
                prev,
                swap_id,
                canary,
                shadow,
                leaving,
            },
        )
    }

    proptest! {
        #[test]
        fn an_alias_read_back_is_the_alias_written(alias in alias()) {
            prop_assert_eq!(decode::<Alias>(&encode(&alias)).unwrap(), alias);
        }
    }

    #[test]
    fn a_name_keeps_all_that_may_have_callers() {
        let alias = Alias {
            prev: Some("p".into()),
            canary: Some(Canary { digest: "c".into(), per_mille: 10, salt: "s".into() }),
            shadow: Some(Shadow { digest: "c".into(), per_mille: 10 }),
            leaving: BTreeSet::from(["l".to_owned()]),
            ..Alias::of("d", 1)
        };
        assert_eq!(alias.keeps(), BTreeSet::from(["c", "d", "l", "p"]));
        assert_eq!(Alias::of("d", 1).keeps(), BTreeSet::from(["d"]));
    }
}
