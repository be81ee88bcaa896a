//! A whole Beige in one thread: every service of `beige.v1`, answering by rules simple enough to predict.
//!
//! A text's vector follows from the text and the digest alone, so a test can tell whether vectors of two
//! checkpoints were mixed; tokens are words plus two. What else it does is set through [`State`].

mod answers;
mod jobs;
mod models;
mod services;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use proto::v1::cluster_server::ClusterServer;
use proto::v1::embeddings_server::EmbeddingsServer;
use proto::v1::models_server::ModelsServer;
use proto::v1::reranking_server::RerankingServer;
use proto::v1::tokens_server::TokensServer;
use proto::v1::training_server::TrainingServer;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

pub(crate) use answers::{DIMENSIONS, vector};
pub(crate) use jobs::Jobs;
pub(crate) use models::Control;

/// The digest served at first.
pub(crate) const DIGEST: &str = "1111111111111111111111111111111111111111111111111111111111111111";
/// Another, for swaps.
pub(crate) const OTHER_DIGEST: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// How the fake behaves, and what it has seen.
#[derive(Debug)]
pub(crate) struct State {
    /// Aliases and what they mean now; names with "reranker" are cross-encoders.
    pub(crate) models: Vec<(String, String)>,
    /// How long each call takes.
    pub(crate) delay: Duration,
    /// So many calls from now are refused with `RESOURCE_EXHAUSTED` and a short `RetryInfo`.
    pub(crate) refusals: usize,
    /// Texts embedded in calls that were answered.
    pub(crate) texts: usize,
    /// Once so many were, the first model means another checkpoint.
    pub(crate) moves_at: usize,
    /// `require.digest` of each embed call, in order of arrival; empty where there was none.
    pub(crate) required: Vec<String>,
    /// `traceparent` of the last call.
    pub(crate) traceparent: Option<String>,
    /// `authorization` of the last call.
    pub(crate) authorization: Option<String>,
    /// Checkpoints and swaps.
    pub(crate) control: Control,
    /// Fine-tuning jobs.
    pub(crate) jobs: Jobs,
}

impl State {
    /// Counts texts that were embedded.
    fn embedded(&mut self, texts: usize) {
        self.texts += texts;
        if self.texts >= self.moves_at {
            OTHER_DIGEST.clone_into(&mut self.models[0].1);
        }
    }
}

/// A running fake; dropping it ends it.
pub(crate) struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

impl Fake {
    /// Serves `mini` on a port of its own.
    pub(crate) fn start() -> Self {
        Self::serve("127.0.0.1:0", &["mini"])
    }

    /// Serves models of these names.
    pub(crate) fn with_models(names: &[&str]) -> Self {
        Self::serve("127.0.0.1:0", names)
    }

    /// Serves models of these names at an address.
    pub(crate) fn serve(listen: &str, names: &[&str]) -> Self {
        let state = Arc::new(Mutex::new(State {
            models: names.iter().map(|name| ((*name).to_owned(), DIGEST.to_owned())).collect(),
            delay: Duration::ZERO,
            refusals: 0,
            texts: 0,
            moves_at: usize::MAX,
            required: Vec::new(),
            traceparent: None,
            authorization: None,
            control: Control::default(),
            jobs: Jobs::default(),
        }));
        let listener = std::net::TcpListener::bind(listen).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serve = run(listener, Arc::clone(&state), stop.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let thread = thread::Builder::new().name("fake".to_owned()).spawn(move || runtime.block_on(serve));
        Self { address, state, stop, thread: Some(thread.unwrap()) }
    }

    /// Where it listens, as `--target` wants it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How it behaves, to look at or to change.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn run(listener: std::net::TcpListener, state: Arc<Mutex<State>>, stop: CancellationToken) {
    listener.set_nonblocking(true).unwrap();
    let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
    let fake = services::Services { state };
    let serving = Server::builder()
        .add_service(EmbeddingsServer::new(fake.clone()))
        .add_service(RerankingServer::new(fake.clone()))
        .add_service(TokensServer::new(fake.clone()))
        .add_service(ModelsServer::new(fake.clone()))
        .add_service(ClusterServer::new(fake.clone()))
        .add_service(TrainingServer::new(fake))
        .serve_with_incoming(incoming);
    // Without a grace: a fake that ends breaks its connections, as a killed server does.
    if let Some(ended) = stop.run_until_cancelled(serving).await {
        ended.unwrap();
    }
}
