//! What cannot be read is skipped, and harms nobody else.

use super::*;

#[tokio::test]
async fn nonsense_beside_a_registration_does_not_hide_it() {
    let server = EtcdServer::start().await;
    let mut client = client(&server).await;
    for (key, value) in [
        ("/beige/test/workers/broken", b"{".as_slice()),
        ("/beige/test/workers/newer", br#"{"v":2}"#),
        ("/beige/test/workers/binary", b"\xff\x00"),
        ("/beige/test/workers/", b"{}"),
        ("/beige/test/workers/a/b", b"{}"),
        ("/beige/test/workers/with space", b"{}"),
        ("/beige/test/ready/m/d1/broken", b"null"),
        ("/beige/test/ready/m", b"{}"),
        ("/beige/test/aliases/broken", b"[]"),
        ("/beige/test/versions/m/d1", b"of another part"),
    ] {
        client.put(key, value, None).await.unwrap();
    }
    let etcd = connect(&server);
    let _member = join(&etcd, registration("w1", &["d1"]));
    let view = watch_over(&etcd, |_| true).sees(&["w1"]).await;
    assert_eq!(view.ready.len(), 1);
    assert!(view.aliases.is_empty());
}

#[tokio::test]
async fn a_cluster_larger_than_a_default_message_is_listed() {
    let server = EtcdServer::start().await;
    let mut client = client(&server).await;
    let bulky = vec![b'x'; 1 << 20];
    for i in 0..6 {
        client.put(format!("/beige/test/workers/bulky{i}"), bulky.clone(), None).await.unwrap();
    }
    let etcd = connect(&server);
    let _member = join(&etcd, registration("w1", &["d1"]));
    watch_over(&etcd, |_| true).sees(&["w1"]).await;
}

#[tokio::test]
async fn what_a_killed_process_was_ready_for_is_not_its_successors() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let predecessor = join(&etcd, registration("w1", &["old"]));
    let follower = watch_over(&etcd, |_| true);
    until(follower.views.clone(), |view| view.ready.len() == 1).await;

    let mut successor = registration("w1", &["new"]);
    successor.worker.boot_id = "another boot".into();
    for (_, _, ready) in &mut successor.ready {
        ready.boot_id = "another boot".into();
    }
    let _successor = join(&etcd, successor);
    let digests = |view: &View| view.ready.keys().map(|(_, digest)| digest.clone()).collect::<Vec<_>>();
    let view = until(follower.views.clone(), |view| digests(view) == ["new"]).await;
    assert_eq!(view.workers[&id("w1")].boot_id, "another boot");
    drop(predecessor);
}
