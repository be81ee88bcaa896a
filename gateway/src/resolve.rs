//! From a model's name to one checkpoint, once per call or stream.
//!
//! Whatever happens to the name meanwhile, every shard, every retry and every item stays on the checkpoint it was
//! pinned to: vectors of two checkpoints never meet in one answer.

use std::sync::Arc;
use std::time::Duration;

use cluster::Name;
use proto::v1;

use crate::checkpoint::{Card, Digest};
use crate::error::{CallError, NotServed, Unreachable};
use crate::fleet::Fleet;
use crate::wire::{Require, Terms};

/// When to come back where nobody can be reached: about as long as a worker takes to start.
const COME_BACK: Duration = Duration::from_secs(1);
/// Characters of what a caller wrote that are repeated to it.
const REPEATED: usize = 80;

/// The checkpoint of a call.
#[derive(Clone, Debug)]
pub struct Pin {
    /// The alias that was asked for.
    pub model: Name,
    /// The checkpoint.
    pub digest: Digest,
    /// How often the alias had been moved.
    pub epoch: u64,
    /// What the checkpoint is.
    pub card: Arc<Card>,
}

impl Pin {
    /// What an answer with vectors of `dimensions` says about itself.
    #[must_use]
    pub fn provenance(&self, dimensions: u32) -> v1::Provenance {
        v1::Provenance {
            model: self.model.to_string(),
            digest: self.digest.to_string(),
            epoch: self.epoch,
            index_space: self.card.checkpoint.index_space.clone(),
            dimensions,
        }
    }

    /// Whether a later request of a stream is about this checkpoint, too.
    ///
    /// # Errors
    /// [`NotServed`] where it is not.
    pub fn covers(&self, terms: &Terms) -> Result<(), NotServed> {
        let Terms { model, digest, require, min_epoch, class: _ } = terms;
        let same_digest = digest.as_ref().is_none_or(|digest| *digest == self.digest);
        if *model != self.model || !same_digest {
            let found = format!("{}@{}", self.model, self.digest);
            let asked = digest.as_ref().map_or(model.to_string(), |digest| format!("{model}@{digest}"));
            return Err(NotServed::OtherThanStream { found, asked });
        }
        if *min_epoch > self.epoch {
            let (model, found, required) = (self.model.clone(), self.epoch, *min_epoch);
            return Err(NotServed::EarlierEpoch { model, found, required });
        }
        meets(&self.model, &self.digest, require.as_ref())?;
        compares(&self.model, &self.card, require.as_ref())
    }
}

/// The checkpoint that `terms` mean now.
///
/// # Errors
/// `UnknownModel`, `NotServed` where the caller insists on what is not to be had, `Unreachable` where all that is
/// missing is a worker.
pub fn resolve(fleet: &Fleet, terms: &Terms) -> Result<Pin, CallError> {
    let Terms { model, digest, require, min_epoch, class: _ } = terms;
    let Some(aliases) = fleet.aliases() else {
        return Err(unreachable("this gateway has not seen the cluster yet"));
    };
    let alias = aliases.get(model.as_str()).ok_or_else(|| CallError::UnknownModel(model.clone()))?;
    if alias.epoch < *min_epoch {
        let what =
            format!("this gateway has seen epoch {} of model {model}, not yet {min_epoch}", alias.epoch);
        return Err(unreachable(&what));
    }
    let current = Digest::from(alias.digest.as_str());
    let digest = match digest {
        Some(digest) if *digest != current => other(fleet, model, digest)?,
        Some(_) | None => current,
    };
    meets(model, &digest, require.as_ref())?;
    let Some(known) = fleet.checkpoint(&digest) else {
        return Err(unreachable(&format!("no worker with model {model} can be reached")));
    };
    compares(model, &known.card, require.as_ref())?;
    Ok(Pin { model: model.clone(), digest, epoch: alias.epoch, card: Arc::clone(&known.card) })
}

/// Whether what was pinned is to be had no more, and never will be: who asks for the same now is told another
/// checkpoint, or that this one is gone.
#[must_use]
pub fn is_overtaken(fleet: &Fleet, terms: &Terms, pin: &Pin) -> bool {
    match resolve(fleet, terms) {
        Ok(now) => now.digest != pin.digest,
        Err(error) => matches!(error, CallError::NotServed(_)),
    }
}

/// A checkpoint that the name does not mean now: one that workers have loaded under it.
fn other(fleet: &Fleet, model: &Name, digest: &Digest) -> Result<Digest, NotServed> {
    match fleet.checkpoint(digest) {
        Some(known) if known.names.contains(model.as_str()) => Ok(digest.clone()),
        Some(_) | None => Err(NotServed::NotLoaded { model: model.clone(), digest: digest.to_string() }),
    }
}

fn meets(model: &Name, found: &Digest, require: Option<&Require>) -> Result<(), NotServed> {
    match require {
        Some(Require::Digest(required)) if required != found => Err(NotServed::OtherDigest {
            model: model.clone(),
            found: found.to_string(),
            required: required.to_string(),
        }),
        Some(Require::Digest(_) | Require::IndexSpace(_)) | None => Ok(()),
    }
}

