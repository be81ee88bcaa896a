use telemetry::{Format, Logging};
use tonic::Request;

use super::support::{Options, embed, start};

#[tokio::test]
async fn through_the_queue_and_the_device_thread() {
    let _guard = telemetry::start(&Logging {
        format: Format::Human,
        filter: "worker=info".into(),
        otlp_endpoint: None,
        service: "test",
        instance: "test".into(),
    })
    .unwrap();
    let mut stand = start(Options::default()).await;
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut asked = Request::new(embed(&["w1"]));
    let parent = format!("00-{trace_id}-00f067aa0ba902b7-01");
    asked.metadata_mut().insert("traceparent", parent.parse().unwrap());
    stand.client.embed(asked).await.unwrap();
    let traces = stand.control.traces();
    assert!(traces[0].contains(trace_id), "{traces:?}");
}
