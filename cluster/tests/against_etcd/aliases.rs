//! Claims of a model's name.

use cluster::{Alias, Error, claim_alias};

use super::*;

/// Claims of `m` for these digests, all at once, each over its own connection.
async fn race(server: &EtcdServer, digests: impl IntoIterator<Item = String>) -> Vec<Alias> {
    let claimants: Vec<_> = digests
        .into_iter()
        .map(|digest| {
            let etcd = connect(server);
            let claim = async move { claim_alias(&etcd, "m", &digest).await.unwrap() };
            TaskTracker::new().spawn(claim)
        })
        .collect();
    let mut answers = Vec::new();
    for claimant in claimants {
        answers.push(claimant.await.unwrap());
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_claimants_one_wins_and_all_agree() {
    let server = EtcdServer::start().await;
    // Nobody else may take over, as each digest is being served.
    let etcd = connect(&server);
    let digests: Vec<String> = (0..24).map(|i| format!("d{i}")).collect();
    let loaded: Vec<&str> = digests.iter().map(String::as_str).collect();
    let membership = join(&etcd, registration("w1", &loaded));
    until(membership.registered(), |registered| *registered).await;

    let answers = race(&server, digests.clone()).await;
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    assert_eq!((answers[0].epoch, &answers[0].prev), (1, &None));
    // And again: what is settled stays.
    assert_eq!(race(&server, digests).await, answers);
    membership.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claimants_of_one_digest_share_one_epoch() {
    let server = EtcdServer::start().await;
    let answers = race(&server, (0..24).map(|_| "d".to_owned())).await;
    assert_eq!(answers, vec![Alias::of("d", 1); 24]);
}

#[tokio::test(flavor = "multi_thread")]
async fn heirs_of_a_checkpoint_nobody_serves_share_one_move() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    claim_alias(&etcd, "m", "old").await.unwrap();
    let membership = join(&etcd, registration("w1", &["new"]));
    until(membership.registered(), |registered| *registered).await;
    let answers = race(&server, (0..24).map(|_| "new".to_owned())).await;
    assert_eq!(answers, vec![Alias::of("new", 2); 24]);
    membership.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heirs_with_different_checkpoints_agree_on_one() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    claim_alias(&etcd, "m", "old").await.unwrap();
    let digests: Vec<String> = (0..24).map(|i| format!("d{i}")).collect();
    let loaded: Vec<&str> = digests.iter().map(String::as_str).collect();
    let membership = join(&etcd, registration("w1", &loaded));
    until(membership.registered(), |registered| *registered).await;
    let answers = race(&server, digests).await;
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    assert_eq!((answers[0].epoch, answers[0].prev.as_deref()), (2, None));
    membership.leave().await;
}

#[tokio::test]
async fn a_checkpoint_that_is_served_keeps_its_name() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let membership = join(&etcd, registration("w1", &["old"]));
    until(membership.registered(), |registered| *registered).await;
    claim_alias(&etcd, "m", "old").await.unwrap();
    assert_eq!(claim_alias(&etcd, "m", "new").await.unwrap(), Alias::of("old", 1));

    // Digests that begin alike are different digests.
    claim_alias(&etcd, "other", "ol").await.unwrap();
    assert_eq!(claim_alias(&etcd, "other", "new").await.unwrap(), Alias::of("new", 2));

    membership.leave().await;
    assert_eq!(claim_alias(&etcd, "m", "new").await.unwrap(), Alias::of("new", 2));
}

#[tokio::test]
async fn an_alias_of_a_newer_release_is_left_alone() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let (key, value) = ("/beige/test/aliases/m", br#"{"v":2,"digests":["d"]}"#);
    let mut client = client(&server).await;
    client.put(key, value.as_slice(), None).await.unwrap();
    let claim = claim_alias(&etcd, "m", "new").await;
    assert!(matches!(&claim, Err(Error::Unreadable { key: found, .. }) if found == key), "{claim:?}");
    assert_eq!(client.get(key, None).await.unwrap().kvs()[0].value(), value);
}

#[tokio::test]
async fn what_is_no_name_is_refused_before_etcd_hears_of_it() {
    let etcd = connect_to(vec!["127.0.0.1:1".into()]);
    for (model, digest) in [("a/b", "d"), ("", "d"), ("m@d", "d"), ("m", "a/b"), ("m", "")] {
        let claim = claim_alias(&etcd, model, digest).await;
        assert!(matches!(claim, Err(Error::InvalidName(_))), "{model} {digest}: {claim:?}");
    }
}

#[tokio::test]
async fn a_checkpoint_that_the_store_has_keeps_its_name() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let version = super::versions::version(1);
    let stored = version.manifest.digest();
    etcd.put_version("m", &version, None).await.unwrap();
    claim_alias(&etcd, "m", &stored).await.unwrap();
    // Nobody is ready with it, and any worker can be.
    assert_eq!(claim_alias(&etcd, "m", "new").await.unwrap(), Alias::of(stored, 1));

    let brought = cluster::Version { stored: false, ..version };
    etcd.put_version("n", &brought, None).await.unwrap();
    claim_alias(&etcd, "n", &brought.manifest.digest()).await.unwrap();
    assert_eq!(claim_alias(&etcd, "n", "new").await.unwrap(), Alias::of("new", 2));
}
