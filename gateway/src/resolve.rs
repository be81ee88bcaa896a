//! From a model's name to one checkpoint, once per call or stream.
//!
//! Whatever happens to the name meanwhile, every shard, every retry and every item stays on the checkpoint it was
//! pinned to: vectors of two checkpoints never meet in one answer.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Alias, Name, Shadow, unix_ms};
use proto::v1;

use crate::canary;
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
    /// What it is to a trial that is under way.
    pub part: Option<Part>,
}

/// What a call is to a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The swap that is on trial.
    pub swap_id: String,
    /// Which checkpoint the call is on.
    pub side: Side,
}

/// The checkpoint of a call while another one is on trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that the name means; some such calls are tried on the other one, too.
    Old(Option<Shadow>),
    /// The one on trial.
    New,
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

/// The checkpoint that `terms` mean now to the caller who is told from others by `key`.
///
/// # Errors
/// `UnknownModel`, `NotServed` where the caller insists on what is not to be had, `Unreachable` where all that is
/// missing is a worker.
pub fn resolve(fleet: &Fleet, terms: &Terms, key: &str) -> Result<Pin, CallError> {
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
        Some(_) => current,
        None => canary(fleet, alias, terms, key).unwrap_or(current),
    };
    meets(model, &digest, require.as_ref())?;
    let Some(known) = fleet.checkpoint(&digest) else {
        let on_trial = if digest.as_str() == alias.digest { "" } else { "the checkpoint on trial of " };
        return Err(unreachable(&format!("no worker with {on_trial}model {model} can be reached")));
    };
    compares(model, &known.card, require.as_ref())?;
    let part = part(alias, terms, &digest);
    Ok(Pin { model: model.clone(), digest, epoch: alias.epoch, card: Arc::clone(&known.card), part })
}

/// The checkpoint on trial, for a caller that tries it. One that insists on what it is not is answered as if there were
/// no trial.
///
/// Whether a worker has it makes no difference: a caller that was answered by it, here or at another gateway, is not
/// answered by the old one under the same epoch. It waits for a worker, or for the leader to end the trial.
fn canary(fleet: &Fleet, alias: &Alias, terms: &Terms, key: &str) -> Option<Digest> {
    let canary = alias.canary.as_ref().filter(|canary| canary::takes(canary, key))?;
    let digest = Digest::from(canary.digest.as_str());
    meets(&terms.model, &digest, terms.require.as_ref()).ok()?;
    if let Some(known) = fleet.checkpoint(&digest) {
        compares(&terms.model, &known.card, terms.require.as_ref()).ok()?;
    }
    Some(digest)
}

/// Whether the caller who is told from others by `key` is answered by a checkpoint on trial.
#[must_use]
pub fn is_tried(fleet: &Fleet, terms: &Terms, key: &str) -> bool {
    let tried = |alias| canary(fleet, alias, terms, key).is_some();
    terms.digest.is_none() && fleet.alias(&terms.model).is_some_and(tried)
}

/// What a call on `digest` is to a trial. Who named the checkpoint is part of none.
fn part(alias: &Alias, terms: &Terms, digest: &Digest) -> Option<Part> {
    let under_way = alias.canary.is_some() || alias.shadow.is_some();
    let swap_id = alias.swap_id.clone().filter(|_| under_way && terms.digest.is_none())?;
    let old = digest.as_str() == alias.digest;
    let side = if old { Side::Old(alias.shadow.clone()) } else { Side::New };
    Some(Part { swap_id, side })
}

/// Whether what was pinned is to be had no more, and never will be: who asks for the name is told another checkpoint
/// now, and of one that was asked for by its digest no worker speaks any more.
#[must_use]
pub fn is_overtaken(fleet: &Fleet, terms: &Terms, key: &str, pin: &Pin) -> bool {
    if terms.digest.is_some() {
        let is_meant = fleet.alias(&pin.model).is_none_or(|alias| alias.digest == pin.digest.as_str());
        return !is_meant && fleet.checkpoint(&pin.digest).is_none();
    }
    match resolve(fleet, terms, key) {
        Ok(now) => now.digest != pin.digest,
        Err(error) => matches!(error, CallError::NotServed(_)),
    }
}

