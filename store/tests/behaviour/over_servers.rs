//! The same over servers that people run: `minio` for S3, and `fake-gcs`, which is fake-gcs-server's storage behind the
//! XML API that the client speaks (`scripts/fake-gcs`).
//!
//! Both are programs that must be on PATH; `make test-stores` puts them there.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use store::Settings;
use tempfile::TempDir;

use crate::a_checkpoint_goes_in_and_comes_out as suite;
use crate::support::open;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(60);

/// A server with a bucket `beige`, gone with this.
struct Server {
    child: Child,
    port: u16,
    _dir: TempDir,
}

impl Server {
    /// `configure` is given the folder that it keeps its buckets in, and the port that it is to listen on.
    fn start(program: &str, configure: impl FnOnce(&mut Command, &TempDir, u16)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("beige")).unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        configure(&mut command, &dir, port);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child =
            command.spawn().unwrap_or_else(|error| panic!("{program}: {error}: run make test-stores"));
        let server = Self { child, port, _dir: dir };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(begun.elapsed() < START, "{program} does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn settings(settings: &[(&str, &str)]) -> Settings {
    settings.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

#[tokio::test]
async fn minio() {
    let server = Server::start("minio", |command, dir, port| {
        command.args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")]).arg(dir.path());
        command.env("MINIO_ROOT_USER", "beige").env("MINIO_ROOT_PASSWORD", "a-secret-of-this-test");
    });
    let settings = settings(&[
        ("AWS_ENDPOINT_URL", &server.url()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "beige"),
        ("AWS_SECRET_ACCESS_KEY", "a-secret-of-this-test"),
    ]);
    suite::all(&open("s3://beige/models", &settings)).await;
}

#[tokio::test]
async fn fake_gcs() {
    let server = Server::start("fake-gcs", |command, dir, port| {
        command.args(["-listen", &format!("127.0.0.1:{port}")]).arg("-root").arg(dir.path());
    });
    let settings = settings(&[
        ("GOOGLE_BASE_URL", &server.url()),
        ("GOOGLE_ALLOW_HTTP", "true"),
        ("GOOGLE_BEARER_TOKEN", "a-secret-of-this-test"),
    ]);
    suite::all(&open("gs://beige/models", &settings)).await;
}
