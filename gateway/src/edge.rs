//! What every call passes on its way in and out, whatever it asks for: its deadline, its span, its count.
//!
//! It is a layer around all services, because much never reaches one: a message that cannot be decoded, a method
//! that is not there, a caller that goes away while it is still sending.

use std::future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{self, Instant};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field};

use crate::deadline::{self, Deadline};
use crate::drain::Steps;
use crate::error::CallError;
use crate::metrics::Metrics;
use crate::status::{self, canonical, leaving};

/// How a call ends when the gateway does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// One answer: it is waited for as long as there is grace.
    Call,
    /// Many answers: likewise.
    Stream,
    /// It never ends by itself, and nothing is lost when it does: it is ended as soon as connections are to close.
    Watch,
}

/// Every method there is; what is called beside them is counted together, for a caller may invent names.
const METHODS: [(&str, Shape); 22] = [
    ("beige.v1.Embeddings/Embed", Shape::Call),
    ("beige.v1.Embeddings/EmbedStream", Shape::Stream),
    ("beige.v1.Reranking/Rerank", Shape::Call),
    ("beige.v1.Reranking/RerankStream", Shape::Stream),
    ("beige.v1.Tokens/Tokenize", Shape::Call),
    ("beige.v1.Tokens/Count", Shape::Call),
    ("beige.v1.Models/List", Shape::Call),
    ("beige.v1.Models/Get", Shape::Call),
    ("beige.v1.Models/Publish", Shape::Stream),
    ("beige.v1.Models/ListVersions", Shape::Call),
    ("beige.v1.Models/Promote", Shape::Call),
    ("beige.v1.Models/Rollback", Shape::Call),
    ("beige.v1.Models/Retire", Shape::Call),
    ("beige.v1.Models/Pin", Shape::Call),
    ("beige.v1.Models/Collect", Shape::Call),
    ("beige.v1.Models/GetSwap", Shape::Call),
    ("beige.v1.Models/WatchSwap", Shape::Watch),
    ("beige.v1.Cluster/ListWorkers", Shape::Call),
    ("grpc.health.v1.Health/Check", Shape::Call),
    ("grpc.health.v1.Health/Watch", Shape::Watch),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Shape::Watch),
    ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Shape::Watch),
];
const OTHER: (&str, Shape) = ("other", Shape::Call);

fn method(path: &str) -> (&'static str, Shape) {
    let name = path.strip_prefix('/').unwrap_or(path);
    METHODS.into_iter().find(|(known, _)| *known == name).unwrap_or(OTHER)
}

/// What the edge needs to know.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Where calls are counted.
    pub metrics: Metrics,
    /// How long an answer may take where the caller does not say.
    pub default_deadline: Duration,
    /// When calls are to end that would not by themselves.
    pub steps: Steps,
}

/// The layer.
#[derive(Clone, Debug)]
pub struct EdgeLayer(pub Arc<Edge>);

impl<S> Layer<S> for EdgeLayer {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService { edge: Arc::clone(&self.0), inner }
    }
}

/// A service with the edge around it.
#[derive(Clone, Debug)]
pub struct EdgeService<S> {
    edge: Arc<Edge>,
    inner: S,
}

impl<S> Service<Request<Body>> for EdgeService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The one that was found ready is used up; its clone is asked anew.
        let waiting = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, waiting);
        let (edge, arrived) = (Arc::clone(&self.edge), Instant::now());
        let (name, shape) = method(request.uri().path());
        let span = span(name, request.headers());
        let tally = Tally::begin(&edge, name, arrived, span.clone());
        let answering = async move {
            let limit = match deadline::parse(request.headers()) {
                Ok(limit) => limit,
                Err(malformed) => return Ok(tally.refuse(malformed.into())),
            };
            let deadline =
                Deadline { given: limit.map(|limit| arrived + limit), otherwise: edge.default_deadline };
            request.extensions_mut().insert(deadline);
            let answer = inner.call(request);
            tokio::select! {
                answer = in_time(answer, deadline.of_answer(arrived)) => match answer {
                    Some(answer) => Ok(tally.follow(answer?, shape, &edge)),
                    None => Ok(tally.refuse(CallError::Deadline.into())),
                },
                () = edge.steps.abandoned.cancelled() => Ok(tally.refuse(leaving())),
            }
        };
        Box::pin(answering.instrument(span))
    }
}