/// A checkpoint that the name does not mean now: one that workers have loaded under it.
fn other(fleet: &Fleet, model: &Name, digest: &Digest) -> Result<Digest, NotServed> {
    match fleet.checkpoint(digest) {
        Some(known) if known.names.contains(model.as_str()) => {
            let leaving = fleet.departures().include(model.as_str(), digest.as_str(), unix_ms());
            let told = || NotServed::Leaving { model: model.clone(), digest: digest.to_string() };
            if leaving { Err(told()) } else { Ok(digest.clone()) }
        }
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
    use cluster::Canary;
    use tonic::{Code, Status};

    use super::*;
    use crate::departures::Departures;
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
        let found = resolve(&fleet(), terms, "anybody");
        let found = found.as_ref().map(|pin| (pin.digest.as_str(), pin.epoch));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(_), Err(code)) => {
                let error = resolve(&fleet(), terms, "anybody").unwrap_err();
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
    async fn a_checkpoint_that_is_to_go_is_had_by_nobody_new() {
        let mut view = view(&[("m", "d", 3)]);
        view.aliases.get_mut("m").unwrap().leaving.insert("e".into());
        let fleet = fleet().without(Departures::of(&view));
        let gone = resolve(&fleet, &at("m", "e"), "anybody").unwrap_err();
        assert!(matches!(gone, CallError::NotServed(NotServed::Leaving { .. })), "{gone}");
        assert_eq!(resolve(&fleet, &at("m", "d"), "anybody").unwrap().digest.as_str(), "d");
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
            let pin = resolve(&fleet(), &self::terms("m"), "anybody").unwrap();
            let pin = Pin { digest: Digest::from(digest), ..pin };
            assert_eq!(is_overtaken(&fleet(), terms, "anybody", &pin), expected, "{terms:?} {digest}");
        }
        check(&terms("m"), "d", false);
        check(&terms("m"), "c", true);
        check(&at("m", "e"), "e", false);
        check(&at("m", "c"), "c", true);
        check(&requiring(Require::Digest(Digest::from("c"))), "c", true);
        check(&terms("gone"), "c", false);
    }

    /// `m` means `d`, and a part of the callers try `e`, which is of another space and has `workers`.
    fn on_trial(per_mille: u32, workers: usize) -> Fleet {
        let mut aliases = view(&[("m", "d", 3)]).aliases;
        let alias = aliases.get_mut("m").unwrap();
        alias.swap_id = Some("s".into());
        alias.canary = Some(Canary { digest: "e".into(), per_mille, salt: "salt".into() });
        alias.shadow = Some(Shadow { digest: "e".into(), per_mille: 7 });
        let mut trying = ready("m", "e");
        trying.checkpoint.as_mut().unwrap().index_space = "new".into();
        let old = member("w0", Standing::Serving, vec![ready("m", "d")]);
        let new = |i| member(&format!("w{i}"), Standing::Serving, vec![trying.clone()]);
        Fleet::new(Some(&aliases), std::iter::once(old).chain((1..=workers).map(new)).collect())
    }

    #[tokio::test]
    async fn a_part_of_the_callers_try_the_new_checkpoint() {
        let fleet = on_trial(10, 1);
        let of = |key: &str| resolve(&fleet, &terms("m"), key).unwrap();
        let (old, new) = (of("caller 0"), of("caller 31"));
        let shadow = Shadow { digest: "e".into(), per_mille: 7 };
        assert_eq!((old.digest.as_str(), old.epoch), ("d", 3));
        assert_eq!(old.part, Some(Part { swap_id: "s".into(), side: Side::Old(Some(shadow)) }));
        assert_eq!((new.digest.as_str(), new.epoch), ("e", 3));
        assert_eq!(new.part, Some(Part { swap_id: "s".into(), side: Side::New }));
    }

    #[tokio::test]
    async fn who_cannot_be_answered_by_it_does_not_try_it() {
        #[track_caller]
        fn check(fleet: &Fleet, terms: &Terms, expected: &str) {
            assert_eq!(resolve(fleet, terms, "caller 31").unwrap().digest.as_str(), expected, "{terms:?}");
        }
        let fleet = on_trial(1000, 1);
        let space = |space: &str| requiring(Require::IndexSpace(space.to_owned()));
        check(&fleet, &terms("m"), "e");
        check(&fleet, &at("m", "d"), "d");
        check(&fleet, &requiring(Require::Digest(Digest::from("d"))), "d");
        check(&fleet, &space("space of m"), "d");
        check(&fleet, &space("new"), "e");
        assert_eq!(resolve(&fleet, &at("m", "e"), "caller 31").unwrap().part, None);
        // Nor where nobody has it any more.
        let fleet = on_trial(1000, 0);
        check(&fleet, &at("m", "d"), "d");
        check(&fleet, &requiring(Require::Digest(Digest::from("d"))), "d");
    }

    #[tokio::test]
    async fn who_tries_it_is_not_answered_by_the_old_one_where_no_worker_has_it() {
        let (lost, key) = (on_trial(10, 0), "caller 31");
        let refused = resolve(&lost, &terms("m"), key).unwrap_err();
        assert!(refused.to_string().contains("the checkpoint on trial of model m"), "{refused}");
        assert_eq!(Status::from(refused).code(), Code::Unavailable);
        assert_eq!(resolve(&lost, &terms("m"), "caller 0").unwrap().digest.as_str(), "d");
        assert!(is_tried(&lost, &terms("m"), key) && !is_tried(&lost, &at("m", "d"), key));
        assert!(!is_tried(&lost, &terms("m"), "caller 0") && !is_tried(&fleet(), &terms("m"), key));
        // A call that is on it waits for the end of the trial, and then starts again.
        let pin = resolve(&on_trial(10, 1), &terms("m"), key).unwrap();
        assert!(!is_overtaken(&lost, &terms("m"), key, &pin));
        assert!(is_overtaken(&fleet(), &terms("m"), key, &pin));
    }

    #[tokio::test]
    async fn one_whose_worker_is_silent_is_still_what_its_callers_try() {
        let aliases = on_trial(1000, 0).aliases().unwrap().clone();
        let silent = member("w1", Standing::Unreachable, vec![ready("m", "e")]);
        let serving = member("w0", Standing::Serving, vec![ready("m", "d")]);
        let fleet = Fleet::new(Some(&aliases), vec![serving, silent]);
        assert_eq!(resolve(&fleet, &terms("m"), "anybody").unwrap().digest.as_str(), "e");
    }

    #[tokio::test]
    async fn before_the_cluster_was_seen_nothing_is_unknown() {
        let error = resolve(&Fleet::new(None, Vec::new()), &terms("m"), "anybody").unwrap_err();
        assert_eq!(Status::from(error).code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_stream_stays_on_its_checkpoint() {
        let pin = resolve(&fleet(), &terms("m"), "anybody").unwrap();
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
