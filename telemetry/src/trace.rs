//! W3C trace contexts in gRPC metadata.

use opentelemetry::global;
use opentelemetry::propagation::{Extractor, Injector};
use tonic::metadata::{Ascii, KeyRef, MetadataKey, MetadataMap};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Makes `span` a child of the trace that `metadata` carries, if it carries one.
pub fn adopt(span: &Span, metadata: &MetadataMap) {
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&Incoming(metadata)));
    // Fails only for a span that is already closed or filtered out: then there is nothing to adopt.
    let _ = span.set_parent(context);
}

/// Writes the trace context of `span` into `metadata`.
pub fn inject(span: &Span, metadata: &mut MetadataMap) {
    let context = span.context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Outgoing(metadata));
    });
}

struct Incoming<'a>(&'a MetadataMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        let ascii = |key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        };
        self.0.keys().filter_map(ascii).collect()
    }
}

struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        let key = key.parse::<MetadataKey<Ascii>>();
        if let (Ok(key), Ok(value)) = (key, value.parse()) {
            self.0.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_trace_passes_from_one_metadata_to_the_next() {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

        let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let mut incoming = MetadataMap::new();
        incoming.insert("traceparent", format!("00-{trace_id}-00f067aa0ba902b7-01").parse().unwrap());
        let span = tracing::info_span!("call");
        adopt(&span, &incoming);
        let mut outgoing = MetadataMap::new();
        inject(&span, &mut outgoing);

        let parent = outgoing.get("traceparent").unwrap().to_str().unwrap();
        assert!(parent.contains(trace_id), "{parent}");
        assert!(!parent.contains("00f067aa0ba902b7"), "the span is its own, not the caller's: {parent}");
    }
}
