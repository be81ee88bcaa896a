//! A registration appears, is kept, changes, and goes.

use std::collections::BTreeSet;

use tokio::runtime;

use super::*;

#[tokio::test]
async fn a_registration_appears_as_it_was_made() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let follower = watch_over(&etcd, |_| false);
    let membership = join(&etcd, registration("w1", &["d1", "d2"]));

    let view = follower.sees(&["w1"]).await;
    assert_eq!(view.workers[&id("w1")], registration("w1", &[]).worker);
    let ready: Vec<_> = view.ready.keys().map(|(model, digest)| (model.as_str(), digest.as_str())).collect();
    assert_eq!(ready, [("m", "d1"), ("m", "d2")]);
    assert!(view.ready.values().all(|workers| workers == &BTreeSet::from([id("w1")])));
    until(membership.registered(), |registered| *registered).await;
}

#[tokio::test]
async fn the_registration_of_a_process_that_died_goes_with_its_lease() {
    let server = EtcdServer::start().await;
    let follower = watch_over(&connect(&server), |_| false);
    // A runtime is as near to a process as a test can have within itself.
    let process = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let etcd = connect(&server);
    let membership =
        process.spawn(async move { join_for(&etcd, registration("w1", &["d1"]), TTL) }).await.unwrap();
    follower.sees(&["w1"]).await;

    process.shutdown_background();
    let view = follower.sees(&[]).await;
    assert!(view.ready.is_empty());
    drop(membership);
}

#[tokio::test]
async fn leaving_takes_the_registration_away_at_once() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let membership = join(&etcd, registration("w1", &["d1"]));
    let mut registered = membership.registered();
    until(registered.clone(), |registered| *registered).await;

    membership.leave().await;
    // No waiting here: gone means gone when `leave` returns.
    let entries =
        client(&server).await.get("/beige/", Some(etcd_client::GetOptions::new().with_prefix())).await;
    assert!(entries.unwrap().kvs().is_empty());
    assert!(!*registered.borrow_and_update());
    assert!(registered.changed().await.is_err(), "the place is given up");
}

#[tokio::test]
async fn stopping_or_dropping_leaves_too() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let follower = watch_over(&etcd, |_| false);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let options = MembershipOptions { ttl: Duration::from_secs(300) };
    let join =
        |worker| Membership::join(etcd.clone(), registration(worker, &["d1"]), options, &tasks, stop.clone());
    let (stopped, dropped) = (join("w1"), join("w2"));
    follower.sees(&["w1", "w2"]).await;

    drop(dropped);
    follower.sees(&["w1"]).await;
    stop.cancel();
    follower.sees(&[]).await;
    // The order does not matter: there is nothing left to leave.
    time::timeout(PATIENCE, stopped.leave()).await.unwrap();
    tasks.close();
    time::timeout(PATIENCE, tasks.wait()).await.unwrap();
}

#[tokio::test]
async fn an_update_adds_removes_and_drains() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let follower = watch_over(&etcd, |_| false);
    let membership = join(&etcd, registration("w1", &["d1"]));
    follower.sees(&["w1"]).await;

    let digests = |view: &View| view.ready.keys().map(|(_, digest)| digest.clone()).collect::<Vec<_>>();
    membership.update(registration("w1", &["d1", "d2"]));
    until(follower.views.clone(), |view| digests(view) == ["d1", "d2"]).await;
    membership.update(registration("w1", &["d2"]));
    until(follower.views.clone(), |view| digests(view) == ["d2"]).await;

    let mut draining = registration("w1", &["d2"]);
    draining.worker.draining = true;
    membership.update(draining);
    until(follower.views.clone(), |view| view.workers[&id("w1")].draining).await;
}

#[tokio::test]
async fn more_checkpoints_than_one_transaction_holds_are_registered() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let follower = watch_over(&etcd, |_| false);
    let digests: Vec<String> = (0..200).map(|i| format!("d{i}")).collect();
    let digests: Vec<&str> = digests.iter().map(String::as_str).collect();
    let membership = join(&etcd, registration("w1", &digests));
    until(follower.views.clone(), |view| view.ready.len() == 200).await;
    membership.update(registration("w1", &["d7"]));
    until(follower.views.clone(), |view| view.ready.len() == 1).await;
}

#[tokio::test]
async fn keys_that_somebody_removed_come_back() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let membership = join_for(&etcd, registration("w1", &["d1"]), TTL);
    until(membership.registered(), |registered| *registered).await;
    let follower = watch_over(&etcd, |_| false);
    follower.sees(&["w1"]).await;

    let mut client = client(&server).await;
    assert_eq!(*membership.restored().borrow(), 0);
    client.delete("/beige/test/workers/w1", None).await.unwrap();
    follower.sees(&[]).await;
    follower.sees(&["w1"]).await;
    until(membership.restored(), |count| *count == 1).await;
}

#[tokio::test]
async fn a_registration_outlives_its_lease_time_and_stirs_nobody() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let membership = join_for(&etcd, registration("w1", &["d1"]), TTL);
    until(membership.registered(), |registered| *registered).await;

    let mut client = client(&server).await;
    let mut look =
        async || (lease_of(&mut client, "/beige/test/workers/w1").await, revision(&mut client).await);
    let mut before = look().await;
    for _ in 0..5 {
        // Time for many renewals and a check of the keys.
        time::sleep(TTL * 7).await;
        let after = look().await;
        if before.0 == after.0 {
            assert_eq!(before.1, after.1);
            return;
        }
        // The machine stood still for so long that the lease ran out, which says nothing.
        before = after;
    }
    panic!("the lease is not kept");
}

async fn revision(client: &mut etcd_client::Client) -> i64 {
    client.get("/", None).await.unwrap().header().unwrap().revision()
}

#[tokio::test]
async fn what_was_said_last_is_known_to_be_written() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let membership = join(&etcd, registration("w1", &["d1", "d2"]));
    assert!(membership.written().await);
    membership.update(registration("w1", &["d2"]));
    assert!(membership.written().await);
    let mut client = client(&server).await;
    let prefix = Some(etcd_client::GetOptions::new().with_prefix().with_keys_only());
    let keys = client.get("/beige/test/ready/", prefix).await.unwrap();
    let keys: Vec<&str> = keys.kvs().iter().map(|entry| entry.key_str().unwrap()).collect();
    assert_eq!(keys, ["/beige/test/ready/m/d2/w1"]);

    let written = membership.written();
    membership.update(registration("w1", &[]));
    let never = membership.written();
    membership.leave().await;
    assert!(written.await, "it was written before");
    // Given up before or after it was written, but never waited for in vain.
    let _ = time::timeout(PATIENCE, never).await.unwrap();
}
