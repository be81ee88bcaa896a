//! Who is let in and who is not, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tls::testing::{Authority, Files, Validity};
use tls::{Client, ClientFiles, Dialer, Distrust, Door, Reason, Refusals, Reloaded, Server, ServerFiles};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const HOST: &str = "127.0.0.1";

/// A server that tells its health to whoever is let in.
struct House {
    address: SocketAddr,
    refusals: Registry,
    _served: AbortOnDropHandle<Result<(), tonic::transport::Error>>,
}

impl House {
    async fn open(files: Option<ServerFiles>) -> Self {
        let listener = TcpListener::bind((HOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = files.map(|files| Arc::new(Server::load(files).unwrap()));
        let (refused, mut refusals) = (Refusals::default(), Registry::default());
        refused.register(&mut refusals);
        let (_, health) = tonic_health::server::health_reporter();
        let door = Door::new(listener, tls, refused);
        let served = tonic::transport::Server::builder().add_service(health).serve_with_incoming(door);
        Self { address, refusals, _served: AbortOnDropHandle::new(TaskTracker::new().spawn(served)) }
    }

    fn endpoint(&self) -> Endpoint {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect_timeout(Duration::from_secs(30))
    }

    /// Connects anew and asks.
    async fn ask(&self, dialer: &Dialer) -> Result<(), String> {
        let channel = dialer.connect(&self.endpoint()).await.map_err(|error| innermost(&error))?;
        ask(channel).await
    }

    fn refused(&self, reason: Reason) -> bool {
        let mut shown = String::new();
        text::encode(&mut shown, &self.refusals).unwrap();
        shown.contains(&format!(r#"connections_refused_total{{reason="{}"}}"#, reason.label()))
    }

    async fn until_refused(&self, reason: Reason) {
        let counted = async {
            while !self.refused(reason) {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(Duration::from_secs(30), counted).await.expect("it was never counted");
    }
}

async fn ask(channel: Channel) -> Result<(), String> {
    let request = HealthCheckRequest { service: String::new() };
    HealthClient::new(channel).check(request).await.map(|_| ()).map_err(|status| format!("{status:?}"))
}

fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

fn dialer(files: ClientFiles, name: Option<&str>) -> Dialer {
    Dialer::secured(Arc::new(Client::load(files).unwrap()), name).unwrap()
}

/// Two authorities, and a server by the first that wants certificates of the first.
struct Town {
    directory: TempDir,
    ours: Authority,
    theirs: Authority,
}

impl Town {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, ours: Authority::named("ours"), theirs: Authority::named("theirs") }
    }

    fn files(&self) -> Files<'_> {
        Files(self.directory.path())
    }

    async fn house(&self) -> House {
        let issued = self.ours.issue(&[HOST, "house.test"], Validity::Lasting);
        House::open(Some(self.files().server("house", &issued, Some(&self.ours)))).await
    }

    /// A client that shows a certificate of `authority`.
    fn client(&self, name: &str, authority: &Authority, validity: Validity) -> Dialer {
        let issued = authority.issue(&["client.test"], validity);
        dialer(self.files().client(name, &self.ours, Some(&issued)), None)
    }
}

#[tokio::test]
async fn whoever_shows_the_right_certificate_is_let_in() {
    let town = Town::new();
    let house = town.house().await;
    let client = town.client("known", &town.ours, Validity::Lasting);
    house.ask(&client).await.unwrap();
    ask(client.lazy(&house.endpoint())).await.unwrap();
}

#[tokio::test]
async fn whoever_is_refused_learns_why() {
    let town = Town::new();
    let house = town.house().await;
    let distrust = async |dialer: &Dialer| {
        let refused = dialer.connect(&house.endpoint()).await.unwrap_err();
        Distrust::among(&refused).unwrap_or_else(|| panic!("{refused:?}"))
    };
    let nobody = dialer(town.files().client("nobody", &town.ours, None), None);
    for client in [
        nobody,
        town.client("stranger", &town.theirs, Validity::Lasting),
        town.client("expired", &town.ours, Validity::Past),
    ] {
        let found = distrust(&client).await;
        assert!(matches!(found, Distrust::Declined(_)), "{found:?}");
    }
    let suspicious = dialer(town.files().client("suspicious", &town.theirs, None), None);
    assert_eq!(distrust(&suspicious).await, Distrust::UnknownAuthority);
    let misled = dialer(town.files().client("misled", &town.ours, None), Some("another.test"));
    assert_eq!(distrust(&misled).await, Distrust::OtherName);
}

#[tokio::test]
async fn whoever_shows_none_or_a_wrong_one_is_refused_and_counted() {
    let town = Town::new();
    let house = town.house().await;
    let nobody = dialer(town.files().client("nobody", &town.ours, None), None);
    for (client, reason) in [
        (nobody, Reason::NoCertificate),
        (town.client("stranger", &town.theirs, Validity::Lasting), Reason::UnknownAuthority),
        (town.client("impostor", &Authority::named("ours"), Validity::Lasting), Reason::UnknownAuthority),
        (town.client("expired", &town.ours, Validity::Past), Reason::Expired),
        (Dialer::default(), Reason::Plaintext),
    ] {
        house.ask(&client).await.unwrap_err();
        house.until_refused(reason).await;
    }
    assert!(!house.refused(Reason::Protocol));
    house
        .ask(&town.client("known", &town.ours, Validity::Lasting))
        .await
        .expect("others are let in as before");
}

#[tokio::test]
async fn a_client_does_not_talk_to_a_server_it_cannot_know() {
    let town = Town::new();
    let house = town.house().await;
    let shown = town.ours.issue(&["client.test"], Validity::Lasting);
    let trusting = town.files().client("client", &town.ours, Some(&shown));
    house.ask(&dialer(trusting.clone(), Some("house.test"))).await.expect("a name it has");

    let error = house.ask(&dialer(trusting.clone(), Some("other.test"))).await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    let misled = town.files().client("misled", &town.theirs, Some(&shown));
    let error = house.ask(&dialer(misled, None)).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    house.until_refused(Reason::Declined).await;

    let expired = town.ours.issue(&[HOST], Validity::Past);
    let old = House::open(Some(town.files().server("old", &expired, None))).await;
    let error = old.ask(&dialer(trusting.clone(), None)).await.unwrap_err();
    assert!(error.contains("expired"), "{error}");

    let plain = House::open(None).await;
    plain.ask(&Dialer::default()).await.unwrap();
    plain.ask(&dialer(trusting.clone(), None)).await.unwrap_err();
}

#[tokio::test]
async fn whoever_only_knocks_is_no_fault() {
    let house = Town::new().house().await;
    drop(TcpStream::connect(house.address).await.unwrap());
    house.until_refused(Reason::Gone).await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    house.until_refused(Reason::Plaintext).await;
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer).await;
    assert!(ended.is_ok() || ended.unwrap_err().kind() == io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_say_nothing_keep_nobody_out_for_long() {
    let town = Town::new();
    let house = town.house().await;
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(TcpStream::connect(house.address).await.unwrap());
    }
    house.ask(&town.client("known", &town.ours, Validity::Lasting)).await.unwrap();
    house.until_refused(Reason::Slow).await;
}

#[tokio::test]
async fn whoever_connects_and_says_nothing_is_cut_off() {
    let plain = House::open(None).await;
    let mut silent = TcpStream::connect(plain.address).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0").await.unwrap();
    plain.until_refused(Reason::Slow).await;
    let ended = time::timeout(Duration::from_secs(30), silent.read_to_end(&mut Vec::new())).await;
    ended.expect("the connection is closed").ok();
    plain.ask(&Dialer::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_change_under_load_without_a_failed_call() {
    let town = Town::new();
    // Both ends trust both authorities, as they do while one takes over from the other.
    let (files, both) = (town.files(), [&town.ours, &town.theirs]);
    let trusted = files.authorities("trusted", &both);
    let renew = |authority: &Authority| {
        let server = files.identity("house", &authority.issue(&[HOST], Validity::Lasting));
        (server, files.identity("client", &authority.issue(&["client.test"], Validity::Lasting)))
    };
    let ((certificate, key), identity) = renew(&town.ours);
    let house =
        House::open(Some(ServerFiles { certificate, key, client_authorities: Some(trusted.clone()) })).await;
    let client = dialer(ClientFiles { authorities: Some(trusted), identity: Some(identity) }, None);
    let (stay, calls, done) = (client.lazy(&house.endpoint()), AtomicUsize::new(0), AtomicBool::new(false));
    let calling = async {
        while !done.load(Ordering::Relaxed) {
            house.ask(&client).await.unwrap();
            ask(stay.clone()).await.expect("connections that are open stay");
            calls.fetch_add(1, Ordering::Relaxed);
        }
    };
    let changes = async {
        for i in 0..20 {
            time::sleep(Duration::from_millis(20)).await;
            let _ = renew(both[i % 2]);
        }
        // And some with the last ones.
        let answered = calls.load(Ordering::Relaxed) + 2;
        while calls.load(Ordering::Relaxed) < answered {
            time::sleep(Duration::from_millis(10)).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(calling, changes);
    // Trust in the first is taken back: a server that shows its certificate is not talked to.
    let _ = renew(&town.ours);
    let _ = files.authorities("trusted", &[&town.theirs]);
    house.ask(&client).await.unwrap_err();
    ask(stay).await.expect("connections that are open stay");
}

#[test]
fn what_is_wrong_with_files_is_named() {
    #[track_caller]
    fn check(files: ServerFiles, expected: &str) {
        let error = Reloaded::load(files).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let town = Town::new();
    let one = town.files().server("one", &town.ours.issue(&[HOST], Validity::Lasting), None);
    let other = town.files().server("other", &town.ours.issue(&[HOST], Validity::Lasting), None);
    check(ServerFiles { key: other.key.clone(), ..one.clone() }, "is not that of the certificate in");
    check(ServerFiles { key: one.certificate.clone(), ..one.clone() }, "has no private key");
    check(ServerFiles { certificate: one.key.clone(), ..one.clone() }, "has no certificate");
    check(
        ServerFiles { certificate: Path::new("/nonexistent").into(), ..one.clone() },
        "cannot read /nonexistent",
    );
    let authorities = Some(one.key.clone());
    check(ServerFiles { client_authorities: authorities, ..one }, "has no certificate of an authority");
}
