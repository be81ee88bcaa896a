//! What every call passes on its way in and out, whatever it asks for: its key, its deadline, its span, its count.
//!
//! It is a layer around all services, because much never reaches one: a message that cannot be decoded, a method
//! that is not there, a caller that goes away while it is still sending.

use std::future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{self, Instant};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field};

use crate::deadline::{self, Deadline};
use crate::drain::Steps;
use crate::error::CallError;
use crate::keys::{CallerKey, Keys, Unauthorized};
use crate::method::{Method, Shape};
use crate::metrics::Metrics;
use crate::status::{self, canonical, leaving};
use crate::wire::{Fault, InvalidRequest};

/// Bytes of the headers of a call.
pub const HEADER_BYTES: u32 = 16 << 10;
/// What HTTP/2 counts for each header beside its name and value.
const PER_HEADER: usize = 32;

/// What the edge needs to know.
#[derive(Clone, Debug)]
pub struct Edge {
    /// Where calls are counted.
    pub metrics: Metrics,
    /// How long an answer may take where the caller does not say.
    pub default_deadline: Duration,
    /// When calls are to end that would not by themselves.
    pub steps: Steps,
    /// Who may call; `None` where anybody may.
    pub keys: Option<Arc<Keys>>,
}

impl Edge {
    /// Lets a request in: whose it is stands in its extensions then, and its secret stands nowhere any more.
    fn admit(&self, request: &mut Request<Body>, method: &Method) -> Result<Option<CallerKey>, Unauthorized> {
        let Some(keys) = &self.keys else { return Ok(None) };
        let admitted = keys.admit(request.headers(), method.access);
        request.headers_mut().remove(AUTHORIZATION);
        if let Ok(Some(key)) = &admitted {
            request.extensions_mut().insert(key.clone());
        }
        if let Err(unauthorized) = &admitted {
            let (reason, key) = (unauthorized.reason(), unauthorized.key().unwrap_or_default());
            tracing::info!(reason, key, peer = peer(request.extensions()), "a call was not let in");
            self.metrics.unauthorized(unauthorized);
        }
        admitted
    }
}

/// Whether headers are of a size that is taken, as HTTP/2 counts it.
///
/// # Errors
/// Where they are not.
fn measure(headers: &HeaderMap) -> Result<(), InvalidRequest> {
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + PER_HEADER).sum();
    let max = HEADER_BYTES as usize;
    if bytes <= max {
        return Ok(());
    }
    Err(InvalidRequest { field: "metadata".to_owned(), fault: Fault::TooLong { bytes, max } })
}

fn peer(extensions: &Extensions) -> String {
    let address = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    address.map(|address| address.to_string()).unwrap_or_default()
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
        let method = Method::of(request.uri().path());
        let span = span(method.name, request.headers());
        let mut tally = Tally::begin(&edge, method.name, arrived, span.clone());
        let answering = async move {
            if let Err(large) = measure(request.headers()) {
                edge.metrics.oversized();
                return Ok(tally.refuse(CallError::from(large).into()));
            }
            match edge.admit(&mut request, &method) {
                Ok(key) => tally.charge(key),
                Err(unauthorized) => return Ok(tally.refuse(unauthorized.into())),
            }
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
                    Some(answer) => Ok(tally.follow(answer?, method.shape, &edge)),
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
        key = field::Empty,
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
    key: Option<CallerKey>,
    arrived: Instant,
    span: Span,
    code: Option<Code>,
    /// Whoever ends the gateway waits for it.
    _running: TaskTrackerToken,
}

impl Tally {
    fn begin(edge: &Edge, method: &'static str, arrived: Instant, span: Span) -> Self {
        let (metrics, running) = (edge.metrics.clone(), edge.steps.calls.token());
        Self { metrics, method, key: None, arrived, span, code: None, _running: running }
    }

    /// Counts the call as one of `key` as well.
    fn charge(&mut self, key: Option<CallerKey>) {
        if let Some(key) = &key {
            self.span.record("key", &*key.name);
        }
        self.key = key;
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
        if let Some(key) = &self.key {
            self.metrics.answered_to(key, code);
        }
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