fn span(method: &'static str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        "call",
        otel.name = method,
        otel.kind = "server",
        method,
        model = field::Empty,
        digest = field::Empty,
        texts = field::Empty,
        tokens = field::Empty,
        code = field::Empty,
    );
    // Most callers trace nothing; the others send two short headers.
    let context = ["traceparent", "tracestate"].map(|name| (name, headers.get(name)));
    let carried: HeaderMap = context
        .into_iter()
        .filter_map(|(name, value)| Some((http::HeaderName::from_static(name), value?.clone())))
        .collect();
    if !carried.is_empty() {
        telemetry::trace::adopt(&span, &MetadataMap::from_headers(carried));
    }
    span
}

/// The answer, unless it is not there at `due`.
///
/// The time is looked at whenever this is polled: tonic keeps a timer of the same deadline around us and polls us
/// when that fires, and what it would answer is CANCELLED.
async fn in_time<F: Future>(answer: F, due: Instant) -> Option<F::Output> {
    let (mut answer, mut alarm) = (pin!(answer), pin!(time::sleep_until(due)));
    future::poll_fn(|cx| {
        if due > Instant::now()
            && let Poll::Ready(answer) = answer.as_mut().poll(cx)
        {
            return Poll::Ready(Some(answer));
        }
        let late = alarm.as_mut().poll(cx).is_ready() || due <= Instant::now();
        if late { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// Counts a call when it is over, however it ends.
#[derive(Debug)]
struct Tally {
    metrics: Metrics,
    method: &'static str,
    arrived: Instant,
    span: Span,
    code: Option<Code>,
    /// Whoever ends the gateway waits for it.
    _running: TaskTrackerToken,
}

impl Tally {
    fn begin(edge: &Edge, method: &'static str, arrived: Instant, span: Span) -> Self {
        let (metrics, running) = (edge.metrics.clone(), edge.steps.calls.token());
        Self { metrics, method, arrived, span, code: None, _running: running }
    }

    /// Ends the call here.
    fn refuse(mut self, status: Status) -> Response<Body> {
        self.code = Some(status.code());
        status.into_http()
    }

    /// Lets an answer out, and watches how it ends.
    fn follow(mut self, answer: Response<Body>, shape: Shape, edge: &Edge) -> Response<Body> {
        // An answer that is a status and nothing else has it in its headers.
        if let Some(status) = Status::from_header_map(answer.headers()) {
            self.code = Some(status.code());
            let translated = canonical(status);
            if Some(translated.code()) != self.code {
                return self.refuse(translated);
            }
            return answer;
        }
        let enough = match shape {
            Shape::Call => None,
            Shape::Stream => Some(edge.steps.abandoned.clone()),
            Shape::Watch => Some(edge.steps.closing.clone()),
        };
        let enough = enough.map(|enough| Box::pin(enough.cancelled_owned()));
        answer.map(|body| Body::new(Watched { body, enough, tally: self }))
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        // Whose end nobody saw was given up by its caller.
        let code = status::name(self.code.unwrap_or(Code::Cancelled));
        self.span.record("code", code);
        self.metrics.answered(self.method, code, self.arrived.elapsed());
    }
}

/// The body of an answer.
struct Watched {
    body: Body,
    /// When to end it from here.
    enough: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    tally: Tally,
}

impl HttpBody for Watched {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let over = self.enough.as_mut().is_some_and(|enough| enough.as_mut().poll(cx).is_ready());
        let frame = if over && self.tally.code.is_none() {
            // What the service still has to say is dropped, and with it what it asked of workers.
            self.body = Body::empty();
            let mut trailers = HeaderMap::new();
            leaving().add_header(&mut trailers)?;
            Poll::Ready(Some(Ok(Frame::trailers(trailers))))
        } else {
            let span = self.tally.span.clone();
            let _entered = span.enter();
            Pin::new(&mut self.body).poll_frame(cx)
        };
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(status) = frame.trailers_ref().and_then(Status::from_header_map)
        {
            self.tally.code = Some(status.code());
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_and_inventions_counted_together() {
        assert_eq!(method("/beige.v1.Embeddings/Embed"), ("beige.v1.Embeddings/Embed", Shape::Call));
        assert_eq!(method("/grpc.health.v1.Health/Watch").1, Shape::Watch);
        for invented in ["/", "", "/beige.v1.Embeddings/Embed/", "/beige.v1.Embeddings/Delete", "/x/y"] {
            assert_eq!(method(invented), OTHER, "{invented:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_is_an_answer() {
        let soon = async {
            time::sleep(Duration::from_millis(9)).await;
            7
        };
        assert_eq!(in_time(soon, Instant::now() + Duration::from_millis(10)).await, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_is_no_answer_even_when_it_is_there() {
        let due = Instant::now() + Duration::from_millis(10);
        assert_eq!(in_time(future::pending::<()>(), due).await, None);
        assert_eq!(in_time(future::ready(()), due).await, None, "a deadline that has passed");
    }
}
