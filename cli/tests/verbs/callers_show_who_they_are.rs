//! Keys and certificates: made, sent, and not shown.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use futures::StreamExt as _;
use tls::testing::{Authority, Files, Validity};
use tls::{Door, Refusals, Server, ServerFiles};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::fake::Fake;
use crate::{beige, command};

#[test]
fn a_new_key_is_shown_once_beside_its_entry() {
    let fake = Fake::start();
    let ran = beige(&fake, &["keys", "new", "ci", "--rights", "models.write,models.read"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let key = ran.stderr.lines().find_map(|line| line.strip_prefix("  bg_")).unwrap();
    assert_eq!(key.len(), 64);
    assert!(!ran.stdout.contains(key), "what goes into the file is not the key");
    assert!(ran.stdout.starts_with("[[key]]\nid = \"ci\"\nsha256 = \""), "{ran:?}");
    assert!(ran.stdout.ends_with("rights = [\"models.read\", \"models.write\"]\n"), "{ran:?}");
    let object = beige(&fake, &["keys", "new", "ci", "--json"]).json().remove(0);
    assert!(object["key"].as_str().unwrap().starts_with("bg_") && object["entry"].is_string());
    beige(&fake, &["keys", "new", "no name"]).failed(2, "letters, digits");
    beige(&fake, &["keys", "new", "ci", "--rights", "all"]).failed(2, "models.write");
    beige(&fake, &["keys", "new", "ci", "--expires", "tomorrow"]).failed(2, "2027-01-31T00:00:00Z");
}

#[test]
fn a_key_goes_with_each_call() {
    let fake = Fake::start();
    assert_eq!(beige(&fake, &["models", "--key", "bg_1"]).code, Some(0));
    assert_eq!(fake.state().authorization.as_deref(), Some("Bearer bg_1"));
    let ran = command(&fake, &["embed", "a"]).env("BEIGE_KEY", "bg_2").output().unwrap();
    assert!(ran.status.success());
    assert_eq!(fake.state().authorization.as_deref(), Some("Bearer bg_2"));
    let bench = ["bench", "--corpus", "short", "--seconds", "1", "--warmup", "0", "--key", "bg_3", "--json"];
    assert_eq!(beige(&fake, &bench).code, Some(0));
    assert_eq!(fake.state().authorization.as_deref(), Some("Bearer bg_3"));
    assert_eq!(beige(&fake, &["models"]).code, Some(0));
    assert_eq!(fake.state().authorization, None);
}

/// Takes connections over TLS and passes them on to `fake`, for as long as the process lives.
fn secured(fake: &Fake, files: ServerFiles) -> SocketAddr {
    let behind: SocketAddr = fake.url().strip_prefix("http://").unwrap().parse().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async move {
        let server = Arc::new(Server::load(files).unwrap());
        let mut door = Door::new(TcpListener::from_std(listener).unwrap(), Some(server), Refusals::default());
        let mut open = JoinSet::new();
        while let Some(Ok(mut stream)) = door.next().await {
            open.spawn(async move {
                let mut fake = TcpStream::connect(behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut fake).await;
            });
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::Builder::new().name("tls".to_owned()).spawn(move || runtime.block_on(serve)).unwrap();
    address
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn certificates_are_checked_on_both_sides() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
    let files = Files(dir.path());
    let (servers, clients) = (Authority::named("servers"), Authority::named("clients"));
    let issued = servers.issue(&["127.0.0.1"], Validity::Lasting);
    let address = secured(&fake, files.server("gateway", &issued, Some(&clients)));
    let (ca, wrong) = (files.authorities("ca", &[&servers]), files.authorities("wrong", &[&clients]));
    let (cert, key) = files.identity("me", &clients.issue(&["me"], Validity::Lasting));
    let url = format!("https://{address}");
    let models = |more: &[&str]| beige(&fake, &[&["models", "--target", &url][..], more].concat());

    let mine = ["--cert", text(&cert), "--cert-key", text(&key)];
    let ran = models(&[&mine[..], &["--ca", text(&ca)]].concat());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("mini"), "{ran:?}");
    models(&[&mine[..], &["--ca", text(&wrong)]].concat()).failed(69, "certificate");
    models(&mine).failed(69, "certificate");
    let anonymous = models(&["--ca", text(&ca)]);
    assert!(matches!(anonymous.code, Some(1 | 69)), "{anonymous:?}");
    models(&["--ca", "/nowhere/ca.pem"]).failed(2, "/nowhere/ca.pem");
    models(&["--cert", text(&cert)]).failed(2, "--cert-key");
    beige(&fake, &["models", "--ca", text(&ca)]).failed(2, "say https://");
}
