//! The plain port for operators: `/livez`, `/readyz`, `/metrics`.
//!
//! It is apart from the public port because it speaks neither TLS nor gRPC: what kubelets and Prometheus ask.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether a service takes work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It does not, for this reason.
    NotReady(String),
}

#[derive(Clone)]
struct Admin {
    registry: Arc<Registry>,
    readiness: watch::Receiver<Readiness>,
}

/// Serves the admin port until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    registry: Arc<Registry>,
    readiness: watch::Receiver<Readiness>,
    stop: CancellationToken,
) -> io::Result<()> {
    let routes = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Admin { registry, readiness });
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    match &*admin.readiness.borrow() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::NotReady(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let mut body = String::new();
    match text::encode(&mut body, &admin.registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], body).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn fetch(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readiness_follows_the_service() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, readiness) = watch::channel(Readiness::NotReady("no worker yet".to_owned()));
        let stop = CancellationToken::new();
        let (registry, stopped) = (Arc::new(Registry::default()), stop.clone());
        let calls = async {
            let answer = fetch(address, "/readyz").await;
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no worker yet\n"), "{answer}");
            state.send_replace(Readiness::Ready);
            assert!(fetch(address, "/readyz").await.starts_with("HTTP/1.1 200"));
            assert!(fetch(address, "/livez").await.starts_with("HTTP/1.1 200"));
            assert!(fetch(address, "/metrics").await.ends_with("# EOF\n"));
            stop.cancel();
        };
        let (served, ()) = tokio::join!(serve(listener, registry, readiness, stopped), calls);
        served.unwrap();
    }
}
