//! The fake gateway and the fake worker: health, an end on SIGTERM or when standard input ends, and for the
//! gateway a whole `beige.v1`.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::thread;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::fake::Fake;

/// Flags with which this test binary runs [`service`] and nothing else.
pub(crate) const TEST: &str = "--exact a_local_cluster_is_supervised::service::service --nocapture";

/// No test: a process that `beige up` starts. Without `FAKE_SERVICE` it has nothing to do.
#[test]
fn service() {
    let read = |name| std::env::var_os(name).map(|value| value.into_string().unwrap());
    let Some(kind) = read("FAKE_SERVICE") else { return };
    let args: Vec<String> = read("FAKE_ARGS").unwrap().split(' ').map(str::to_owned).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(serve(&kind, &args));
    std::process::exit(0);
}

async fn serve(kind: &str, args: &[String]) {
    let flag = |name: &str| args.iter().position(|arg| arg == name).map(|at| args[at + 1].as_str());
    let name = flag("--id").unwrap_or("gateway");
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tell(&format!("started {name} {} {}", std::process::id(), args.join(" ")));
    let _public = (kind == "beige-gateway" || kind == "stubborn")
        .then(|| Fake::serve(flag("--listen").unwrap(), &["mini"]));
    let admin = TcpListener::bind(flag("--admin").unwrap()).await.unwrap();
    let mut orphaned = stdin_ends();
    loop {
        tokio::select! {
            accepted = admin.accept() => {
                let (mut stream, _) = accepted.unwrap();
                let mut request = [0; 1_024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
            _ = terminate.recv() => {
                if kind != "stubborn" {
                    break;
                }
                tell(&format!("ignored {name}"));
            }
            _ = &mut orphaned => break,
        }
    }
    tell(&format!("stopped {name}"));
}

/// Resolves when standard input is at its end.
fn stdin_ends() -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    let read = move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = ended.send(());
    };
    thread::Builder::new().name("stdin".to_owned()).spawn(read).unwrap();
    end
}

/// Says something in the file that all services share.
fn tell(event: &str) {
    let path = std::env::var_os("FAKE_EVENTS").unwrap();
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{event}\n").as_bytes()).unwrap();
}
