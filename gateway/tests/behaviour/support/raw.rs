//! A caller that is no tonic client: bytes over one HTTP/2 connection.
//!
//! For messages that no generated client would send, and for answers as they are on the wire: tonic's client keeps
//! timers of its own, and opens another connection where one goes away.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{Method, Request};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use tonic::{Code, Status};

/// One connection.
#[derive(Clone)]
pub(crate) struct Raw(SendRequest<Bytes>);

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The connection was closing already: nothing was asked.
    Unsent,
    /// It was asked, and not answered.
    #[allow(dead_code, reason = "shown when a test fails")]
    Unanswered(h2::Error),
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        Self::Unanswered(error)
    }
}

impl Raw {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream).await
    }

    /// A caller at the other end of `stream`.
    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        TaskTracker::new().spawn(connection);
        Self(sender)
    }

    /// Calls `path` with one message, and answers the status at the end.
    pub(crate) async fn call(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        message: &[u8],
    ) -> Result<Status, Broken> {
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap());
        framed.put_slice(message);
        self.send(path, headers, framed.freeze()).await
    }

    /// Calls `path` with these bytes as the body, framed or not.
    pub(crate) async fn send(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Bytes,
    ) -> Result<Status, Broken> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://gateway{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut sender = self.0.clone().ready().await.map_err(|_| Broken::Unsent)?;
        let request = request.body(()).unwrap();
        let (answer, mut sending) = sender.send_request(request, false).map_err(|_| Broken::Unsent)?;
        // Who has answered already may take no more of the body.
        let _ = sending.send_data(body, true);
        let answer = answer.await?;
        let mut end = answer.headers().clone();
        let mut body = answer.into_body();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        end.extend(body.trailers().await?.unwrap_or_default());
        Ok(Status::from_header_map(&end).unwrap_or_else(|| Status::new(Code::Unknown, "no status")))
    }

    /// Embeds `inputs`.
    pub(crate) async fn embed(
        &self,
        headers: &[(&'static str, &str)],
        inputs: Vec<String>,
    ) -> Result<Status, Broken> {
        let message = super::embed(inputs).encode_to_vec();
        self.call("/beige.v1.Embeddings/Embed", headers, &message).await
    }
}
