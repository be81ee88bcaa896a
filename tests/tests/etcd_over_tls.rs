//! A cluster whose etcd wants certificates: who shows the right one serves, who does not says why it cannot.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::time::Duration;

use proto::v1::WorkerState;
use tempfile::TempDir;
use tests::{Cluster, EtcdServer, EtcdTls, PATIENCE, Plan, Process, checkpoint};
use tls::testing::{Authority, Files, Validity};
use tokio::time;

/// An authority, and certificates of it in files.
struct Office {
    authority: Authority,
    directory: TempDir,
}

impl Office {
    fn open() -> Self {
        Self { authority: Authority::named("ours"), directory: tempfile::tempdir().unwrap() }
    }

    async fn etcd(&self) -> EtcdServer {
        let files = Files(self.directory.path());
        let issued = self.authority.issue(&["127.0.0.1"], Validity::Lasting);
        let (certificate, key) = files.identity("etcd", &issued);
        let client_authorities = files.authorities("ca", &[&self.authority]);
        EtcdServer::start_secured(EtcdTls { certificate, key, client_authorities }).await
    }

    /// The path of a file.
    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    /// Settings of a process that shows etcd a new certificate, called `name`.
    fn flags(&self, name: &str, validity: Validity) -> [String; 6] {
        let issued = self.authority.issue(&["client.test"], validity);
        let _ = Files(self.directory.path()).identity(name, &issued);
        let flags = [
            "--etcd-ca",
            "ca.pem",
            "--etcd-cert",
            &format!("{name}.pem"),
            "--etcd-key",
            &format!("{name}.key"),
        ];
        flags.map(|text| if text.starts_with("--") { text.to_owned() } else { self.path(text) })
    }

    /// The part of a private key that nobody may read anywhere else.
    fn secret(&self, name: &str) -> String {
        let key = fs::read_to_string(self.path(&format!("{name}.key"))).unwrap();
        key.lines().nth(1).unwrap().to_owned()
    }
}

/// Waits until `process` has logged `text`.
async fn until_logged(process: &Process, text: &str) {
    let logged = async {
        while !process.log().contains(text) {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    let logged = time::timeout(PATIENCE, logged).await;
    assert!(logged.is_ok(), "{} never says {text:?}:\n{}", process.name, process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn gateways_and_workers_reach_an_etcd_that_wants_certificates() {
    let office = Office::open();
    let etcd = office.etcd().await;
    let endpoint = format!("https://{}", etcd.endpoint());
    let (good, expired) = (office.flags("good", Validity::Lasting), office.flags("expired", Validity::Past));
    let (good, expired) = (good.each_ref().map(String::as_str), expired.each_ref().map(String::as_str));

    let mut cluster = Cluster::of(Plan { gateways: 0, ..Plan::default() }).await;
    cluster.worker_through(&endpoint, &[checkpoint("bert-cls")], &good).await;
    let gateway = cluster.gateway_through(&endpoint, &good).await;
    cluster.gateways.push(gateway);
    cluster.wait_for(1, WorkerState::Serving).await;

    let refused = cluster.gateway_through(&endpoint, &expired).await;
    until_logged(&refused, "the server does not take our certificate, or wants one").await;
    assert!(!refused.page("/readyz").await.starts_with("HTTP/1.1 200"));
    let misled = [&good[..], &["--etcd-name", "another.test"]].concat();
    let misled = cluster.gateway_through(&endpoint, &misled).await;
    until_logged(&misled, "the server's certificate is for another name").await;

    for process in cluster.gateways.iter().chain(&cluster.workers).chain([&refused, &misled]) {
        for name in ["good", "expired"] {
            assert!(!process.log().contains(&office.secret(name)), "{} tells a key", process.name);
        }
    }
}
