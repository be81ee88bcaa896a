//! A caller's trace goes through the gateway into the batch that its text was part of.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use proto::v1::EmbedRequest;
use proto::v1::embeddings_client::EmbeddingsClient;
use tests::{Cluster, PATIENCE, checkpoint};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes =
            request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Names of the spans that belong to the caller's trace, or are linked to it.
    fn names(&self) -> Vec<String> {
        let ours = u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes();
        let belongs =
            |span: &&Span| span.trace_id == ours || span.links.iter().any(|link| link.trace_id == ours);
        self.0.lock().unwrap().iter().filter(belongs).map(|span| span.name.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_from_the_caller_to_the_batch() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let service = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    let mut servers = JoinSet::new();
    servers.spawn(service.serve_with_incoming(TcpListenerStream::new(listener)));

    let mut cluster = Cluster::start(0, &[checkpoint("bert-cls")]).await;
    cluster.gateways = vec![cluster.another_gateway(&["--otlp-endpoint", &endpoint]).await];
    cluster.add_worker(&["--otlp-endpoint", &endpoint]).await;
    cluster.wait_for(1, proto::v1::WorkerState::Serving).await;

    let request = EmbedRequest {
        model: "bert-cls".to_owned(),
        inputs: vec!["moss".to_owned()],
        ..EmbedRequest::default()
    };
    let mut request = Request::new(request);
    request.metadata_mut().insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01").parse().unwrap());
    EmbeddingsClient::new(cluster.channel()).embed(request).await.unwrap();

    let arrived = async {
        while !collector.names().iter().any(|name| name.contains("batch")) || collector.names().len() < 3 {
            time::sleep(Duration::from_millis(100)).await;
        }
    };
    let seen = time::timeout(PATIENCE, arrived).await;
    assert!(seen.is_ok(), "gateway, worker and batch are wanted: {:?}", collector.names());
}