fn compares(model: &Name, card: &Card, require: Option<&Require>) -> Result<(), NotServed> {
    match require {
        Some(Require::IndexSpace(required)) if *required != card.checkpoint.index_space => {
            Err(NotServed::OtherSpace {
                model: model.clone(),
                found: card.checkpoint.index_space.clone(),
                required: required.chars().take(REPEATED).collect(),
            })
        }
        Some(Require::Digest(_) | Require::IndexSpace(_)) | None => Ok(()),
    }
}

/// Nobody who has the checkpoint can be reached, for the moment.
#[must_use]
pub fn unreachable(what: &str) -> CallError {
    Unreachable { what: what.to_owned(), retry_after: COME_BACK }.into()
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;
    use crate::fleet::Standing;
    use crate::fleet::tests::{member, ready, view};
    use crate::wire::Class;

    fn terms(model: &str) -> Terms {
        Terms {
            model: Name::parse(model).unwrap(),
            digest: None,
            require: None,
            min_epoch: 0,
            class: Class::Interactive,
        }
    }

    fn at(model: &str, digest: &str) -> Terms {
        Terms { digest: Some(Digest::from(digest)), ..terms(model) }
    }

    fn requiring(require: Require) -> Terms {
        Terms { require: Some(require), ..terms("m") }
    }

    /// `m` means `d`, and `e` is loaded beside it; `gone` means a checkpoint that nobody has.
    fn fleet() -> Fleet {
        let loaded = vec![ready("m", "d"), ready("m", "e"), ready("n", "f")];
        let members = vec![member("w1", Standing::Serving, loaded)];
        Fleet::new(Some(&view(&[("m", "d", 3), ("n", "f", 1), ("gone", "g", 1)]).aliases), members)
    }

    #[track_caller]
    fn check(terms: &Terms, expected: Result<(&str, u64), Code>) {
        let found = resolve(&fleet(), terms);
        let found = found.as_ref().map(|pin| (pin.digest.as_str(), pin.epoch));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(_), Err(code)) => {
                let error = resolve(&fleet(), terms).unwrap_err();
                assert_eq!(Status::from(error).code(), code);
            }
            (found, expected) => panic!("{found:?} is not {expected:?}"),
        }
    }

    #[tokio::test]
    async fn a_name_means_its_checkpoint() {
        check(&terms("m"), Ok(("d", 3)));
        check(&terms("nobody"), Err(Code::NotFound));
        check(&terms("gone"), Err(Code::Unavailable));
    }

    #[tokio::test]
    async fn a_checkpoint_is_had_by_its_digest_while_it_is_loaded_under_the_name() {
        check(&at("m", "d"), Ok(("d", 3)));
        check(&at("m", "e"), Ok(("e", 3)));
        check(&at("m", "f"), Err(Code::FailedPrecondition));
        check(&at("m", "x"), Err(Code::FailedPrecondition));
        check(&at("gone", "g"), Err(Code::Unavailable));
        check(&at("nobody", "d"), Err(Code::NotFound));
    }

    #[tokio::test]
    async fn what_is_required_is_had_or_refused() {
        let space = |space: &str| Require::IndexSpace(space.to_owned());
        check(&requiring(Require::Digest(Digest::from("d"))), Ok(("d", 3)));
        check(&requiring(Require::Digest(Digest::from("e"))), Err(Code::FailedPrecondition));
        check(&requiring(space("space of m")), Ok(("d", 3)));
        check(&requiring(space("another")), Err(Code::FailedPrecondition));
    }

    #[tokio::test]
    async fn an_epoch_that_is_not_seen_yet_is_waited_for_by_others() {
        check(&Terms { min_epoch: 3, ..terms("m") }, Ok(("d", 3)));
        check(&Terms { min_epoch: 4, ..terms("m") }, Err(Code::Unavailable));
    }

    #[tokio::test]
    async fn a_pin_is_overtaken_where_the_same_terms_mean_something_else() {
        #[track_caller]
        fn check(terms: &Terms, digest: &str, expected: bool) {
            let pin = Pin { digest: Digest::from(digest), ..resolve(&fleet(), &self::terms("m")).unwrap() };
            assert_eq!(is_overtaken(&fleet(), terms, &pin), expected, "{terms:?} {digest}");
        }
        check(&terms("m"), "d", false);
        check(&terms("m"), "c", true);
        check(&at("m", "e"), "e", false);
        check(&at("m", "c"), "c", true);
        check(&requiring(Require::Digest(Digest::from("c"))), "c", true);
        check(&terms("gone"), "c", false);
    }

    #[tokio::test]
    async fn before_the_cluster_was_seen_nothing_is_unknown() {
        let error = resolve(&Fleet::new(None, Vec::new()), &terms("m")).unwrap_err();
        assert_eq!(Status::from(error).code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_stream_stays_on_its_checkpoint() {
        let pin = resolve(&fleet(), &terms("m")).unwrap();
        let space = |space: &str| requiring(Require::IndexSpace(space.to_owned()));
        for covered in [terms("m"), at("m", "d"), space("space of m")] {
            assert_eq!(pin.covers(&covered), Ok(()), "{covered:?}");
        }
        let later = Terms { min_epoch: 4, ..terms("m") };
        for other in
            [later, terms("n"), at("m", "e"), requiring(Require::Digest(Digest::from("e"))), space("x")]
        {
            assert!(pin.covers(&other).is_err(), "{other:?}");
        }
    }
}
