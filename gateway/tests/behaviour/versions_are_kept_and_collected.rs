//! Versions that nothing uses are forgotten, and what only they had in the store is deleted; pinned ones stay, loaded.

use std::time::Duration;

use proto::v1;
use tokio::time;
use tonic::Code;

use crate::support::cluster::Cluster;
use crate::support::publisher::published;
use crate::support::{FakeWorker, Gateway, digest};

async fn start() -> (Cluster, FakeWorker, Gateway) {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let cluster = Cluster::start(&[&worker]).await;
    let gateway = cluster.gateway().await;
    (cluster, worker, gateway)
}

async fn pin(gateway: &Gateway, digest: &str, unpin: bool) -> v1::Version {
    let request = v1::PinRequest { model: "mini".into(), digest: digest.into(), unpin };
    gateway.models().await.pin(request).await.unwrap().into_inner()
}

async fn collect(gateway: &Gateway, keep: u32, dry_run: bool) -> (Vec<String>, u64) {
    let request = v1::CollectRequest { model: "mini".into(), keep: Some(keep), dry_run };
    let collected = gateway.models().await.collect(request).await.unwrap().into_inner();
    let digests = collected.versions.into_iter().map(|version| version.checkpoint.unwrap().digest);
    (digests.collect(), collected.bytes)
}

async fn listed(gateway: &Gateway) -> Vec<String> {
    let request = v1::ListVersionsRequest::default();
    let versions = gateway.models().await.list_versions(request).await.unwrap().into_inner().versions;
    versions.into_iter().map(|version| version.checkpoint.unwrap().digest).collect()
}

#[tokio::test]
async fn the_oldest_of_those_that_nothing_uses_go() {
    let (cluster, worker, gateway) = start().await;
    let mut digests = Vec::new();
    for flavour in ["vanilla", "chocolate", "hazelnut", "lemon"] {
        digests.push(published(&gateway, flavour).await);
    }
    let pinned = pin(&gateway, &digests[0][..16], false).await;
    assert!(pinned.pinned);
    worker.until_loaded(&[&digest('a'), &digests[0]]).await;

    let (would, bytes) = collect(&gateway, 1, true).await;
    assert_eq!(would, [digests[2].clone(), digests[1].clone()]);
    // The weights of two versions; their other files are those of the ones that stay.
    assert!(bytes > 2 * 3500, "{bytes}");
    assert_eq!(listed(&gateway).await.len(), 4, "a dry run does nothing");

    let (gone, freed) = collect(&gateway, 1, false).await;
    assert_eq!((gone, freed), (would, bytes));
    assert_eq!(listed(&gateway).await, [digests[3].clone(), digests[0].clone()]);
    let mut left = cluster.store.manifests().await.unwrap();
    left.sort();
    let mut expected = vec![digests[0].clone(), digests[3].clone()];
    expected.sort();
    assert_eq!(left, expected);

    let released = pin(&gateway, &digests[0], true).await;
    assert!(!released.pinned);
    worker.until_loaded(&[&digest('a')]).await;
    // The registration follows what is loaded.
    for _ in 0..600 {
        if collect(&gateway, 0, true).await.0.len() == 2 {
            break;
        }
        time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(collect(&gateway, 0, false).await.0.len(), 2);
    assert_eq!((listed(&gateway).await.len(), cluster.store.manifests().await.unwrap().len()), (0, 0));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn what_a_name_means_or_meant_is_never_collected() {
    let (_cluster, worker, gateway) = start().await;
    let (one, two) = (published(&gateway, "vanilla").await, published(&gateway, "chocolate").await);
    for digest in [&one, &two] {
        let plan = Some(v1::SwapPlan { new_space: true, ..v1::SwapPlan::default() });
        let request = v1::PromoteRequest { model: "mini".into(), digest: digest.clone(), plan };
        gateway.models().await.promote(request).await.unwrap();
        let watch = v1::WatchSwapRequest { model: "mini".into(), follow: false };
        let mut steps = gateway.models().await.watch_swap(watch).await.unwrap().into_inner();
        while let Some(step) = time::timeout(Duration::from_secs(60), steps.message()).await.unwrap().unwrap()
        {
            assert_eq!(step.to, *digest);
        }
    }
    worker.until_loaded(&[&one, &two]).await;
    assert_eq!(collect(&gateway, 0, false).await.0, Vec::<String>::new());
    let roles =
        gateway.models().await.list_versions(v1::ListVersionsRequest::default()).await.unwrap().into_inner();
    let roles: Vec<_> = roles.versions.iter().map(v1::Version::role).collect();
    assert_eq!(roles, [v1::VersionRole::Current, v1::VersionRole::Previous]);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_version_is_named_by_as_much_as_tells_it_from_others() {
    let (_cluster, _worker, gateway) = start().await;
    for i in 0..20 {
        published(&gateway, &format!("flavour {i}")).await;
    }
    let digests = listed(&gateway).await;
    let shared = (0..16).map(|digit| format!("{digit:x}"));
    let shared = shared
        .into_iter()
        .find(|digit| digests.iter().filter(|digest| digest.starts_with(digit)).count() > 1);
    let ask = async |digest: String| {
        let request = v1::PinRequest { model: "mini".into(), digest, unpin: false };
        gateway.models().await.pin(request).await
    };
    let status = ask(shared.expect("20 digests begin with 16 digits")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(ask(digests[0][..20].to_owned()).await.unwrap().into_inner().pinned);
    let nobody = ask(digest('0')).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
    gateway.end().await.unwrap();
}
