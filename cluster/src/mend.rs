//! Names in an etcd that went back in time: wiped, or restored from an old snapshot.
//!
//! Whoever follows the cluster keeps the highest epoch of each name that it has seen ([`View::overtaken`]), and puts
//! it back. No one has to be told to: an epoch below one that was seen proves that etcd's history is another one, and a
//! transaction that compares the entry which proves it can harm nobody who knows more. Of many followers one is first,
//! and where one knows a higher epoch than the first did, it finds its own memory overtaken, and goes last.
//!
//! With a name goes the swap that led there. What was written of names that did not move is not known to be forgotten,
//! and is not put back.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;
use crate::etcd::Etcd;
use crate::name::Name;
use crate::record::Alias;
use crate::swap::{Standing, Step};
use crate::transaction::Outcome;
use crate::view::View;

/// For so long after a name was first seen to have gone back, whoever had its checkpoint may be on the way back: a
/// restored etcd may know no lease, which is found out by a renewal that fails, then granted anew with jitter; or it knows
/// the lease and not what was under it, which is found out when the keys are checked, once in the lifetime of a lease.
const RETURN: Duration = Duration::from_secs(20);

/// From when to when which names were seen to have gone back.
#[derive(Debug, Default)]
pub(crate) struct Doubts(BTreeMap<String, (Instant, Instant)>);

impl Doubts {
    /// Takes in the names of which `view` has doubts, and forgets those that it has none of. Without doubts nobody
    /// comes here, so one that was not renewed for long is another one.
    fn take_in(&mut self, view: &View, now: Instant) {
        self.0.retain(|model, (_, last)| {
            view.overtaken.contains_key(model) && now.duration_since(*last) < RETURN
        });
        for model in view.overtaken.keys() {
            self.0.entry(model.clone()).or_insert((now, now)).1 = now;
        }
    }

    /// Whether those who had the checkpoint of `model` had their time to come back.
    fn is_old(&self, model: &str) -> bool {
        self.0.get(model).is_some_and(|(since, last)| last.duration_since(*since) >= RETURN)
    }
}

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
    /// Whether those who are not had their time to come back.
    settled: bool,
}

impl Overtaken<'_> {
    /// What the name is to mean; none where somebody knows better, or more will be known.
    ///
    /// That is what was seen last, and nobody notices. Where nobody has that checkpoint any more, which takes a while to
    /// know, it is what etcd says, and then, as wherever another meaning may have been seen at the same epoch, at a
    /// higher one.
    fn mended(&self, served: Served) -> Option<Alias> {
        let Self { known, listed, seen } = *self;
        if seen > known.epoch {
            return None;
        }
        let above = known.epoch.saturating_add(1);
        match listed {
            Some(_) if served.listed && !served.known && !served.settled => None,
            Some(listed) if served.listed && !served.known => Some(Alias { epoch: above, ..listed.clone() }),
            Some(listed) if listed.epoch >= known.epoch => Some(Alias { epoch: above, ..known.clone() }),
            Some(_) | None => Some(known.clone()),
        }
    }
}

impl Etcd {
    /// Puts back the names of `view` that etcd has gone back behind.
    pub(crate) async fn mend(&self, view: &View, doubts: &mut Doubts) -> Result<(), Error> {
        doubts.take_in(view, Instant::now());
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
                settled: doubts.is_old(model),
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
        let swap = view.swaps.get(model.as_str()).filter(|_| is_as_seen(view, &model, &alias)).cloned();
        let standing = Standing::of(view, model.clone());
        let transaction = standing.take(Step { alias: Some(alias), swap, ..Step::default() });
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

/// Whether `alias` is the meaning that was seen, with which the view has kept the swap that led there.
fn is_as_seen(view: &View, model: &Name, alias: &Alias) -> bool {
    view.aliases.get(model.as_str()).is_some_and(|known| known.digest == alias.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Served = Served { known: true, listed: true, settled: true };

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
        let listed_alone = Served { known: false, listed: true, settled: true };
        check((("lost", 6), 6), Some(("old", 5)), listed_alone, Some(("old", 7)));
        check((("lost", 6), 6), Some(("other", 6)), listed_alone, Some(("other", 7)));
    }

    #[test]
    fn those_who_had_it_get_time_to_come_back() {
        let not_yet_back = Served { known: false, listed: true, settled: false };
        check((("new", 6), 6), Some(("old", 5)), not_yet_back, None);
        check((("new", 6), 6), Some(("other", 6)), not_yet_back, None);
    }

    #[test]
    fn a_doubt_lasts_from_when_it_came_until_it_is_gone() {
        let in_doubt = View { overtaken: [("m".to_owned(), None)].into(), ..View::default() };
        let (mut doubts, start) = (Doubts::default(), Instant::now());
        for part in 0..4 {
            doubts.take_in(&in_doubt, start + RETURN / 4 * part);
            assert!(!doubts.is_old("m"));
        }
        doubts.take_in(&in_doubt, start + RETURN);
        assert!(doubts.is_old("m"));
        // Mended, and hours later overtaken again.
        doubts.take_in(&in_doubt, start + RETURN * 500);
        assert!(!doubts.is_old("m"));
    }

    #[test]
    fn who_knows_a_lower_epoch_leaves_it_to_those_who_know_a_higher() {
        check((("new", 6), 7), Some(("old", 5)), BOTH, None);
    }
}
