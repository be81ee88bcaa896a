//! The same over S3, spoken to a server that keeps its objects in a folder.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use store::{Cache, Error, Settings, Store};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::a_checkpoint_goes_in_and_comes_out as suite;
use crate::support::{Checkpoint, open, publish};

const SECRET: &str = "a-secret-of-this-test";

/// A server with one bucket, `beige`, that is gone with this.
struct Server {
    dir: tempfile::TempDir,
    address: std::net::SocketAddr,
    connections: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("beige")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, dir.path().to_owned(), Arc::clone(&connections)));
        Self { dir, address, connections, tasks }
    }

    fn settings(&self, secret: &str) -> Settings {
        let settings = [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "beige".into()),
            ("AWS_SECRET_ACCESS_KEY", secret.into()),
        ];
        settings.into_iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
    }

    fn store(&self) -> Store {
        open("s3://beige/models/all", &self.settings(SECRET))
    }
}

async fn serve(listener: TcpListener, dir: PathBuf, connections: Arc<AtomicUsize>) {
    let mut service = S3ServiceBuilder::new(FileSystem::new(dir).unwrap());
    service.set_auth(SimpleAuth::from_single("beige", SECRET));
    let service = service.build().into_shared();
    let mut open = JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        let service = service.clone();
        open.spawn(async move {
            // A client that goes away is no fault.
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

#[tokio::test]
async fn a_server_over_a_folder() {
    let server = Server::start().await;
    suite::all(&server.store()).await;
    assert!(server.dir.path().join("beige/models/all/blobs").is_dir());
}

#[tokio::test]
async fn a_wrong_secret_is_denied_and_not_told() {
    let server = Server::start().await;
    let digest = publish(&server.store(), &Checkpoint::usual(1)).await;
    let stranger = open("s3://beige/models/all", &server.settings("another-secret"));
    let error = stranger.manifest(&digest).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert!(!format!("{error:?} {stranger:?}").contains("another-secret"));
}

#[tokio::test]
async fn a_store_that_is_away_is_unreachable_and_then_back() {
    let mut server = Server::start().await;
    let checkpoint = Checkpoint::usual(1);
    let store = server.store();
    publish(&store, &checkpoint).await;
    server.tasks.shutdown().await;
    let cache_dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(cache_dir.path(), 1 << 30).unwrap();
    let error = cache.checkpoint(&store, &checkpoint.files, &|_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");

    let before = server.connections.load(Ordering::Relaxed);
    let listener = TcpListener::bind(server.address).await.unwrap();
    server.tasks.spawn(serve(listener, server.dir.path().to_owned(), Arc::clone(&server.connections)));
    cache.checkpoint(&store, &checkpoint.files, &|_| ()).await.unwrap();
    assert!(server.connections.load(Ordering::Relaxed) > before);
}
