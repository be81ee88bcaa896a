//! Giving a model's name its first checkpoint.
//!
//! Moving a name from a checkpoint that is served to another is a swap, decided by people and carried out by the
//! cluster's leader. This file only answers the worker that comes first.

use etcd_client::{Client, Compare, CompareOp, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};

use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::name::Name;
use crate::record::{self, Alias};

/// Each round is lost only to another claimant who won it, so a handful means that something else is wrong.
const ROUNDS: usize = 8;

/// Makes `model` mean `digest` where it means nothing else that anyone could serve; answers what it means now.
///
/// * The name is free: it means `digest`, at epoch 1. Among many claimants one wins.
/// * It means another digest, with which no worker is ready: it moves, with the next epoch.
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
    let claim = Claim { etcd, model: Name::parse(model)?, digest: Name::parse(digest)? };
    let mut current = None;
    for _ in 0..ROUNDS {
        let outcome = match &current {
            None => claim.put_first().await?,
            Some(Found { alias, .. }) if alias.digest == digest => return Ok(alias.clone()),
            Some(found) => claim.succeed(found).await?,
        };
        current = match (outcome, current) {
            (Outcome::Ours(alias), _) => return Ok(alias),
            // Not changed meanwhile, so it was the other comparison that failed: its checkpoint is served.
            (Outcome::Theirs(Some(now)), Some(then)) if now.revision == then.revision => return Ok(now.alias),
            (Outcome::Theirs(now), _) => now,
        };
    }
    Err(Error::Contended { key: claim.key() })
}

struct Claim<'a> {
    etcd: &'a Etcd,
    model: Name,
    digest: Name,
}

enum Outcome {
    /// We wrote it.
    Ours(Alias),
    /// A comparison failed; this is what is there, if anything.
    Theirs(Option<Found>),
}

struct Found {
    alias: Alias,
    revision: i64,
}

impl Claim<'_> {
    fn key(&self) -> String {
        self.etcd.keys().format(&Key::Alias(self.model.clone()))
    }

    /// Takes the name if it is free.
    async fn put_first(&self) -> Result<Outcome, Error> {
        let alias = Alias { digest: self.digest.to_string(), epoch: 1, prev: None };
        let free = Compare::create_revision(self.key(), CompareOp::Equal, 0);
        self.put_when(vec![free], alias).await
    }

    /// Takes the name over if it is as `found`, and no worker is ready with what it means.
    async fn succeed(&self, found: &Found) -> Result<Outcome, Error> {
        let Alias { digest: old, epoch, prev: _ } = &found.alias;
        let alias = Alias {
            digest: self.digest.to_string(),
            epoch: epoch.saturating_add(1),
            prev: Some(old.clone()),
        };
        let mut when = vec![Compare::mod_revision(self.key(), CompareOp::Equal, found.revision)];
        // A digest that is no name has no key, hence no worker.
        if let Ok(old) = Name::parse(old) {
            // Over a range a comparison must hold for each key; one that no key satisfies holds for no keys.
            let served_by = self.etcd.keys().ready_with(&self.model, &old);
            when.push(Compare::create_revision(served_by, CompareOp::Equal, 0).with_prefix());
        }
        self.put_when(when, alias).await
    }

    async fn put_when(&self, when: Vec<Compare>, alias: Alias) -> Result<Outcome, Error> {
        let key = self.key();
        let txn = Txn::new()
            .when(when)
            .and_then([TxnOp::put(key.as_str(), alias.encode(), None)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let claim = |client: Client| async move { client.kv_client().txn(txn).await };
        let answer = self.etcd.call("claim an alias", claim).await?;
        if answer.succeeded() {
            return Ok(Outcome::Ours(alias));
        }
        let Some(entry) = found_entry(&answer) else { return Ok(Outcome::Theirs(None)) };
        let alias = record::decode(entry.value()).map_err(|source| Error::Unreadable { key, source })?;
        Ok(Outcome::Theirs(Some(Found { alias, revision: entry.mod_revision() })))
    }
}

fn found_entry(answer: &TxnResponse) -> Option<KeyValue> {
    answer.op_responses().into_iter().find_map(|part| match part {
        TxnOpResponse::Get(mut get) => get.take_kvs().pop(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    })
}
