//! Log lines for people or machines, and spans over OTLP when an endpoint is set.

use std::io::{self, IsTerminal as _};
use std::str::FromStr;
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use thiserror::Error;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, filter};

/// How long the last spans may take to leave at shutdown.
const FLUSH: Duration = Duration::from_secs(2);

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// One line of text for a person, coloured on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(format!("log format is human or json, not {other:?}")),
        }
    }
}

/// What is logged, and where spans go.
#[derive(Clone, Debug)]
pub struct Logging {
    /// How lines look.
    pub format: Format,
    /// Directives such as `info` or `info,gateway=debug`.
    pub filter: String,
    /// Where spans go, such as `http://collector:4317`; nowhere without it.
    pub otlp_endpoint: Option<String>,
    /// `service.name` of the spans.
    pub service: &'static str,
    /// `service.instance.id` of the spans.
    pub instance: String,
}

/// Why telemetry could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Repair the directives.
    #[error("log filter {filter:?} is not valid")]
    Filter {
        /// As given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: filter::ParseError,
    },
    /// Repair the endpoint.
    #[error("OTLP endpoint {endpoint:?} cannot be used")]
    Endpoint {
        /// As given.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: ExporterBuildError,
    },
    /// Start telemetry once.
    #[error("telemetry is already running in this process")]
    Running(#[from] TryInitError),
}

/// Sends the last spans when dropped; hold it until the end of `main`.
#[must_use]
#[derive(Debug)]
pub struct Guard(SdkTracerProvider);

impl Drop for Guard {
    fn drop(&mut self) {
        // Nothing is left to log to when this fails, and it does not matter for the exit.
        let _ = self.0.shutdown_with_timeout(FLUSH);
    }
}

/// Installs the process's subscriber. Lines go to standard error.
///
/// Spans have W3C trace contexts also when no endpoint is set, so that a caller's trace passes through. Call
/// it inside a tokio runtime: the exporter's connection lives there.
///
/// # Errors
/// By what is to be repaired; see [`StartError`].
pub fn start(logging: &Logging) -> Result<Guard, StartError> {
    let provider = provider(logging)?;
    let filter = EnvFilter::try_new(&logging.filter)
        .map_err(|source| StartError::Filter { filter: logging.filter.clone(), source })?;
    let lines = match logging.format {
        Format::Human => tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .boxed(),
        Format::Json => tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
    };
    let spans = tracing_opentelemetry::layer().with_tracer(provider.tracer(logging.service));
    Registry::default().with(filter).with(lines).with(spans).try_init()?;
    global::set_text_map_propagator(TraceContextPropagator::new());
    Ok(Guard(provider))
}

fn provider(logging: &Logging) -> Result<SdkTracerProvider, StartError> {
    let resource = Resource::builder()
        .with_service_name(logging.service)
        .with_attribute(KeyValue::new("service.instance.id", logging.instance.clone()))
        .build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    let Some(endpoint) = &logging.otlp_endpoint else { return Ok(builder.build()) };
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|source| StartError::Endpoint { endpoint: endpoint.clone(), source })?;
    Ok(builder.with_batch_exporter(exporter).build())
}
