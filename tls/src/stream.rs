//! A connection, with TLS or without, whose other end must say something soon.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{self, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::refusal::{Reason, Refusals};

/// Bytes with which every caller introduces itself: the preface of HTTP/2, and the head of the frame after it.
const INTRODUCTION: usize = 24 + 9;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that was let in. To what is served on it both kinds are alike. Who does not introduce itself in time is
/// cut off: nothing behind this would ever ask it to.
pub struct Stream {
    inner: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    /// `None` once the other end has introduced itself.
    awaited: Option<Awaited>,
}

/// The other end's introduction, which is not over.
struct Awaited {
    left: usize,
    until: Pin<Box<Sleep>>,
    refusals: Refusals,
}

impl Stream {
    pub(crate) fn plain(stream: TcpStream, refusals: Refusals) -> Self {
        Self::new(Either::Left(stream), refusals)
    }

    pub(crate) fn secured(stream: TlsStream<TcpStream>, refusals: Refusals) -> Self {
        Self::new(Either::Right(Box::new(stream)), refusals)
    }

    fn new(inner: Either<TcpStream, Box<TlsStream<TcpStream>>>, refusals: Refusals) -> Self {
        let until = Box::pin(time::sleep(PATIENCE));
        Self { inner, awaited: Some(Awaited { left: INTRODUCTION, until, refusals }) }
    }
}

impl Connected for Stream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match &self.inner {
            Either::Left(stream) => stream.connect_info(),
            Either::Right(stream) => stream.get_ref().0.connect_info(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        let Some(awaited) = &mut self.awaited else { return read };
        if read.is_ready() {
            awaited.left = awaited.left.saturating_sub(buffer.filled().len() - before);
            if awaited.left == 0 {
                self.awaited = None;
            }
            return read;
        }
        ready!(awaited.until.as_mut().poll(cx));
        awaited.refusals.count(Reason::Slow);
        self.awaited = None;
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if let Either::Left(_) = self.inner { "plain" } else { "tls" };
        f.debug_tuple("Stream").field(&kind).finish()
    }
}
