//! Forgets versions that nothing uses, and deletes what only they had in the store.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{ListedVersion, Refused, RequestError, View};
use proto::v1;
use store::Purpose;
use tracing::{Instrument as _, Span};

use super::swap::not_asked;
use super::versions::newest_first;
use crate::error::{Defect, ManageError};
use crate::service::Service;
use crate::show;
use crate::wire::swaps::{self, Collection};

impl Service {
    /// Forgets what is old and not in use. It is done to its end also where the caller does not wait for it: one that is
    /// broken off keeps the next one waiting.
    pub(super) async fn clean(&self, wire: v1::CollectRequest) -> Result<v1::CollectResponse, ManageError> {
        let service = self.clone();
        let cleaning = async move { service.forget(wire).await };
        let cleaned = self.streams.spawn(cleaning.instrument(Span::current()));
        cleaned.await.map_err(|error| Defect(format!("a collection ended early: {error}")))?
    }

    /// Forgets what is old and not in use, or says what that is.
    async fn forget(&self, wire: v1::CollectRequest) -> Result<v1::CollectResponse, ManageError> {
        let Collection { model, keep, dry_run } = swaps::collection(wire)?;
        let etcd = &self.control.etcd;
        let mut listed = etcd.list_versions(None).await?;
        newest_first(&mut listed);
        let view = self.control.view();
        let of_model =
            |listed: &&ListedVersion| model.as_ref().is_none_or(|model| model.as_str() == listed.model);
        let old = old(listed.iter().filter(of_model), keep, &view);
        let gone = if dry_run { old } else { self.forget_all(old).await? };
        let bytes =
            self.sweep(listed, &gone, if dry_run { Purpose::Report } else { Purpose::Delete }).await?;
        let fleet = self.dispatcher.fleet();
        let shown = |listed: &ListedVersion| v1::Version {
            files: Vec::new(),
            ..show::version(listed, &view, &fleet)
        };
        Ok(v1::CollectResponse { versions: gone.iter().map(shown).collect(), bytes })
    }

    /// Forgets `old` versions; answers those that nothing had come to use meanwhile.
    async fn forget_all(&self, old: Vec<ListedVersion>) -> Result<Vec<ListedVersion>, ManageError> {
        let mut gone = Vec::with_capacity(old.len());
        for listed in old {
            match self.control.etcd.forget_version(&listed.model, &listed.digest).await {
                Ok(()) => {
                    tracing::info!(model = listed.model, digest = listed.digest, "a version was forgotten");
                    gone.push(listed);
                }
                Err(RequestError::Refused(Refused::InUse(_))) => {}
                Err(error) => return Err(not_asked(&listed.model, error)),
            }
        }
        Ok(gone)
    }

    /// Deletes what nothing refers to any more, or says how much that is. In bytes.
    async fn sweep(
        &self,
        listed: Vec<ListedVersion>,
        gone: &[ListedVersion],
        purpose: Purpose,
    ) -> Result<u64, ManageError> {
        let Some(store) = &self.control.store else { return Ok(0) };
        let left = match purpose {
            // What is left of a dry run is what would be.
            Purpose::Report => listed.into_iter().filter(|listed| !gone.contains(listed)).collect(),
            Purpose::Delete => self.control.etcd.list_versions(None).await?,
        };
        let keep: BTreeSet<String> = left.into_iter().map(|listed| listed.digest).collect();
        Ok(store.collect(&keep, self.control.collection.grace, purpose).await?.bytes)
    }
}

/// Those of `listed`, by model and the newest first, that nothing uses, but for the first `keep` of each model.
fn old<'a>(listed: impl Iterator<Item = &'a ListedVersion>, keep: usize, view: &View) -> Vec<ListedVersion> {
    let mut spared: BTreeMap<&str, usize> = BTreeMap::new();
    let unused = listed.filter(|listed| !is_used(listed, view));
    unused
        .filter(|listed| {
            let spared = spared.entry(&listed.model).or_default();
            *spared += 1;
            *spared > keep
        })
        .cloned()
        .collect()
}

fn is_used(ListedVersion { model, digest, version: _ }: &ListedVersion, view: &View) -> bool {
    let key = (model.clone(), digest.clone());
    let named = view.aliases.get(model).is_some_and(|alias| alias.keeps().contains(digest.as_str()));
    let coming = view.swaps.get(model).is_some_and(|swap| swap.state.is_open() && swap.to == *digest);
    named || coming || view.pins.contains_key(&key) || view.ready.contains_key(&key)
}

#[cfg(test)]
mod tests {
    use cluster::{Alias, ModelKind, Pin, Swap, SwapPlan, Version};
    use manifest::Manifest;

    use super::*;

    /// Versions of `models`, the newest first.
    fn listed(versions: &[(&str, &str)]) -> Vec<ListedVersion> {
        let version = |&(model, digest): &(&str, &str)| ListedVersion {
            model: model.into(),
            digest: digest.into(),
            version: Version {
                manifest: Manifest::new(Vec::new(), 1, 1, None, true),
                stored: true,
                kind: ModelKind::Embedder,
                architecture: String::new(),
                index_space: digest.into(),
                tokenizer_sha256: String::new(),
                parent: None,
                evaluation: BTreeMap::new(),
                golden: None,
                job: None,
                created_unix_ms: 0,
            },
        };
        versions.iter().map(version).collect()
    }

    #[track_caller]
    fn check(versions: &[(&str, &str)], keep: usize, view: &View, expected: &[&str]) {
        let listed = listed(versions);
        let found = old(listed.iter(), keep, view);
        assert_eq!(found.iter().map(|listed| listed.digest.as_str()).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_newest_of_each_model_are_spared() {
        let versions = [("m", "3"), ("m", "2"), ("m", "1"), ("n", "5"), ("n", "4")];
        check(&versions, 0, &View::default(), &["3", "2", "1", "5", "4"]);
        check(&versions, 1, &View::default(), &["2", "1", "4"]);
        check(&versions, 9, &View::default(), &[]);
    }

    #[test]
    fn what_is_in_use_is_neither_taken_nor_counted() {
        let versions = [("m", "6"), ("m", "5"), ("m", "4"), ("m", "3"), ("m", "2"), ("m", "1")];
        let key = |digest: &str| ("m".to_owned(), digest.to_owned());
        let swap = Swap::requested("s".into(), (Some("4".into()), "6".into()), SwapPlan::default(), 1);
        let view = View {
            aliases: [("m".to_owned(), Alias { prev: Some("3".into()), ..Alias::of("4", 1) })].into(),
            swaps: [("m".to_owned(), swap)].into(),
            pins: [(key("1"), Pin { since_unix_ms: 1 })].into(),
            ..View::default()
        };
        check(&versions, 0, &view, &["5", "2"]);
        check(&versions, 1, &view, &["2"]);
    }
}
