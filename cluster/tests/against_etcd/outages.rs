//! etcd is away or hung: nobody waits for ever, and nobody is forgotten.

use cluster::{Directory, Error, Freshness, claim_alias};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_comes_late_is_no_reason_to_fail() {
    let mut server = EtcdServer::start().await;
    server.stop().await;
    let etcd = connect(&server);
    let follower = watch_over(&etcd, |_| false);
    let membership = join_for(&etcd, registration("w1", &["d1"]), TTL);
    time::sleep(TTL).await;
    assert_eq!(follower.sight.borrow().freshness, Freshness::Unseen);
    assert!(!*membership.registered().borrow());

    server.restart().await;
    follower.sees(&["w1"]).await;
    until(membership.registered(), |registered| *registered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_the_lease_keeps_the_view_and_the_registration() {
    let mut server = EtcdServer::start().await;
    let etcd = connect(&server);
    let members = ["w1", "w2", "w3"].map(|worker| join_for(&etcd, registration(worker, &["d1"]), TTL));
    let follower = watch_over(&etcd, |_| true);
    follower.sees(&["w1", "w2", "w3"]).await;
    let stop = CancellationToken::new();
    let fewest = note_fewest(follower.views.clone(), &stop);

    server.stop().await;
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Stale).await;
    time::sleep(TTL * 3).await;
    server.restart().await;
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Current).await;
    for membership in &members {
        until(membership.registered(), |registered| *registered).await;
    }
    time::sleep(TTL * 2).await;
    follower.sees(&["w1", "w2", "w3"]).await;
    assert!(*fewest.borrow() >= 2, "at most half may be missing from a view: {fewest:?}");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_was_killed_comes_back_with_everybody() {
    let mut server = EtcdServer::start().await;
    let etcd = connect(&server);
    let _member = join_for(&etcd, registration("w1", &["d1"]), TTL);
    let follower = watch_over(&etcd, |_| true);
    follower.sees(&["w1"]).await;
    server.kill();
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Stale).await;
    server.restart().await;
    // Who joins now is seen: the watch is live again.
    let _late = join(&etcd, registration("w2", &["d1"]));
    follower.sees(&["w1", "w2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_etcd_hangs_nobody() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let membership = join_for(&etcd, registration("w1", &["d1"]), TTL);
    let follower = watch_over(&etcd, |_| false);
    follower.sees(&["w1"]).await;

    server.freeze();
    // Far above the deadline of a call, far below for ever.
    let within = Duration::from_secs(30);
    let claim = time::timeout(within, claim_alias(&etcd, "m", "d1")).await.expect("ends");
    assert!(matches!(claim, Err(Error::Unavailable { .. })), "{claim:?}");
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Stale).await;
    time::timeout(within, membership.leave()).await.expect("gives up waiting");
    follower.sees(&["w1"]).await;

    server.thaw();
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Current).await;
    assert_eq!(claim_alias(&etcd, "m", "d1").await.unwrap().epoch, 1);
}

#[tokio::test]
async fn a_watch_on_a_frozen_etcd_ends_by_itself() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let mut directory = etcd.directory();
    directory.list().await.unwrap();
    // Opened, and quiet for long enough to show that a healthy one stays.
    time::timeout(Duration::from_secs(15), directory.changed()).await.expect_err("nothing happened");
    server.freeze();
    let changed = time::timeout(PATIENCE, directory.changed()).await.expect("probed in vain");
    assert!(matches!(changed, Err(Error::Unavailable { .. })), "{changed:?}");
}

#[tokio::test]
async fn an_endpoint_that_accepts_and_never_speaks_hangs_nobody() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let etcd = connect_to(vec![silent.local_addr().unwrap().to_string()]);
    let claim = time::timeout(Duration::from_secs(30), claim_alias(&etcd, "m", "d1")).await.expect("ends");
    assert!(matches!(claim, Err(Error::Unavailable { .. })), "{claim:?}");
}

#[tokio::test]
async fn a_member_that_is_down_costs_a_try_and_not_the_service() {
    let server = EtcdServer::start().await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let etcd = connect_to(vec![nobody.to_string(), server.endpoint()]);
    let follower = watch_over(&etcd, |_| true);
    let _membership = join_for(&etcd, registration("w1", &["d1"]), TTL);
    follower.sees(&["w1"]).await;
}
