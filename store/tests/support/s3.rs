//! A server that speaks S3 and keeps its objects in a folder.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

const SECRET: &str = "a-secret-of-this-test";

/// A server with one bucket, `beige`, that is gone with this.
#[derive(Debug)]
pub struct S3Server {
    dir: TempDir,
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl S3Server {
    /// Starts one.
    pub async fn start() -> Self {
        let dir = TempDir::with_prefix("beige-s3-").unwrap();
        fs::create_dir(dir.path().join("beige")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Self { dir, address, connections: Arc::default(), tasks: JoinSet::new() };
        server.serve(listener);
        server
    }

    /// Ends it; its objects stay.
    pub async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Starts it again where it was.
    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let (dir, connections) = (self.dir.path().to_owned(), Arc::clone(&self.connections));
        self.tasks.spawn(serve(listener, dir, connections));
    }

    /// Where the objects of its bucket lie.
    pub fn bucket(&self) -> PathBuf {
        self.dir.path().join("beige")
    }

    /// Puts an object of these bytes.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let path = self.bucket().join(key);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Connections that were made to it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What a client's environment has to say.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.environment_with(SECRET)
    }

    /// The same of a client with a secret of its own.
    pub fn environment_with(&self, secret: &str) -> Vec<(String, String)> {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address).as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "beige"),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
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
