//! A connection is dead and looks quiet: whatever was lost on it is found out without it.

use cluster::Directory;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_connection_leads_nowhere_ends_by_itself() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.endpoint()).await;
    let mut directory = connect_to(vec![proxy.endpoint()]).directory();
    directory.list().await.unwrap();
    time::timeout(Duration::from_secs(1), directory.changed()).await.expect_err("nothing happened");

    proxy.strand();
    let _member = join(&connect(&server), registration("w1", &["d1"]));
    // Nobody asks etcd for anything: it is the watch that must find out.
    let changed = time::timeout(PATIENCE, directory.changed()).await.expect("probed in vain");
    assert!(changed.is_err(), "nothing can have come through");
    assert_eq!(directory.list().await.unwrap().workers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_finds_the_connection_dead_takes_the_watch_with_it() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.endpoint()).await;
    let etcd = connect_to(vec![proxy.endpoint()]);
    let mut directory = etcd.directory();
    directory.list().await.unwrap();
    time::timeout(Duration::from_secs(1), directory.changed()).await.expect_err("nothing happened");

    proxy.strand();
    cluster::claim_alias(&etcd, "m", "d1").await.expect_err("it leads nowhere");
    let changed = time::timeout(PATIENCE, directory.changed()).await.expect("ends with the connection");
    changed.expect("not an error: the next list has all that was missed");
}

#[tokio::test(flavor = "multi_thread")]
async fn stranded_connections_cost_no_registration_and_no_view() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.endpoint()).await;
    let etcd = connect_to(vec![proxy.endpoint()]);
    let ttl = MembershipOptions::default().ttl;
    let membership = join_for(&etcd, registration("w1", &["d1"]), ttl);
    let follower = watch_over(&etcd, |_| false);
    follower.sees(&["w1"]).await;
    until(membership.registered(), |registered| *registered).await;
    let mut client = client(&server).await;
    let before = lease_of(&mut client, "/beige/test/workers/w1").await;

    proxy.strand();
    let _late = join(&connect(&server), registration("w2", &["d1"]));
    follower.sees(&["w1", "w2"]).await;
    time::sleep(ttl).await;
    assert_eq!(lease_of(&mut client, "/beige/test/workers/w1").await, before);
    follower.sees(&["w1", "w2"]).await;
}
