//! etcd went back in time: wiped, or restored from an old snapshot. Nobody is forgotten, and no epoch goes back.

use cluster::{Alias, Freshness, claim_alias};

use super::*;

/// Writes what `m` means, as the leader would have.
async fn move_name(server: &EtcdServer, digest: &str, epoch: u64) {
    let value = format!(r#"{{"v":1,"digest":"{digest}","epoch":{epoch}}}"#);
    client(server).await.put("/beige/test/aliases/m", value, None).await.unwrap();
}

/// Writes that a swap of `m` has led to `d2`, as the leader would have.
async fn note_swap(server: &EtcdServer) {
    let value = r#"{"v":1,"swap_id":"s","from":"d1","to":"d2","state":"committed","mode":"beside","epoch":2,
        "requested_unix_ms":1,"deadline_unix_ms":2,"plan":{"deadline_ms":1,"shadow_ms":0}}"#;
    client(server).await.put("/beige/test/swaps/m", value, None).await.unwrap();
}

fn epoch(view: &View) -> u64 {
    view.aliases.get("m").map_or(0, |alias| alias.epoch)
}

/// Waits until `follower` has seen `m` mean `digest` at `epoch`.
#[track_caller]
fn means(follower: &Follower, digest: &str, epoch: u64) -> impl Future<Output = Arc<View>> + use<> {
    let expected = Alias::of(digest, epoch);
    until(follower.views.clone(), move |view| view.aliases.get("m") == Some(&expected))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_etcd_gets_back_all_that_was_seen_since_the_snapshot() {
    let mut server = EtcdServer::start().await;
    let etcd = connect(&server);
    let ttl = MembershipOptions::default().ttl;
    let first = join_for(&etcd, registration("w1", &["d1"]), ttl);
    until(first.registered(), |registered| *registered).await;
    claim_alias(&etcd, "m", "d1").await.unwrap();
    server.stop().await;
    let snapshot = server.snapshot();
    server.restart().await;

    // A worker, a checkpoint, a swap and a move of the name that the snapshot knows nothing of.
    first.update(registration("w1", &["d1", "d2"]));
    let second = join_for(&etcd, registration("w2", &["d2"]), ttl);
    let follower = watch_over(&etcd, |_| true);
    follower.sees(&["w1", "w2"]).await;
    note_swap(&server).await;
    move_name(&server, "d2", 2).await;
    means(&follower, "d2", 2).await;
    until(follower.views.clone(), |view| view.ready.len() == 2 && view.swaps.contains_key("m")).await;
    let stop = CancellationToken::new();
    let (fewest, lowest) =
        (note_fewest(follower.views.clone(), &stop), note_least(follower.views.clone(), &stop, epoch));

    server.stop().await;
    until(first.registered(), |registered| !registered).await;
    server.restore(&snapshot);
    server.restart().await;
    for membership in [&first, &second] {
        until(membership.registered(), |registered| *registered).await;
    }
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Current).await;
    // Who never saw it before sees it now.
    let newcomer = watch_over(&connect(&server), |_| true);
    let seen = means(&newcomer, "d2", 2).await;
    assert_eq!(seen.swaps.get("m").map(|swap| swap.swap_id.as_str()), Some("s"), "in one transaction");
    let complete = |view: &Arc<View>| view.workers.len() == 2 && view.ready.len() == 2;
    until(newcomer.views.clone(), complete).await;
    until(follower.views.clone(), complete).await;
    assert_eq!(*lowest.borrow(), 2, "no epoch went back");
    assert!(*fewest.borrow() >= 1, "at most half may be missing from a view: {fewest:?}");
    assert!(follower.sight.borrow().refusals > 0, "and somebody was told");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_was_moved_after_a_restore_ends_above_both_histories() {
    let mut server = EtcdServer::start().await;
    let etcd = connect(&server);
    let _member = join(&etcd, registration("w1", &["d1", "d2", "d3"]));
    claim_alias(&etcd, "m", "d1").await.unwrap();
    server.stop().await;
    let snapshot = server.snapshot();
    server.restart().await;
    let proxy = Proxy::start(server.endpoint()).await;
    let (near, far) =
        (watch_over(&etcd, |_| true), watch_over(&connect_to(vec![proxy.endpoint()]), |_| true));
    move_name(&server, "d2", 2).await;
    means(&near, "d2", 2).await;
    means(&far, "d2", 2).await;

    // Both are cut off, one of them at a later epoch, while another history reaches the first epoch again.
    proxy.set(Fault::Refuse);
    move_name(&server, "d3", 3).await;
    means(&near, "d3", 3).await;
    server.stop().await;
    server.restore(&snapshot);
    server.restart().await;
    let seen = means(&near, "d3", 3).await;
    assert_eq!(seen.aliases["m"], Alias::of("d3", 3));
    proxy.set(Fault::None);
    means(&far, "d3", 3).await;

    // Two meanings of one epoch: who saw the first has it at a higher one, and so has everybody in the end.
    move_name(&server, "d1", 3).await;
    until(near.views.clone(), |view| epoch(view) == 4).await;
    let agreed = near.views.borrow().aliases["m"].clone();
    assert_eq!(agreed, Alias::of("d3", 4));
    means(&far, "d3", 4).await;
    for follower in [&near, &far] {
        until(follower.sight.clone(), |sight| sight.freshness == Freshness::Current).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_whose_checkpoint_nobody_has_any_more_follows_etcd_at_a_higher_epoch() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let _member = join(&etcd, registration("w1", &["d1"]));
    move_name(&server, "lost", 7).await;
    let follower = watch_over(&etcd, |_| true);
    means(&follower, "lost", 7).await;
    follower.sees(&["w1"]).await;
    // As in an etcd from before, and workers from after.
    move_name(&server, "d1", 2).await;
    means(&follower, "d1", 8).await;
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Current).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_etcd_does_not_begin_to_count_anew() {
    let mut server = EtcdServer::start().await;
    let etcd = connect(&server);
    let member = join_for(&etcd, registration("w1", &["d1", "d2"]), TTL);
    let follower = watch_over(&etcd, |_| true);
    follower.sees(&["w1"]).await;
    move_name(&server, "d2", 5).await;
    means(&follower, "d2", 5).await;
    let stop = CancellationToken::new();
    let lowest = note_least(follower.views.clone(), &stop, epoch);

    server.stop().await;
    until(member.registered(), |registered| !registered).await;
    server.wipe();
    server.restart().await;
    until(member.registered(), |registered| *registered).await;
    // As a worker does that finds its name free: whoever saw more was quicker, or puts it right.
    claim_alias(&etcd, "m", "d1").await.unwrap();
    let newcomer = watch_over(&connect(&server), |_| true);
    means(&newcomer, "d2", 5).await;
    means(&follower, "d2", 5).await;
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Current).await;
    assert_eq!(*lowest.borrow(), 5);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_without_memory_is_doubted_until_everybody_is_back() {
    let mut server = EtcdServer::start().await;
    let etcd = connect(&server);
    let members = ["w1", "w2", "w3"].map(|worker| join_for(&etcd, registration(worker, &["d1"]), TTL));
    let follower = watch_over(&etcd, |_| true);
    follower.sees(&["w1", "w2", "w3"]).await;
    let stop = CancellationToken::new();
    let fewest = note_fewest(follower.views.clone(), &stop);

    server.stop().await;
    server.wipe();
    server.restart().await;
    for membership in &members {
        until(membership.registered(), |registered| *registered).await;
    }
    until(follower.sight.clone(), |sight| sight.freshness == Freshness::Current).await;
    follower.sees(&["w1", "w2", "w3"]).await;
    assert!(*fewest.borrow() >= 2, "at most half may be missing from a view: {fewest:?}");
    stop.cancel();
}
