//! The tests' own proxy does what other tests take it to do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/proxy.rs"]
mod proxy;

use std::time::Duration;

use proxy::{Fault, Proxy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

/// A noisy machine may take this long for anything that ends at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Long enough for what would come at once, had it not been held up.
const MOMENT: Duration = Duration::from_millis(300);

/// A server that says what it hears, and a proxy before it.
async fn proxied_echo() -> (Proxy, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(listener.local_addr().unwrap().to_string()).await;
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (proxy, server)
}

/// Says `text` and waits for the echo.
async fn echo(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<()> {
    stream.write_all(text).await?;
    let mut heard = vec![0; text.len()];
    time::timeout(PATIENCE, stream.read_exact(&mut heard)).await.expect("an echo or an end")?;
    assert_eq!(heard, text);
    Ok(())
}

/// Whether nothing is heard for a moment.
async fn is_silent(stream: &mut TcpStream) -> bool {
    time::timeout(MOMENT, stream.read_u8()).await.is_err()
}

#[tokio::test]
async fn what_is_said_passes_in_order() {
    let (proxy, _server) = proxied_echo().await;
    let mut stream = TcpStream::connect(proxy.endpoint()).await.unwrap();
    let text: Vec<u8> = (0..=255).cycle().take(1 << 18).collect();
    let (mut from, mut to) = stream.split();
    let mut heard = vec![0; text.len()];
    let both = async { tokio::join!(to.write_all(&text), from.read_exact(&mut heard)) };
    let (said, read) = time::timeout(PATIENCE, both).await.unwrap();
    assert!(said.is_ok() && read.is_ok());
    assert_eq!(heard, text);
    // And so does the end.
    stream.shutdown().await.unwrap();
    assert_eq!(time::timeout(PATIENCE, stream.read(&mut heard)).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn answers_are_late_and_not_rarer() {
    let (proxy, _server) = proxied_echo().await;
    let mut stream = TcpStream::connect(proxy.endpoint()).await.unwrap();
    let delay = Duration::from_millis(400);
    proxy.set(Fault::DelayAnswers(delay));
    let start = Instant::now();
    for _ in 0..20 {
        stream.write_all(b"x").await.unwrap();
        time::sleep(Duration::from_millis(10)).await;
    }
    let mut heard = [0; 20];
    time::timeout(PATIENCE, stream.read_exact(&mut heard)).await.unwrap().unwrap();
    assert!(start.elapsed() >= delay);
    assert!(start.elapsed() < delay * 20, "one delay for all: {:?}", start.elapsed());
}

#[tokio::test]
async fn what_is_held_arrives_later() {
    let (proxy, _server) = proxied_echo().await;
    let mut stream = TcpStream::connect(proxy.endpoint()).await.unwrap();
    echo(&mut stream, b"before").await.unwrap();
    proxy.set(Fault::Hold);
    stream.write_all(b"x").await.unwrap();
    assert!(is_silent(&mut stream).await);
    proxy.set(Fault::None);
    assert_eq!(time::timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap(), b'x');
}

#[tokio::test]
async fn refusing_ends_what_is_open_and_lets_nobody_in_until_it_is_over() {
    let (proxy, _server) = proxied_echo().await;
    let mut stream = TcpStream::connect(proxy.endpoint()).await.unwrap();
    echo(&mut stream, b"before").await.unwrap();
    proxy.set(Fault::Refuse);
    assert!(echo(&mut stream, b"x").await.is_err());
    connects(&proxy, Result::is_err).await.unwrap_err();
    proxy.set(Fault::None);
    let mut stream = connects(&proxy, Result::is_ok).await.unwrap();
    echo(&mut stream, b"after").await.unwrap();
}

/// Connects until it goes as `expected`.
async fn connects(
    proxy: &Proxy,
    expected: impl Fn(&std::io::Result<TcpStream>) -> bool,
) -> std::io::Result<TcpStream> {
    let tries = async {
        loop {
            let outcome = TcpStream::connect(proxy.endpoint()).await;
            if expected(&outcome) {
                return outcome;
            }
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(PATIENCE, tries).await.unwrap()
}

#[tokio::test]
async fn what_is_cut_ends_and_what_is_stranded_does_not() {
    let (proxy, _server) = proxied_echo().await;
    let mut stranded = TcpStream::connect(proxy.endpoint()).await.unwrap();
    echo(&mut stranded, b"before").await.unwrap();
    proxy.strand();
    stranded.write_all(b"x").await.unwrap();
    assert!(is_silent(&mut stranded).await);

    let mut cut = TcpStream::connect(proxy.endpoint()).await.unwrap();
    echo(&mut cut, b"new ones pass").await.unwrap();
    proxy.cut();
    assert!(echo(&mut cut, b"x").await.is_err());
    let mut last = TcpStream::connect(proxy.endpoint()).await.unwrap();
    echo(&mut last, b"new ones pass").await.unwrap();
}
