//! What was published: listed, kept, or no longer.

use cluster::{ListedVersion, Pin, unix_ms};
use proto::v1;
use std::cmp::Reverse;

use crate::error::ManageError;
use crate::service::Service;
use crate::show;
use crate::wire::swaps::{self, Chosen, Keep};

impl Service {
    /// All versions, by model, the newest first.
    pub(super) async fn versions(
        &self,
        wire: v1::ListVersionsRequest,
    ) -> Result<v1::ListVersionsResponse, ManageError> {
        let model = swaps::listing(wire)?;
        let mut listed = self.control.etcd.list_versions(model.as_ref().map(cluster::Name::as_str)).await?;
        newest_first(&mut listed);
        let (view, fleet) = (self.control.view(), self.dispatcher.fleet());
        let versions = listed.iter().map(|listed| show::version(listed, &view, &fleet)).collect();
        Ok(v1::ListVersionsResponse { versions })
    }

    /// Keeps a version, or no longer.
    pub(super) async fn keep(&self, wire: v1::PinRequest) -> Result<v1::Version, ManageError> {
        let (Chosen { model, digest }, keep) = swaps::pinning(wire)?;
        let listed = self.control.version(&model, &digest).await?;
        let key = (listed.model.as_str(), listed.digest.as_str());
        let pinned = match keep {
            Keep::FromNowOn => {
                if !self.control.etcd.pin(key, Pin { since_unix_ms: unix_ms() }).await? {
                    return Err(crate::control::unknown_version(model.as_str(), &listed.digest));
                }
                true
            }
            Keep::NoLonger => {
                self.control.etcd.unpin(key).await?;
                false
            }
        };
        tracing::info!(%model, digest = listed.digest, pinned, "a version was pinned or unpinned");
        // What was just written is not in the view yet.
        let version = show::version(&listed, &self.control.view(), &self.dispatcher.fleet());
        Ok(v1::Version { pinned, ..version })
    }
}

/// By model, the newest first.
pub(super) fn newest_first(listed: &mut [ListedVersion]) {
    listed.sort_by(|a, b| {
        let key = |listed: &ListedVersion| Reverse(listed.version.created_unix_ms);
        a.model.cmp(&b.model).then_with(|| key(a).cmp(&key(b))).then_with(|| a.digest.cmp(&b.digest))
    });
}
