//! What is published, kept and refused.

use std::collections::BTreeMap;

use cluster::{JobFence, ModelKind, Nack, NackReason, Pin, PutVersion, Version};
use manifest::{Manifest, ManifestFile};

use super::*;

/// A version whose manifest differs with `number`.
pub(crate) fn version(number: u64) -> Version {
    let file = ManifestFile { path: "config.json".into(), sha256: "0".repeat(64), size: number };
    Version {
        manifest: Manifest::new(vec![file], 2, 512, Some("cls".into()), true),
        stored: true,
        kind: ModelKind::Embedder,
        architecture: "BertModel".into(),
        index_space: "space".into(),
        tokenizer_sha256: "1".repeat(64),
        parent: None,
        evaluation: BTreeMap::new(),
        golden: None,
        job: None,
        created_unix_ms: number,
    }
}

#[tokio::test]
async fn to_publish_twice_is_to_publish_once() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    assert_eq!(etcd.put_version("m", &version(1), None).await.unwrap(), PutVersion::New);
    let again = Version { created_unix_ms: 99, ..version(1) };
    let known = etcd.put_version("m", &again, None).await.unwrap();
    assert_eq!(known, PutVersion::Known(Box::new(version(1))));
    let digest = version(1).manifest.digest();
    assert_eq!(etcd.version("m", &digest).await.unwrap(), Some(version(1)));
    assert_eq!(etcd.version("n", &digest).await.unwrap(), None);
}

#[tokio::test]
async fn a_checkpoint_brought_by_a_worker_gets_its_files_by_publication() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let brought = Version { stored: false, index_space: "its own".into(), ..version(1) };
    etcd.put_version("m", &brought, None).await.unwrap();
    let published = Version { created_unix_ms: 99, ..version(1) };
    let expected = Version { index_space: "its own".into(), ..version(1) };
    let known = etcd.put_version("m", &published, None).await.unwrap();
    assert_eq!(known, PutVersion::Known(Box::new(expected.clone())));
    // And the worker, started again, takes nothing away.
    let known = etcd.put_version("m", &brought, None).await.unwrap();
    assert_eq!(known, PutVersion::Known(Box::new(expected)));
}

#[tokio::test]
async fn a_job_publishes_only_through_its_owner() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let mut client = client(&server).await;
    let put = client.put("/beige/test/jobs/j/owner", "{}", None).await.unwrap();
    let owner = JobFence { job: name("j"), owner_revision: put.header().unwrap().revision() };
    let former = JobFence { owner_revision: owner.owner_revision - 1, ..owner.clone() };
    let nobody = JobFence { job: name("k"), ..owner.clone() };
    for fence in [&former, &nobody] {
        let refused = etcd.put_version("m", &version(1), Some(fence)).await.unwrap();
        assert_eq!(refused, PutVersion::NotOwner);
    }
    assert_eq!(etcd.put_version("m", &version(1), Some(&owner)).await.unwrap(), PutVersion::New);
}

#[tokio::test]
async fn versions_are_listed_whole_however_many() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    for number in 0..40 {
        etcd.put_version("m", &version(number), None).await.unwrap();
    }
    etcd.put_version("m2", &version(0), None).await.unwrap();
    client(&server).await.put("/beige/test/versions/m/unreadable", "{}", None).await.unwrap();

    let listed = etcd.list_versions(Some("m")).await.unwrap();
    assert!(listed.iter().all(|listed| listed.model == "m"));
    assert!(listed.is_sorted_by_key(|listed| listed.digest.clone()));
    let mut sizes: Vec<u64> = listed.iter().map(|listed| listed.version.manifest.bytes()).collect();
    sizes.sort_unstable();
    assert!(sizes.into_iter().eq(0..40));
    assert_eq!(etcd.list_versions(None).await.unwrap().len(), 41);
    assert_eq!(etcd.list_versions(Some("n")).await.unwrap(), []);
}

#[tokio::test]
async fn what_is_kept_and_refused_is_seen_until_it_is_taken_back() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let digest = version(1).manifest.digest();
    let pin = Pin { since_unix_ms: 7 };
    assert!(!etcd.pin(("m", &digest), pin).await.unwrap(), "nobody published it");
    etcd.put_version("m", &version(1), None).await.unwrap();
    assert!(etcd.pin(("m", &digest), pin).await.unwrap());
    assert!(etcd.pin(("m", &digest), Pin { since_unix_ms: 9 }).await.unwrap());
    let nack = Nack {
        reason: NackReason::Golden,
        detail: "0.9 < 0.999".into(),
        swap_id: Some("s".into()),
        boot_id: "b".into(),
        made_room: false,
    };
    etcd.put_nack(("m", &digest), &id("w1"), &nack).await.unwrap();

    let follower = watch_over(&etcd, |_| true);
    let checkpoint = ("m".to_owned(), digest.clone());
    let is_seen = {
        let (checkpoint, nack) = (checkpoint.clone(), nack.clone());
        move |view: &Arc<View>| {
            view.pins.get(&checkpoint) == Some(&pin)
                && view.nacks.get(&checkpoint) == Some(&BTreeMap::from([(id("w1"), nack.clone())]))
        }
    };
    until(follower.views.clone(), is_seen).await;
    etcd.unpin(("m", &digest)).await.unwrap();
    etcd.clear_nack(("m", &digest), &id("w1")).await.unwrap();
    until(follower.views.clone(), |view| view.pins.is_empty() && view.nacks.is_empty()).await;
}

#[tokio::test]
async fn a_version_that_etcd_has_forgotten_is_put_back_by_whoever_is_ready_with_it() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let published = version(1);
    let digest = published.manifest.digest();
    etcd.put_version("m", &published, None).await.unwrap();
    let worker = join(&etcd, registration("w1", &[&digest]));
    assert!(worker.written().await);
    assert!(!etcd.put_version_back("m", &published, &id("w1")).await.unwrap(), "it is known");

    let key = format!("/beige/test/versions/m/{digest}");
    client(&server).await.delete(key, None).await.unwrap();
    assert!(!etcd.put_version_back("m", &published, &id("w2")).await.unwrap(), "somebody else is ready");
    assert_eq!(etcd.version("m", &digest).await.unwrap(), None);
    assert!(etcd.put_version_back("m", &published, &id("w1")).await.unwrap());
    assert_eq!(etcd.version("m", &digest).await.unwrap(), Some(published.clone()));

    // What nobody is ready with any more may have been forgotten on purpose.
    worker.update(registration("w1", &[]));
    assert!(worker.written().await);
    etcd.forget_version("m", &digest).await.unwrap();
    assert!(!etcd.put_version_back("m", &published, &id("w1")).await.unwrap());
}
