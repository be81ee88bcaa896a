//! A lease is lost while its owner lives: the registration comes back, under another one.

use std::collections::BTreeSet;

use cluster::Freshness;

use super::*;

#[tokio::test]
async fn a_lost_lease_is_replaced_and_the_registration_written_again() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let membership = join_for(&etcd, registration("w1", &["d1"]), TTL);
    let registered = membership.registered();
    until(registered.clone(), |registered| *registered).await;
    let follower = watch_over(&etcd, |_| false);
    follower.sees(&["w1"]).await;

    let mut client = client(&server).await;
    let lost = lease_of(&mut client, "/beige/test/workers/w1").await;
    client.lease_client().revoke(lost).await.unwrap();
    follower.sees(&[]).await;
    let view = follower.sees(&["w1"]).await;
    assert_eq!(view.ready.values().next(), Some(&BTreeSet::from([id("w1")])));
    let found = lease_of(&mut client, "/beige/test/workers/w1").await;
    assert_ne!(found, lost);
    until(registered, |registered| *registered).await;

    // And when it is a write that finds the lease gone.
    client.lease_client().revoke(found).await.unwrap();
    membership.update(registration("w1", &["d2"]));
    let digests = |view: &View| view.ready.keys().map(|(_, digest)| digest.clone()).collect::<Vec<_>>();
    until(follower.views.clone(), |view| digests(view) == ["d2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_cut_off_for_longer_than_its_lease_comes_back_by_itself() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.endpoint()).await;
    let membership = join_for(&connect_to(vec![proxy.endpoint()]), registration("w1", &["d1"]), TTL);
    let registered = membership.registered();
    // It still answers the gateway: only etcd is out of its reach.
    let follower = watch_over(&connect(&server), |_| true);
    follower.sees(&["w1"]).await;
    let mut client = client(&server).await;
    let lost = lease_of(&mut client, "/beige/test/workers/w1").await;

    proxy.set(Fault::Refuse);
    until(registered.clone(), |registered| !registered).await;
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Doubted).await;
    assert!(follower.views.borrow().workers.contains_key(&id("w1")), "it is kept, for it answers");

    proxy.set(Fault::None);
    until(registered, |registered| *registered).await;
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Current).await;
    assert_ne!(lease_of(&mut client, "/beige/test/workers/w1").await, lost);
}
