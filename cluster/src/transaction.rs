//! A transaction of etcd as data: what must hold, and what is written if it does.
//!
//! Whoever decides what to write makes one of these, and [`Etcd::transact`] carries it out; tests have an etcd of
//! their own for them. There is no other way to write than to compare, in the same transaction, all that the
//! decision rests on: who loses a race looks again.

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};

use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::{Key, Keys};
use crate::lease::LeaseId;
use crate::name::Name;
use crate::record::{Record, Revision};

/// What must hold for a transaction to write anything.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fact {
    /// The entry was last written at this revision; 0: there is none.
    Unchanged { key: Key, modified: i64 },
    /// There is an entry.
    Present(Key),
    /// The entry says this, under this lease.
    Is { key: Key, record: Record, lease: LeaseId },
    /// The entry came to be at this revision, and was there ever since.
    Since { key: Key, created: i64 },
    /// No worker is ready with the checkpoint.
    NobodyReady { model: Name, digest: Name },
    /// No gateway came after this revision.
    NoGatewaySince(i64),
    /// No gateway said anything of the model after this revision.
    QuietSince { model: Name, revision: i64 },
}

/// What a transaction writes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    /// Makes the entry be there for ever.
    Put(Key, Record),
    /// Makes the entry be there for as long as the lease.
    PutUnder(LeaseId, Key, Record),
    /// Makes the entry be gone.
    Delete(Key),
}

/// Facts compared and writes made, all at one revision.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Transaction {
    pub(crate) when: Vec<Fact>,
    pub(crate) then: Vec<Write>,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All facts held, and all was written, at this revision.
    Done(i64),
    /// A fact did not hold, and nothing was written: look again.
    Conflict,
}

/// An entry that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) record: Record,
    pub(crate) revision: Revision,
    /// The lease it is under; 0 for none.
    pub(crate) lease: LeaseId,
}

impl Fact {
    /// There is no entry.
    pub(crate) fn absent(key: Key) -> Self {
        Self::Unchanged { key, modified: 0 }
    }

    fn compare(&self, keys: &Keys) -> Vec<Compare> {
        let compare = match self {
            Self::Unchanged { key, modified } => {
                Compare::mod_revision(keys.format(key), CompareOp::Equal, *modified)
            }
            Self::Present(key) => Compare::create_revision(keys.format(key), CompareOp::Greater, 0),
            Self::Is { key, record, lease } => {
                let key = keys.format(key);
                let value = Compare::value(key.as_str(), CompareOp::Equal, record.encode());
                return vec![value, Compare::lease(key, CompareOp::Equal, *lease)];
            }
            Self::Since { key, created } => {
                Compare::create_revision(keys.format(key), CompareOp::Equal, *created)
            }
            // Over a range a comparison must hold for each key; one that no key satisfies holds for no keys.
            Self::NobodyReady { model, digest } => {
                Compare::create_revision(keys.ready_with(model, digest), CompareOp::Equal, 0).with_prefix()
            }
            Self::NoGatewaySince(revision) => {
                Compare::create_revision(keys.gateways(), CompareOp::Less, revision + 1).with_prefix()
            }
            Self::QuietSince { model, revision } => {
                Compare::mod_revision(keys.seen(model), CompareOp::Less, revision + 1).with_prefix()
            }
        };
        vec![compare]
    }
}

impl Write {
    fn operation(&self, keys: &Keys) -> TxnOp {
        match self {
            Self::Put(key, record) => TxnOp::put(keys.format(key), record.encode(), None),
            Self::PutUnder(lease, key, record) => {
                let options = PutOptions::new().with_lease(*lease);
                TxnOp::put(keys.format(key), record.encode(), Some(options))
            }
            Self::Delete(key) => TxnOp::delete(keys.format(key), None),
        }
    }
}

impl Etcd {
    /// Carries `transaction` out. `call` names it for errors: a verb and its object.
    ///
    /// An error leaves it open whether it was carried out: look again.
    pub(crate) async fn transact(
        &self,
        call: &'static str,
        transaction: &Transaction,
    ) -> Result<Outcome, Error> {
        let Transaction { when, then } = transaction;
        let when: Vec<_> = when.iter().flat_map(|fact| fact.compare(self.keys())).collect();
        let then: Vec<_> = then.iter().map(|write| write.operation(self.keys())).collect();
        let txn = Txn::new().when(when).and_then(then);
        let run = |client: Client| async move { client.kv_client().txn(txn).await };
        let answer = self.call(call, run).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(if answer.succeeded() { Outcome::Done(revision) } else { Outcome::Conflict })
    }

    /// What is at `keys`, all at one revision. `call` names it for errors.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where a value was written by a newer release; else as every call.
    pub(crate) async fn read<const N: usize>(
        &self,
        call: &'static str,
        keys: [&Key; N],
    ) -> Result<[Option<Found>; N], Error> {
        let gets = keys.map(|key| TxnOp::get(self.keys().format(key), Some(GetOptions::new())));
        let read = |client: Client| async move { client.kv_client().txn(Txn::new().and_then(gets)).await };
        let answer = self.call(call, read).await?;
        let mut found = [const { None }; N];
        let parts = answer.op_responses().into_iter().zip(keys).zip(&mut found);
        for ((part, key), found) in parts {
            if let TxnOpResponse::Get(mut get) = part {
                *found = get.take_kvs().pop().map(|entry| self.found(key, &entry)).transpose()?;
            }
        }
        Ok(found)
    }

    /// At most `limit` keys of those that begin with `prefix`. `call` names it for errors.
    ///
    /// # Errors
    /// As every call.
    pub(crate) async fn some_keys(
        &self,
        call: &'static str,
        prefix: &str,
        limit: i64,
    ) -> Result<Vec<Key>, Error> {
        let options = GetOptions::new().with_prefix().with_keys_only().with_limit(limit);
        let get = |client: Client| async move { client.kv_client().get(prefix, Some(options)).await };
        let answer = self.call(call, get).await?;
        Ok(answer.kvs().iter().filter_map(|entry| self.keys().parse(entry.key()).ok()).collect())
    }

    pub(crate) fn found(&self, key: &Key, entry: &etcd_client::KeyValue) -> Result<Found, Error> {
        let revision = Revision { created: entry.create_revision(), modified: entry.mod_revision() };
        match Record::decode(key, entry.value()) {
            Ok(record) => Ok(Found { record, revision, lease: entry.lease() }),
            Err(source) => Err(Error::Unreadable { key: self.keys().format(key), source }),
        }
    }
}
