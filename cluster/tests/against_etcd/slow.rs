//! etcd takes a second for each answer: everything is late, and nothing else.

use cluster::{Freshness, SwapPlan, SwapState, claim_alias};

use super::swaps::{Candidate, Scene};
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_takes_a_second_for_each_answer_costs_nobody_his_place() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.endpoint()).await;
    proxy.set(Fault::DelayAnswers(Duration::from_secs(1)));
    let etcd = connect_to(vec![proxy.endpoint()]);
    let ttl = MembershipOptions::default().ttl;
    let members = ["w1", "w2", "w3"].map(|worker| join_for(&etcd, registration(worker, &["d1"]), ttl));
    let follower = watch_over(&etcd, |_| false);
    follower.sees(&["w1", "w2", "w3"]).await;
    for membership in &members {
        until(membership.registered(), |registered| *registered).await;
    }

    let stop = CancellationToken::new();
    let fewest = note_fewest(follower.views.clone(), &stop);
    let falls = members.each_ref().map(|membership| note_falls(membership.registered(), &stop));
    let (current, is_current) = watch::channel(true);
    let mut sight = follower.sight.clone();
    TaskTracker::new().spawn(stop.clone().run_until_cancelled_owned(async move {
        while sight.changed().await.is_ok() {
            current.send_replace(sight.borrow_and_update().freshness == Freshness::Current);
        }
    }));
    let went_stale = note_falls(is_current, &stop);
    let mut client = client(&server).await;
    let before = lease_of(&mut client, "/beige/test/workers/w1").await;

    // Time for each lease to run out twice, and for many lists.
    time::sleep(ttl * 2).await;
    assert_eq!(claim_alias(&etcd, "m", "d1").await.unwrap().epoch, 1);
    until(follower.views.clone(), |view| view.aliases.contains_key("m")).await;
    assert_eq!(lease_of(&mut client, "/beige/test/workers/w1").await, before);
    assert_eq!(*fewest.borrow(), 3);
    assert!(falls.iter().all(|fell| !*fell.borrow()), "a registration flaps");
    assert!(!*went_stale.borrow(), "the view flaps");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_is_carried_out_by_a_leader_that_waits_a_second_for_each_answer() {
    let scene = Scene::set().await;
    let proxy = Proxy::start(scene.server.endpoint()).await;
    proxy.set(Fault::DelayAnswers(Duration::from_secs(1)));
    let etcd = connect_to(vec![proxy.endpoint()]);
    let leader = Candidate::start_for(&etcd, "g1", MembershipOptions::default().ttl);
    let mut client = client(&scene.server).await;
    until(leader.follower.views.clone(), |view| view.leader.is_some()).await;
    let elected = lease_of(&mut client, "/beige/test/leader").await;

    etcd.request_swap("m", &scene.new, &SwapPlan::default()).await.unwrap();
    leader.sees(SwapState::Preparing).await;
    scene.everybody_is_ready();
    let committed = leader.sees(SwapState::Committed).await;
    let alias = &committed.aliases["m"];
    assert_eq!((alias.digest.as_str(), alias.epoch), (scene.new.as_str(), 2));
    assert_eq!(alias.prev.as_deref(), Some(scene.old.as_str()));
    leader.say(2, &[]);
    etcd.request_retire("m", None).await.unwrap();
    let retired = leader.sees(SwapState::Retired).await;
    assert_eq!((retired.aliases["m"].epoch, &retired.aliases["m"].prev), (2, &None));
    assert_eq!(lease_of(&mut client, "/beige/test/leader").await, elected, "the lead has moved");
}
