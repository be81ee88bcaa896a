//! Giving a model's name its first checkpoint.
//!
//! Moving a name from a checkpoint that can be had to another is a swap, decided by people and carried out by the
//! cluster's leader. This file only answers the worker that brings a checkpoint with it.

use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::name::Name;
use crate::record::{Alias, Record};
use crate::transaction::{Fact, Found, Outcome, Transaction, Write};

/// Each round is lost only to another claimant who won it, so a handful means that something else is wrong.
const ROUNDS: usize = 8;

/// Makes `model` mean `digest` where it means nothing else that anyone could serve; answers what it means now.
///
/// * The name is free: it means `digest`, at epoch 1. Among many claimants one wins.
/// * It means another digest, with which no worker is ready and which the store does not have: it moves, with the
///   next epoch.
/// * Otherwise it stays as it is.
///
/// Each is one transaction that compares everything it rests on. Claim what you are already
/// [registered](crate::Membership::registered) as ready with: a name that means what nobody serves is anybody's.
///
/// Ask again
/// * after a while, when told another digest: after a crash the old checkpoint counts as served until the leases of
///   the dead have run out;
/// * after each return of a registration that was lost: an etcd that was wiped has forgotten the names as well.
///
/// # Errors
/// [`Error::InvalidName`]; [`Error::Unreadable`] where a newer release wrote the alias; else as every call.
pub async fn claim_alias(etcd: &Etcd, model: &str, digest: &str) -> Result<Alias, Error> {
    let claim = Claim { model: Name::parse(model)?, digest: Name::parse(digest)? };
    let mut lost: Option<Meaning> = None;
    for _ in 0..ROUNDS {
        let found = claim.look(etcd).await?;
        let Some((transaction, alias)) = claim.take(&found) else {
            return Ok(found.alias.unwrap_or_else(|| Alias::of(digest, 1)));
        };
        // Nothing that was read has changed since a round was lost: somebody is ready with what the name means.
        if let (Some(alias), true) = (&found.alias, lost.as_ref() == Some(&found)) {
            return Ok(alias.clone());
        }
        match etcd.transact("claim an alias", &transaction).await? {
            Outcome::Done(_) => return Ok(alias),
            Outcome::Conflict => lost = Some(found),
        }
    }
    Err(Error::Contended { key: etcd.keys().format(&claim.key()) })
}

struct Claim {
    model: Name,
    digest: Name,
}

/// What a name means, and when what that rests on was written; 0 for what is not there.
#[derive(PartialEq)]
struct Meaning {
    alias: Option<Alias>,
    alias_modified: i64,
    version_modified: i64,
    /// Whether the store has what it means.
    stored: bool,
}

impl Claim {
    fn key(&self) -> Key {
        Key::Alias(self.model.clone())
    }

    /// The key of the version that `alias` means; none where its digest could be no key.
    fn version_of(&self, alias: &Alias) -> Option<Key> {
        let digest = Name::parse(alias.digest.as_str()).ok()?;
        Some(Key::Version { model: self.model.clone(), digest })
    }

    async fn look(&self, etcd: &Etcd) -> Result<Meaning, Error> {
        let [found] = etcd.read("read an alias", [&self.key()]).await?;
        let (alias, alias_modified) = match found {
            Some(Found { record: Record::Alias(alias), revision, lease: _ }) => {
                (Some(alias), revision.modified)
            }
            Some(_) | None => (None, 0),
        };
        let version = match alias.as_ref().and_then(|alias| self.version_of(alias)) {
            Some(key) => etcd.read("read a version", [&key]).await?,
            None => [None],
        };
        let (stored, version_modified) = match version {
            [Some(Found { record: Record::Version(version), revision, lease: _ })] => {
                (version.stored, revision.modified)
            }
            [Some(_) | None] => (false, 0),
        };
        Ok(Meaning { alias, alias_modified, version_modified, stored })
    }

    /// How the name is taken, and what it means then; none where it is to stay as it is.
    fn take(&self, found: &Meaning) -> Option<(Transaction, Alias)> {
        let Meaning { alias: old, alias_modified, version_modified, stored } = found;
        let mut when = vec![Fact::Unchanged { key: self.key(), modified: *alias_modified }];
        let alias = match old {
            None => Alias::of(self.digest.as_str(), 1),
            Some(old) if old.digest == self.digest.as_str() || *stored => return None,
            Some(old) => {
                // A digest that is no name has no key, hence neither a worker nor a version.
                if let Some(key) = self.version_of(old)
                    && let Key::Version { model, digest } = key.clone()
                {
                    when.push(Fact::NobodyReady { model, digest });
                    when.push(Fact::Unchanged { key, modified: *version_modified });
                }
                self.succeed(old)
            }
        };
        let then = vec![Write::Put(self.key(), Record::Alias(alias.clone()))];
        Some((Transaction { when, then }, alias))
    }

    /// What the name means after `old`, of which nothing is left to go back to.
    fn succeed(&self, old: &Alias) -> Alias {
        let gone = [old.digest.as_str(), self.digest.as_str()];
        let leaving = old.keeps().into_iter().filter(|digest| !gone.contains(digest)).map(ToOwned::to_owned);
        Alias { leaving: leaving.collect(), ..Alias::of(self.digest.as_str(), old.epoch.saturating_add(1)) }
    }
}
