//! The gRPC service: each call parsed, admitted, tokenised, run, and packed, within its deadline.
//!
//! All of a call lives in one future. Dropping it, because the gateway went away or time is up, takes its texts out
//! of the queue and gives back what it held.

mod embed;
mod rerank;
mod tokens;
mod trial;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future;
use proto::v1;
use proto::worker::v1::worker_server::{Worker, WorkerServer};
use proto::worker::v1::{
    AliasSeen, CountShard, EmbedShard, EmbedShardResult, HealthRequest, RerankShard, RerankShardResult,
    TokenizeShard, TrialRequest,
};
use telemetry::trace::adopt;
use tls::Door;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span, field};

use crate::call::Class;
use crate::catalogue::{Catalogue, Served};
use crate::deadline;
use crate::engine::Engine;
use crate::error::CallError;
use crate::health::{Health, Reports};
use crate::load::{Held, Load};
use crate::metrics::Metrics;
use crate::tokenise::Tokenisers;
use crate::trial::Trials;
use crate::wire;
use trial::TrialReports;

/// The largest request: gateways send shards of some thousand tokens, or one text of the size they accept.
const REQUEST_BYTES: usize = 64 << 20;
/// Calls of one gateway at a time; those beyond wait in it.
const STREAMS: u32 = 4096;
/// Streams that a gateway may reset before its connection is taken for an attack.
const RESETS: usize = 4096;
/// Room for requests on their way: of one call, and of all.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Bytes of headers.
const HEADER_BYTES: u32 = 16 << 10;
/// A call whose deadline is this near is told so: tonic has a timer of its own, which answers CANCELLED.
const TIMER: Duration = Duration::from_millis(2);
/// A gateway that does not acknowledge a ping for this long is gone, whatever TCP thinks.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// What answers calls.
#[derive(Clone, Debug)]
pub struct Service {
    /// The checkpoints.
    pub catalogue: Catalogue,
    /// Makes tokens.
    pub tokenisers: Tokenisers,
    /// Runs them.
    pub engine: Engine,
    /// What is before the device.
    pub load: Arc<Load>,
    /// What is reported.
    pub health: Health,
    /// What is counted.
    pub metrics: Metrics,
    /// What tries checkpoints out, where that can be done.
    pub trials: Option<Trials>,
}

/// Serves those whom `door` lets in, until `stop` and then until every call that was accepted is answered.
///
/// # Errors
/// When the server fails.
pub async fn serve(
    door: Door,
    service: Service,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let worker = WorkerServer::new(service)
        .max_decoding_message_size(REQUEST_BYTES)
        .max_encoding_message_size(usize::MAX);
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_local_error_reset_streams(Some(RESETS))
        .http2_max_pending_accept_reset_streams(Some(RESETS))
        .http2_max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(worker)
        .serve_with_incoming_shutdown(door, stop.cancelled_owned())
        .await
}

impl Service {
    /// What a model's name means, as far as it is known here.
    fn alias(&self, model: &str) -> Option<AliasSeen> {
        self.health.state.borrow().aliases.get(model).cloned()
    }

    /// Tells whoever asks for a checkpoint that is not here what the name means.
    fn informed<T>(&self, parsed: Result<T, CallError>) -> Result<T, CallError> {
        parsed.map_err(|mut error| {
            if let CallError::NotLoaded { model, digest: _, alias } = &mut error {
                *alias = self.alias(model).map(Box::new);
            }
            error
        })
    }

    /// Takes a call of these texts, or refuses it.
    fn admit<'a>(
        &self,
        served: &Served,
        class: Class,
        due: Option<Instant>,
        texts: impl Iterator<Item = &'a str>,
    ) -> Result<Held, CallError> {
        let tokens = texts.map(|text| estimate(text).min(served.card.max_tokens)).sum();
        let time = due.map(|due| due.saturating_duration_since(Instant::now()));
        self.load.admit(class, tokens, time).map_err(|overloaded| {
            self.metrics.refused(&overloaded.why);
            overloaded.into()
        })
    }
}

/// Tokens of a text before it is tokenised: about four bytes each, and the special ones.
fn estimate(text: &str) -> usize {
    text.len() / 4 + 2
}

/// Answers a call in its span and within its deadline.
async fn answer<T>(
    metadata: MetadataMap,
    span: Span,
    work: impl AsyncFnOnce(Option<Instant>) -> Result<T, CallError>,
) -> Result<Response<T>, Status> {
    adopt(&span, &metadata);
    let answered = async {
        let due = deadline::parse(&metadata, Instant::now())?;
        let late = async {
            match due {
                Some(due) => time::sleep_until(due.checked_sub(TIMER).unwrap_or(due)).await,
                None => future::pending().await,
            }
        };
        // Both arms are cancel safe: whichever is dropped ends what it began.
        tokio::select! {
            biased;
            answer = work(due) => answer,
            () = late => Err(CallError::Deadline),
        }
    };
    answered.instrument(span).await.map(Response::new).map_err(Status::from)
}

fn peer(address: Option<SocketAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

#[tonic::async_trait]
impl Worker for Service {
    async fn embed(&self, request: Request<EmbedShard>) -> Result<Response<EmbedShardResult>, Status> {
        let peer = peer(request.remote_addr());
        let span = tracing::info_span!("embed", peer, model = field::Empty, tokens = field::Empty);
        let (metadata, _, shard) = request.into_parts();
        let work = async |due| {
            self.embed_shard(self.informed(wire::Embed::parse(shard, &self.catalogue))?, due).await
        };
        answer(metadata, span, work).await
    }

    async fn rerank(&self, request: Request<RerankShard>) -> Result<Response<RerankShardResult>, Status> {
        let peer = peer(request.remote_addr());
        let span = tracing::info_span!("rerank", peer, model = field::Empty, tokens = field::Empty);
        let (metadata, _, shard) = request.into_parts();
        let work = async |due| {
            self.rerank_shard(self.informed(wire::Rerank::parse(shard, &self.catalogue))?, due).await
        };
        answer(metadata, span, work).await
    }

    async fn tokenize(
        &self,
        request: Request<TokenizeShard>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        let span = tracing::info_span!("tokenize", peer = peer(request.remote_addr()));
        let (metadata, _, shard) = request.into_parts();
        let work =
            async |_| self.tokenize_shard(self.informed(wire::Tokens::parse(shard, &self.catalogue))?).await;
        answer(metadata, span, work).await
    }

    async fn count(&self, request: Request<CountShard>) -> Result<Response<v1::CountResponse>, Status> {
        let span = tracing::info_span!("count", peer = peer(request.remote_addr()));
        let (metadata, _, shard) = request.into_parts();
        let work = async |_| {
            self.count_shard(self.informed(wire::Tokens::parse_count(shard, &self.catalogue))?).await
        };
        answer(metadata, span, work).await
    }

    type TrialStream = TrialReports;

    async fn trial(&self, request: Request<TrialRequest>) -> Result<Response<TrialReports>, Status> {
        Ok(Response::new(self.try_out(request.into_inner())?))
    }

    type HealthStream = Reports;

    async fn health(&self, _: Request<HealthRequest>) -> Result<Response<Reports>, Status> {
        Ok(Response::new(self.health.reports()))
    }
}
