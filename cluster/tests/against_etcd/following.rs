//! Listing and watching: what is missed is listed, what is foreign is not seen.

use cluster::Directory;

use super::*;

#[tokio::test]
async fn a_list_sees_what_is_there_and_a_watch_what_comes_after() {
    let server = EtcdServer::start().await;
    let etcd = connect(&server);
    let mut directory = etcd.directory();
    assert_eq!(directory.list().await.unwrap(), View::default());

    // Between the list and the watch: the watch starts at the list, not at its own beginning.
    let first = join(&etcd, registration("w1", &["d1"]));
    until(first.registered(), |registered| *registered).await;
    let changed = time::timeout(PATIENCE, directory.changed()).await;
    changed.expect("there is news").unwrap();
    assert_eq!(directory.list().await.unwrap().workers.len(), 1);

    // What the list has seen is not news again; a wait that was given up loses nothing.
    time::timeout(Duration::from_secs(1), directory.changed()).await.expect_err("nothing happened");
    let _second = join(&etcd, registration("w2", &["d1"]));
    time::timeout(PATIENCE, directory.changed()).await.expect("there is news").unwrap();
    assert_eq!(directory.list().await.unwrap().workers.len(), 2);
}

#[tokio::test]
async fn two_clusters_in_one_etcd_do_not_see_each_other() {
    let server = EtcdServer::start().await;
    let settings =
        |cluster| Settings { endpoints: vec![server.endpoint()], cluster: name(cluster), tls: None };
    // One name begins with the other, and both have a worker and a model of the same names.
    let [blue, blueish] = ["blue", "blueish"].map(|cluster| Etcd::connect(settings(cluster)).unwrap());
    let _members = [
        join(&blue, registration("w1", &["d1"])),
        join(&blueish, registration("w1", &["d2"])),
        join(&blueish, registration("w2", &["d2"])),
    ];
    cluster::claim_alias(&blue, "m", "d1").await.unwrap();
    cluster::claim_alias(&blueish, "m", "d2").await.unwrap();

    let (blue, blueish) = (watch_over(&blue, |_| true), watch_over(&blueish, |_| true));
    let (blue, blueish) = (blue.sees(&["w1"]).await, blueish.sees(&["w1", "w2"]).await);
    assert_eq!((blue.aliases["m"].digest.as_str(), blueish.aliases["m"].digest.as_str()), ("d1", "d2"));
}
