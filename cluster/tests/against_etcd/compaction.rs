//! History is compacted away: who was behind lists, and nobody is lost.

use cluster::{Directory, Error};

use super::*;

#[tokio::test]
async fn a_compacted_history_is_an_error_and_then_a_list() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let mut directory = etcd.directory();
    directory.list().await.unwrap();
    let mut client = client(&server).await;
    compact_away(&mut client).await;

    let changed = time::timeout(PATIENCE, directory.changed()).await.expect("etcd says so");
    assert!(
        matches!(&changed, Err(Error::WatchEnded { reason }) if reason.contains("compacted")),
        "{changed:?}"
    );
    directory.list().await.unwrap();
    time::timeout(Duration::from_secs(1), directory.changed()).await.expect_err("nothing happened since");
    let _member = join(&etcd, registration("w1", &["d1"]));
    time::timeout(PATIENCE, directory.changed()).await.expect("there is news").unwrap();
}

#[tokio::test]
async fn compactions_while_watching_lose_nobody() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let follower = watch_over(&etcd, |_| false);
    let mut client = client(&server).await;
    let mut members = Vec::new();
    for i in 0..10 {
        members.push(join(&etcd, registration(&format!("w{i}"), &["d1"])));
        compact_away(&mut client).await;
    }
    until(follower.views.clone(), |view| view.workers.len() == 10).await;
    members.truncate(3);
    compact_away(&mut client).await;
    follower.sees(&["w0", "w1", "w2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_behind_when_history_goes_is_told_and_listed() {
    let server = EtcdServer::start().await;
    let proxy = Proxy::start(server.endpoint()).await;
    let mut directory = connect_to(vec![proxy.endpoint()]).directory();
    directory.list().await.unwrap();
    time::timeout(Duration::from_secs(1), directory.changed()).await.expect_err("nothing happened");

    // More than the way to us holds, in bytes and in messages: etcd sets the watch aside, at a revision that is gone
    // afterwards.
    proxy.set(Fault::Hold);
    let mut client = client(&server).await;
    let bulky = vec![b'x'; 16 << 10];
    for _ in 0..2_000 {
        client.put("/beige/test/aliases/bulky", bulky.clone(), None).await.unwrap();
    }
    let member = join(&connect(&server), registration("w1", &["d1"]));
    until(member.registered(), |registered| *registered).await;
    compact_away(&mut client).await;
    proxy.set(Fault::None);

    let told = async {
        loop {
            match directory.changed().await {
                Ok(()) => drop(directory.list().await.unwrap()),
                Err(Error::WatchEnded { reason }) if reason.contains("compacted") => return,
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    time::timeout(PATIENCE, told).await.expect("etcd says so");
    assert_eq!(directory.list().await.unwrap().workers.len(), 1);
}

/// Writes a little and forgets all history.
async fn compact_away(client: &mut etcd_client::Client) {
    client.put("/elsewhere", "x", None).await.unwrap();
    let revision = client.put("/elsewhere", "y", None).await.unwrap().header().unwrap().revision();
    let options = etcd_client::CompactionOptions::new().with_physical();
    client.compact(revision, Some(options)).await.unwrap();
}
