//! The services of `beige.v1`, each in its file: what arrives is parsed, pinned to a checkpoint, run and answered.

use std::sync::Arc;

use http::Extensions;
use proto::v1;
use tls::Dialer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Request, Response, Status};
use tracing::Span;

use crate::call::{Answered, Caller, Dispatcher, Done, Twice, Work};
use crate::control::Control;
use crate::deadline::Deadline;
use crate::keys::CallerKey;
use crate::retry::Patience;
use crate::shadow::Shadows;
use crate::wire::{Fault, InvalidRequest};

mod cluster;
mod embeddings;
mod models;
mod reranking;
mod stream;
mod tokens;
mod training;

/// With what callers without keys that share an address tell themselves apart.
const CALLER: &str = "beige-caller";
const CALLER_BYTES: usize = 256;

/// Implements every service of `beige.v1`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service {
    dispatcher: Arc<Dispatcher>,
    /// What changes models.
    control: Control,
    /// Tasks of open streams.
    streams: TaskTracker,
    shadows: Shadows,
    /// Makes connections to trainers.
    trainers: Dialer,
}

impl Service {
    /// The services over `dispatcher` and `control`; open streams are tasks of `streams`, and so is what goes on without a caller,
    /// until `stop`. Trainers are reached by `trainers`.
    #[must_use]
    pub fn new(
        dispatcher: Arc<Dispatcher>,
        control: Control,
        streams: TaskTracker,
        stop: CancellationToken,
        trainers: Dialer,
    ) -> Self {
        let shadows = Shadows::new(streams.clone(), stop);
        Self { dispatcher, control, streams, shadows, trainers }
    }

    /// Answers one request.
    async fn call<W: Work>(&self, request: Request<W::Wire>) -> Result<Response<W::Answer>, Status> {
        let (_, done) = self.answer::<W>(request).await?;
        Ok(respond(done.answered))
    }

    /// Answers one request, and may have it done again by a checkpoint on trial.
    async fn try_twice<W>(&self, request: Request<W::Wire>) -> Result<Response<W::Answer>, Status>
    where
        W: Twice + Send + 'static,
    {
        let (work, done) = self.answer::<W>(request).await?;
        self.shadows.offer(&self.dispatcher, work, &done);
        Ok(respond(done.answered))
    }

    async fn answer<W: Work>(&self, request: Request<W::Wire>) -> Result<(W, Done<W::Answer>), Status> {
        let (metadata, extensions, wire) = request.into_parts();
        let work = W::parse(wire, &self.dispatcher.limits)?;
        let caller = Caller {
            name: caller(&extensions),
            key: key(&metadata, &extensions)?,
            account: extensions.get().cloned(),
            due: deadline(&extensions).of_answer(Instant::now()),
            patience: Patience::Refuse,
        };
        let done = self.dispatcher.answer(&work, &caller).await?;
        Span::current().record("texts", done.answered.texts).record("tokens", done.answered.tokens);
        Ok((work, done))
    }
}

/// Callers are told apart by their keys; where there are none, by where they are.
fn caller(extensions: &Extensions) -> String {
    if let Some(key) = extensions.get::<CallerKey>() {
        return key.name.to_string();
    }
    let address = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    address.map(|address| address.ip().to_string()).unwrap_or_default()
}

/// By what callers are told apart who try another checkpoint: by their keys, by what they say they are where there are
/// none, and else by where they are.
///
/// # Errors
/// Where what they say is too long, or no text.
fn key(metadata: &MetadataMap, extensions: &Extensions) -> Result<String, InvalidRequest> {
    let said = metadata.get(CALLER).filter(|_| extensions.get::<CallerKey>().is_none());
    let Some(said) = said else { return Ok(caller(extensions)) };
    let text = said.to_str().ok().filter(|text| (1..=CALLER_BYTES).contains(&text.len()));
    text.map(str::to_owned).ok_or_else(|| InvalidRequest {
        field: CALLER.to_owned(),
        fault: Fault::Malformed(format!("it is not from 1 to {CALLER_BYTES} visible ASCII characters")),
    })
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
