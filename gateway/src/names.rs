//! What models' names mean, as far as this process has heard.
//!
//! etcd tells of all names, and workers of those they serve: so a gateway that is cut off from etcd still learns when
//! a name moves. Whoever has the higher epoch is right, and within a process no name goes back: not when a worker is
//! behind, and not when etcd itself was put back to what it was yesterday.

use std::collections::BTreeMap;

use cluster::{Alias, Canary};
use proto::worker::v1::{AliasSeen, CanarySeen};

/// The newest word on each name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names(BTreeMap<String, Alias>);

impl Names {
    /// Takes in what etcd says. It knows more of an alias than workers do, so at the same epoch its word is taken, as
    /// long as it is about the same checkpoint: no epoch means two.
    pub fn read(&mut self, aliases: &BTreeMap<String, Alias>) {
        for (name, alias) in aliases {
            match self.0.get_mut(name) {
                None => {
                    self.0.insert(name.clone(), alias.clone());
                }
                Some(known) if is_newer(known, alias) => {
                    if known.digest != alias.digest {
                        let Alias { digest, epoch, .. } = alias;
                        tracing::info!(model = name, digest, epoch, "a name has moved");
                    }
                    known.clone_from(alias);
                }
                Some(known) if known.epoch == alias.epoch && known.digest == alias.digest => {
                    known.clone_from(alias);
                }
                Some(known) => {
                    let (epoch, seen) = (alias.epoch, known.epoch);
                    // A worker was quicker to tell, or etcd was put back and is being mended.
                    tracing::debug!(model = name, epoch, seen, "etcd has an epoch that is over");
                }
            }
        }
    }

    /// Takes in what a worker says; answers whether it is news.
    pub fn hear(&mut self, seen: &AliasSeen) -> bool {
        let AliasSeen { model, digest, epoch, canary } = seen.clone();
        let canary = canary.map(|CanarySeen { digest, per_mille, salt }| Canary { digest, per_mille, salt });
        let alias = Alias { canary, ..Alias::of(digest, epoch) };
        let news = self.0.get(&model).is_none_or(|known| is_newer(known, &alias));
        if news {
            tracing::info!(model, digest = alias.digest, epoch, "a worker says that a name has moved");
            self.0.insert(model, alias);
        }
        news
    }

    /// Takes in all that a worker's report says; answers whether any of it is news.
    pub fn hear_all(&mut self, seen: &[AliasSeen]) -> bool {
        seen.iter().filter(|seen| self.hear(seen)).count() > 0
    }

    /// All names that were ever heard of.
    #[must_use]
    pub fn all(&self) -> &BTreeMap<String, Alias> {
        &self.0
    }
}

fn is_newer(known: &Alias, alias: &Alias) -> bool {
    alias.epoch > known.epoch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alias(digest: &str, epoch: u64, prev: Option<&str>) -> Alias {
        Alias { prev: prev.map(str::to_owned), ..Alias::of(digest, epoch) }
    }

    fn seen(digest: &str, epoch: u64) -> AliasSeen {
        AliasSeen { model: "m".into(), digest: digest.into(), epoch, canary: None }
    }

    fn etcd(alias: Alias) -> BTreeMap<String, Alias> {
        [("m".to_owned(), alias)].into()
    }

    #[track_caller]
    fn check(names: &Names, digest: &str, epoch: u64) {
        let alias = &names.all()["m"];
        assert_eq!((alias.digest.as_str(), alias.epoch), (digest, epoch));
    }

    #[test]
    fn the_higher_epoch_is_right_whoever_has_it() {
        let mut names = Names::default();
        assert!(names.hear(&seen("a", 1)));
        names.read(&etcd(alias("b", 3, Some("a"))));
        check(&names, "b", 3);
        assert!(!names.hear(&seen("a", 2)), "a worker is behind");
        check(&names, "b", 3);
        assert!(names.hear(&seen("c", 4)));
        names.read(&etcd(alias("b", 3, Some("a"))));
        check(&names, "c", 4);
    }

    #[test]
    fn etcd_knows_more_of_the_same_epoch_and_nothing_else_of_it() {
        let mut names = Names::default();
        names.hear(&seen("b", 2));
        names.read(&etcd(alias("b", 2, Some("a"))));
        assert_eq!(names.all()["m"].prev.as_deref(), Some("a"));
        assert!(!names.hear(&seen("b", 2)));
        assert_eq!(names.all()["m"].prev.as_deref(), Some("a"));
        names.read(&etcd(alias("c", 2, None)));
        check(&names, "b", 2);
    }

    #[test]
    fn a_trial_is_learnt_with_the_callers_that_it_takes() {
        let mut names = Names::default();
        let canary = CanarySeen { digest: "b".into(), per_mille: 500, salt: "s".into() };
        names.hear(&AliasSeen { canary: Some(canary), ..seen("a", 2) });
        let canary = Canary { digest: "b".into(), per_mille: 500, salt: "s".into() };
        assert_eq!(names.all()["m"].canary, Some(canary));
    }

    #[test]
    fn a_name_that_etcd_has_lost_is_kept() {
        let mut names = Names::default();
        names.read(&etcd(alias("a", 1, None)));
        names.read(&BTreeMap::new());
        check(&names, "a", 1);
    }
}
