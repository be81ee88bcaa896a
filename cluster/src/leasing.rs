//! The calls that a registration makes: a lease, and entries that live as long as it.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};

use crate::error::Error;
use crate::etcd::Etcd;
use crate::lease::LeaseId;

/// Entries of one transaction: each takes two comparisons, and etcd takes 128 operations of a kind.
const ENTRIES_PER_TRANSACTION: usize = 60;

impl Etcd {
    /// A new lease of `ttl`, rounded to whole seconds and at least one.
    pub(crate) async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX).max(1);
        let grant = |client: Client| async move { client.lease_client().grant(seconds, None).await };
        Ok(self.call("grant a lease", grant).await?.id())
    }

    /// Renews a lease.
    ///
    /// Each renewal is a stream of its own, dropped after its first answer. One that stayed open would have to be
    /// watched, reopened and moved to other endpoints; one stream in three seconds costs nothing.
    pub(crate) async fn renew_lease(&self, lease: LeaseId) -> Result<(), Error> {
        let renew = |client: Client| async move { client.lease_client().keep_alive(lease).await };
        let _stream = self.call("renew the lease", renew).await?;
        Ok(())
    }

    /// Ends a lease, and with it the entries it holds. One that has ended already is fine.
    pub(crate) async fn revoke_lease(&self, lease: LeaseId) -> Result<(), Error> {
        let revoke = |client: Client| async move { client.lease_client().revoke(lease).await };
        match self.call("revoke the lease", revoke).await {
            Err(error) if !error.says_lease_is_lost() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Makes `entries` be there, under `lease`. True where something had to be written; where all was well
    /// nobody's watch stirs.
    pub(crate) async fn hold_entries(
        &self,
        lease: LeaseId,
        entries: &BTreeMap<String, Vec<u8>>,
    ) -> Result<bool, Error> {
        let mut wrote = false;
        let entries: Vec<_> = entries.iter().collect();
        for entries in entries.chunks(ENTRIES_PER_TRANSACTION) {
            let as_wanted = entries.iter().flat_map(|(key, value)| {
                let value = Compare::value(key.as_str(), CompareOp::Equal, value.as_slice());
                [value, Compare::lease(key.as_str(), CompareOp::Equal, lease)]
            });
            let put = |(key, value): &(&String, &Vec<u8>)| {
                TxnOp::put(key.as_str(), value.as_slice(), Some(PutOptions::new().with_lease(lease)))
            };
            let hold = Txn::new()
                .when(as_wanted.collect::<Vec<_>>())
                .or_else(entries.iter().map(put).collect::<Vec<_>>());
            let hold = |client: Client| async move { client.kv_client().txn(hold).await };
            wrote |= !self.call("write the registration", hold).await?.succeeded();
        }
        Ok(wrote)
    }

    /// Removes entries.
    pub(crate) async fn remove_entries(&self, keys: &[String]) -> Result<(), Error> {
        for keys in keys.chunks(ENTRIES_PER_TRANSACTION) {
            let deletes: Vec<_> = keys.iter().map(|key| TxnOp::delete(key.as_str(), None)).collect();
            let remove = Txn::new().and_then(deletes);
            let remove = |client: Client| async move { client.kv_client().txn(remove).await };
            self.call("remove what is no longer ready", remove).await?;
        }
        Ok(())
    }
}
