//! Leases: granted, renewed and revoked.

use std::time::Duration;

use etcd_client::Client;

use crate::error::Error;
use crate::etcd::Etcd;
use crate::lease::LeaseId;

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
}
