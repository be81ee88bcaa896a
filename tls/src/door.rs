//! Where connections are taken, and those that may not come in are turned away.
//!
//! Handshakes run as tasks of their own, so that one who is slow keeps nobody waiting; there are only so many at a
//! time, each may take only so long, and who comes meanwhile waits outside. A socket that fails, for want of
//! descriptors say, is tried again after a rest: it ends nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{self, JoinSet};
use tokio::time::{self, Sleep};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::TcpIncoming;

use crate::refusal::{Reason, Refusals};
use crate::server::Server;
use crate::stream::Stream;

/// Handshakes under way at a time.
const HANDSHAKES: usize = 512;
/// How long one may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a socket that failed is left alone.
const REST: Duration = Duration::from_millis(100);

/// A listening socket. A stream of those who were let in, which never ends.
#[derive(Debug)]
pub struct Door {
    /// `None` once shut: dropping it closes the socket.
    listener: Option<TcpIncoming>,
    tls: Option<Arc<Server>>,
    handshakes: JoinSet<Option<Stream>>,
    refusals: Refusals,
    resting: Option<Pin<Box<Sleep>>>,
}

impl Door {
    /// Takes connections of `listener`, over TLS where `tls` is given; those that are refused are counted.
    #[must_use]
    pub fn new(listener: TcpListener, tls: Option<Arc<Server>>, refusals: Refusals) -> Self {
        let listener = TcpIncoming::from(listener).with_nodelay(Some(true));
        Self { listener: Some(listener), tls, handshakes: JoinSet::new(), refusals, resting: None }
    }

    /// Closes the socket. Handshakes under way go on.
    pub fn shut(&mut self) {
        self.listener = None;
    }

    /// The next one at the door; `None` where it was a mishap.
    fn poll_arrival(&mut self, cx: &mut Context<'_>) -> Poll<Option<TcpStream>> {
        if let Some(resting) = &mut self.resting {
            ready!(resting.as_mut().poll(cx));
            self.resting = None;
        }
        let Some(listener) = &mut self.listener else { return Poll::Pending };
        match ready!(stream::Stream::poll_next(Pin::new(listener), cx)) {
            Some(Ok(stream)) => Poll::Ready(Some(stream)),
            Some(Err(error)) => {
                tracing::warn!(%error, "a connection could not be taken");
                self.resting = Some(Box::pin(time::sleep(REST)));
                Poll::Ready(None)
            }
            None => Poll::Pending,
        }
    }
}

impl stream::Stream for Door {
    type Item = io::Result<Stream>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            while let Poll::Ready(Some(done)) = self.handshakes.poll_join_next(cx) {
                // One that panicked has said so.
                if let Ok(Some(stream)) = done {
                    return Poll::Ready(Some(Ok(stream)));
                }
            }
            if self.handshakes.len() >= HANDSHAKES {
                return Poll::Pending;
            }
            let Some(arrival) = ready!(self.poll_arrival(cx)) else { continue };
            let refusals = self.refusals.clone();
            let Some(tls) = self.tls.clone() else {
                return Poll::Ready(Some(Ok(Stream::plain(arrival, refusals))));
            };
            self.handshakes.spawn(shake(arrival, tls, refusals));
        }
    }
}

/// Makes a TLS connection of `stream`, or counts why not.
async fn shake(stream: TcpStream, tls: Arc<Server>, refusals: Refusals) -> Option<Stream> {
    let peer = stream.peer_addr().ok();
    let handshake = async {
        let config = task::spawn_blocking(move || tls.refresh()).await?;
        TlsAcceptor::from(config).accept(stream).await
    };
    let (reason, error) = match time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => return Some(Stream::secured(stream, refusals)),
        Ok(Err(error)) => (Reason::of(&error), error),
        Err(slow) => (Reason::Slow, slow.into()),
    };
    refusals.count(reason);
    tell(peer, reason, &error);
    None
}

/// Whoever only looks whether the port is open is no news.
fn tell(peer: Option<SocketAddr>, reason: Reason, error: &io::Error) {
    let (peer, label) = (peer.map(|peer| peer.to_string()).unwrap_or_default(), reason.label());
    match reason {
        Reason::Gone | Reason::Slow => {
            tracing::debug!(peer, reason = label, %error, "a connection was given up");
        }
        Reason::Plaintext
        | Reason::NoCertificate
        | Reason::Expired
        | Reason::UnknownAuthority
        | Reason::BadCertificate
        | Reason::Declined
        | Reason::Protocol => tracing::warn!(peer, reason = label, %error, "a connection was refused"),
    }
}
