//! Names in an etcd that went back in time: wiped, or restored from an old snapshot.
//!
//! Whoever follows the cluster keeps the highest epoch of each name that it has seen ([`View::overtaken`]), and puts
//! it back. No one has to be told to: an epoch below one that was seen proves that etcd's history is another one, and a
//! transaction that compares the entry which proves it can harm nobody who knows more. Of many followers one is first,
//! and where one knows a higher epoch than the first did, it finds its own memory overtaken, and goes last.

use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::name::Name;
use crate::record::{Alias, Record};
use crate::transaction::{Fact, Outcome, Transaction, Write};
use crate::view::View;

/// What is known of a name that etcd has another meaning of than it had.
struct Overtaken<'a> {
    /// What was seen.
    known: &'a Alias,
    /// What etcd says instead.
    listed: Option<&'a Alias>,
    /// The highest epoch that a gateway says it has taken in.
    seen: u64,
}

/// Who is ready with what.
#[derive(Clone, Copy, Default)]
struct Served {
    known: bool,
    listed: bool,
}

impl Overtaken<'_> {
    /// What the name is to mean; none where somebody knows better.
    ///
    /// That is what was seen last, and nobody notices. Where nobody has that checkpoint any more it is what etcd says,
    /// and then, as wherever another meaning may have been seen at the same epoch, at a higher one.
    fn mended(&self, served: Served) -> Option<Alias> {
        let Self { known, listed, seen } = *self;
        if seen > known.epoch {
            return None;
        }
        let above = known.epoch.saturating_add(1);
        match listed {
            Some(listed) if served.listed && !served.known => Some(Alias { epoch: above, ..listed.clone() }),
            Some(listed) if listed.epoch >= known.epoch => Some(Alias { epoch: above, ..known.clone() }),
            Some(_) | None => Some(known.clone()),
        }
    }
}

impl Etcd {
    /// Puts back the names of `view` that etcd has gone back behind.
    pub(crate) async fn mend(&self, view: &View) -> Result<(), Error> {
        for (model, listed) in &view.overtaken {
            // A name that could be no key was read from none.
            let (Ok(name), Some(known)) = (Name::parse(model.as_str()), view.aliases.get(model)) else {
                continue;
            };
            let seen = view.gateways.values().filter_map(|gateway| gateway.epochs.get(model).copied()).max();
            let overtaken = Overtaken { known, listed: listed.as_ref(), seen: seen.unwrap_or(0) };
            let served = Served {
                known: self.is_ready(&name, &known.digest).await?,
                listed: match listed {
                    Some(alias) => self.is_ready(&name, &alias.digest).await?,
                    None => false,
                },
            };
            if let Some(alias) = overtaken.mended(served) {
                self.put_back(view, name, alias).await?;
            }
        }
        Ok(())
    }

    /// Whether a worker is ready with the checkpoint.
    async fn is_ready(&self, model: &Name, digest: &str) -> Result<bool, Error> {
        let Ok(digest) = Name::parse(digest) else { return Ok(false) };
        let prefix = self.keys().ready_with(model, &digest);
        Ok(!self.some_keys("see who is ready", &prefix, 1).await?.is_empty())
    }

    async fn put_back(&self, view: &View, model: Name, alias: Alias) -> Result<(), Error> {
        let (epoch, digest) = (alias.epoch, alias.digest.clone());
        let key = Key::Alias(model.clone());
        let transaction = Transaction {
            when: vec![Fact::Unchanged { key: key.clone(), modified: view.revisions.modified(&key) }],
            then: vec![Write::Put(key, Record::Alias(alias))],
        };
        match self.transact("put a name back", &transaction).await? {
            Outcome::Done(_) => {
                tracing::warn!(%model, epoch, digest, "put back what etcd has forgotten of a name");
            }
            // Somebody was first.
            Outcome::Conflict => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Served = Served { known: true, listed: true };

    /// Holds that where `known` was seen, gateways have `seen` an epoch, and etcd says `listed`, it is to say `expected`.
    #[track_caller]
    fn check(
        (known, seen): ((&str, u64), u64),
        listed: Option<(&str, u64)>,
        served: Served,
        expected: Option<(&str, u64)>,
    ) {
        let alias = |(digest, epoch)| Alias::of(digest, epoch);
        let (known, listed) = (alias(known), listed.map(alias));
        let overtaken = Overtaken { known: &known, listed: listed.as_ref(), seen };
        assert_eq!(overtaken.mended(served), expected.map(alias));
    }

    #[test]
    fn what_was_seen_last_is_put_back_as_it_was() {
        check((("new", 6), 6), Some(("old", 5)), BOTH, Some(("new", 6)));
        check((("new", 6), 0), None, BOTH, Some(("new", 6)));
        // Those who had it may be on their way back.
        check((("new", 6), 6), None, Served::default(), Some(("new", 6)));
        check((("new", 6), 6), Some(("old", 5)), Served::default(), Some(("new", 6)));
    }

    #[test]
    fn two_meanings_of_one_epoch_end_with_a_higher_one() {
        check((("mine", 6), 6), Some(("theirs", 6)), BOTH, Some(("mine", 7)));
    }

    #[test]
    fn what_nobody_has_any_more_gives_way_to_what_is_served() {
        let listed_alone = Served { known: false, listed: true };
        check((("lost", 6), 6), Some(("old", 5)), listed_alone, Some(("old", 7)));
        check((("lost", 6), 6), Some(("other", 6)), listed_alone, Some(("other", 7)));
    }

    #[test]
    fn who_knows_a_lower_epoch_leaves_it_to_those_who_know_a_higher() {
        check((("new", 6), 7), Some(("old", 5)), BOTH, None);
    }
}
