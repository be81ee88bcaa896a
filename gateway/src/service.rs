//! The services of `beige.v1`, each in its file: what arrives is parsed, pinned to a checkpoint, run and answered.

use std::sync::Arc;

use http::Extensions;
use proto::v1;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Response, Status};
use tracing::Span;

use crate::call::{Answered, Caller, Dispatcher, Work};
use crate::deadline::Deadline;
use crate::retry::Patience;

mod cluster;
mod embeddings;
mod models;
mod reranking;
mod stream;
mod tokens;

/// Implements every service of `beige.v1`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    dispatcher: Arc<Dispatcher>,
    /// Tasks of open streams.
    streams: TaskTracker,
}

impl Service {
    /// The services over `dispatcher`; open streams are tasks of `streams`.
    #[must_use]
    pub fn new(dispatcher: Arc<Dispatcher>, streams: TaskTracker) -> Self {
        Self { dispatcher, streams }
    }

    /// Answers one request.
    async fn call<W: Work>(&self, request: Request<W::Wire>) -> Result<Response<W::Answer>, Status> {
        let (_, extensions, wire) = request.into_parts();
        let work = W::parse(wire, &self.dispatcher.limits)?;
        let caller = Caller {
            name: caller(&extensions),
            due: deadline(&extensions).of_answer(Instant::now()),
            patience: Patience::Refuse,
        };
        let answered = self.dispatcher.answer(&work, &caller).await?;
        Span::current().record("texts", answered.texts).record("tokens", answered.tokens);
        Ok(respond(answered))
    }
}

/// Without keys, callers are told apart by where they are.
fn caller(extensions: &Extensions) -> String {
    let address = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    address.map(|address| address.ip().to_string()).unwrap_or_default()
}

fn deadline(extensions: &Extensions) -> Deadline {
    *extensions.get::<Deadline>().expect("the edge sets one for every call")
}

/// Repeats in metadata what the answer says about itself.
fn respond<A>(answered: Answered<A>) -> Response<A> {
    let Answered { body, provenance, tokens, texts: _ } = answered;
    let mut response = Response::new(body);
    let v1::Provenance { model, digest, epoch, index_space, dimensions } = provenance;
    let metadata = response.metadata_mut();
    say(metadata, "beige-model", &model);
    say(metadata, "beige-digest", &digest);
    say(metadata, "beige-index-space", &index_space);
    metadata.insert("beige-epoch", epoch.into());
    metadata.insert("beige-dimensions", dimensions.into());
    metadata.insert("beige-tokens", tokens.into());
    response
}

/// What is not ASCII cannot be metadata; it is a field all the same.
fn say(metadata: &mut MetadataMap, key: &'static str, value: &str) {
    if let Ok(value) = value.parse() {
        metadata.insert(key, value);
    }
}
