//! An etcd of three members with one down: a call or two are lost, and nothing else.

use super::*;

/// What is done to the member that everybody is connected to.
#[derive(Clone, Copy)]
enum Loss {
    Killed,
    /// It hangs: connections to it stay open, and new ones are accepted by its host.
    Frozen,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_member_in_use_is_killed() {
    check(Loss::Killed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_member_in_use_hangs() {
    check(Loss::Frozen).await;
}

async fn check(loss: Loss) {
    let mut servers = EtcdServer::start_cluster(3).await;
    // The first is the one in use, until it fails.
    let etcd = connect_to(servers.iter().map(EtcdServer::endpoint).collect());
    let ttl = MembershipOptions::default().ttl;
    let member = join_for(&etcd, registration("w1", &["d1"]), ttl);
    let follower = watch_over(&etcd, |_| false);
    follower.sees(&["w1"]).await;
    until(member.registered(), |registered| *registered).await;
    let mut client = client(&servers[2]).await;
    let before = lease_of(&mut client, "/beige/test/workers/w1").await;
    let stop = CancellationToken::new();
    let fewest = note_fewest(follower.views.clone(), &stop);

    match loss {
        Loss::Killed => servers[0].kill(),
        Loss::Frozen => servers[0].freeze(),
    }
    // Whoever comes now finds the dead member first.
    let newcomer = connect_to(servers.iter().map(EtcdServer::endpoint).collect());
    let _late = join_for(&newcomer, registration("w2", &["d1"]), ttl);
    follower.sees(&["w1", "w2"]).await;
    watch_over(&newcomer, |_| false).sees(&["w1", "w2"]).await;
    // Time for the lease to run out, had it not been renewed elsewhere.
    time::sleep(ttl * 3 / 2).await;
    assert_eq!(lease_of(&mut client, "/beige/test/workers/w1").await, before);
    assert_eq!(*fewest.borrow(), 1, "no view was emptier than before");

    match loss {
        Loss::Killed => servers[0].restart().await,
        Loss::Frozen => servers[0].thaw(),
    }
    let _last = join(&etcd, registration("w3", &["d1"]));
    follower.sees(&["w1", "w2", "w3"]).await;
    stop.cancel();
}
