//! The members of etcd choose another leader: in peace, after its death, and with us on the wrong side of a gap.

use super::*;

/// Whose turn it is to lead, by what the members say themselves.
async fn leader(servers: &[EtcdServer]) -> usize {
    let found = async {
        loop {
            for (i, server) in servers.iter().enumerate() {
                let status = client(server).await.status().await.unwrap();
                if status.leader() == status.header().unwrap().member_id() {
                    return i;
                }
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(PATIENCE, found).await.expect("one of them leads")
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_that_moves_costs_no_registration_and_no_view() {
    let servers = EtcdServer::start_cluster(3).await;
    let etcd = connect_to(servers.iter().map(EtcdServer::endpoint).collect());
    let ttl = MembershipOptions::default().ttl;
    let member = join_for(&etcd, registration("w1", &["d1"]), ttl);
    let follower = watch_over(&etcd, |_| false);
    follower.sees(&["w1"]).await;
    until(member.registered(), |registered| *registered).await;
    let mut observer = client(&servers[0]).await;
    let before = lease_of(&mut observer, "/beige/test/workers/w1").await;
    let stop = CancellationToken::new();
    let fewest = note_fewest(follower.views.clone(), &stop);

    for turn in 0..4 {
        let leading = leader(&servers).await;
        let heir = client(&servers[(leading + 1) % 3]).await.status().await.unwrap();
        let heir = heir.header().unwrap().member_id();
        client(&servers[leading]).await.move_leader(heir).await.unwrap();
        // News is told under each of them.
        let alias = format!("m{turn}");
        cluster::claim_alias(&connect(&servers[2]), &alias, "d1").await.unwrap();
        until(follower.views.clone(), |view| view.aliases.contains_key(&alias)).await;
    }
    time::sleep(ttl * 3 / 2).await;
    assert_eq!(lease_of(&mut observer, "/beige/test/workers/w1").await, before);
    assert_eq!(*fewest.borrow(), 1);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_the_leader_costs_no_registration_and_no_view() {
    let mut servers = EtcdServer::start_cluster(3).await;
    let leading = leader(&servers).await;
    // Connected to the leader first.
    servers.rotate_left(leading);
    let etcd = connect_to(servers.iter().map(EtcdServer::endpoint).collect());
    let ttl = MembershipOptions::default().ttl;
    let member = join_for(&etcd, registration("w1", &["d1"]), ttl);
    let follower = watch_over(&etcd, |_| false);
    follower.sees(&["w1"]).await;
    until(member.registered(), |registered| *registered).await;
    let stop = CancellationToken::new();
    let fewest = note_fewest(follower.views.clone(), &stop);

    servers[0].kill();
    leader(&servers[1..]).await;
    let _late = join_for(&etcd, registration("w2", &["d1"]), ttl);
    follower.sees(&["w1", "w2"]).await;
    time::sleep(ttl * 3 / 2).await;
    follower.sees(&["w1", "w2"]).await;
    assert_eq!(*fewest.borrow(), 1);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_without_a_majority_is_left() {
    let mut servers = EtcdServer::start_cluster(3).await;
    let etcd = connect_to(vec![servers[0].endpoint(), servers[1].endpoint()]);
    let follower = watch_over(&etcd, |_| true);
    let _member = join(&etcd, registration("w1", &["d1"]));
    follower.sees(&["w1"]).await;

    // The member in use runs on, and nobody agrees with it any more.
    servers[1].kill();
    servers[2].kill();
    until(follower.sight.clone(), |sight| sight.freshness == cluster::Freshness::Stale).await;
    servers[1].restart().await;
    let _late = join(&etcd, registration("w2", &["d1"]));
    follower.sees(&["w1", "w2"]).await;
    until(follower.sight.clone(), |sight| sight.freshness == cluster::Freshness::Current).await;
}
