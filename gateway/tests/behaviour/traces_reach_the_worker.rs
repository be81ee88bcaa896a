//! A caller's trace goes on at the worker.

use telemetry::{Format, Logging};
use tonic::Request;

use crate::support::{FakeWorker, Gateway, digest, embed, texts};

#[tokio::test]
async fn the_workers_spans_belong_to_the_callers_trace() {
    let logging = Logging {
        format: Format::Human,
        filter: "off,gateway::edge=info".into(),
        otlp_endpoint: None,
        service: "test",
        instance: "test".into(),
    };
    let _telemetry = telemetry::start(&logging).unwrap();
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;

    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut request = Request::new(embed(texts(1, 3)));
    request.metadata_mut().insert("traceparent", format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap());
    let mut embeddings = gateway.embeddings().await;
    embeddings.embed(request).await.unwrap();
    let told = worker.take_seen().remove(0).traceparent.unwrap();
    assert!(told.contains(trace), "{told}");
    assert!(!told.contains("00f067aa0ba902b7"), "the parent is the gateway's span: {told}");

    let stream = futures::stream::iter([embed(texts(1, 3))]);
    let mut request = Request::new(stream);
    request.metadata_mut().insert("traceparent", format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap());
    let mut answers = embeddings.embed_stream(request).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    assert!(worker.take_seen().remove(0).traceparent.unwrap().contains(trace));
    gateway.end().await.unwrap();
}
