//! Connections to servers, over TLS or plain, for channels of tonic.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio::{task, time};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::ServerName;
use tonic::transport::{Channel, Endpoint, Error};
use tower::Service;

use crate::files::{self, Identity, Incomplete, Unusable};
use crate::reload::{Reloaded, Source};

/// A server that says nothing for this long has taken our certificate, or is too far away to wait for.
const FIRST_WORDS: Duration = Duration::from_millis(500);

/// A client's certificates, as its files have them.
pub type Client = Reloaded<ClientFiles>;

/// Where a client's certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The authorities one of which must have signed the server's certificate, in PEM; `None` for those that the
    /// system trusts.
    pub authorities: Option<PathBuf>,
    /// Its own certificate and its private key, in PEM; `None` where servers want none.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientFiles {
    /// The files that are named.
    ///
    /// # Errors
    /// Where a certificate is named without its key, or a key without its certificate.
    pub fn of(
        authorities: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> Result<Self, Incomplete> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Self { authorities, identity: Some((certificate, key)) }),
            (None, None) => Ok(Self { authorities, identity: None }),
            (Some(_), None) | (None, Some(_)) => Err(Incomplete::Identity),
        }
    }
}

impl Source for ClientFiles {
    type Value = ClientConfig;
    type Error = Unusable;

    fn files(&self) -> Vec<&Path> {
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.authorities.iter().chain(identity).map(PathBuf::as_path).collect()
    }

    fn read(&self) -> Result<ClientConfig, Unusable> {
        let roots = match &self.authorities {
            Some(path) => files::authorities(path)?,
            None => files::system_authorities()?,
        };
        let servers = ClientConfig::builder_with_provider(files::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers for them")
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => servers.with_no_client_auth(),
            Some((certificate, key)) => {
                let Identity { chain, key: secret } = files::identity(certificate, key)?;
                servers
                    .with_client_auth_cert(chain, secret)
                    .map_err(|error| files::mismatched(certificate, key, &error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A session that is taken up again does not look at the server's certificate.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// A name that no server can have.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither a host name nor an address")]
pub struct InvalidHost(String);

/// Makes connections: plain ones by default. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Dialer(Option<Secured>);

/// How connections are made over TLS.
#[derive(Clone, Debug)]
struct Secured {
    client: Arc<Client>,
    /// The name that every server's certificate must have; `None` for that of the host that is dialled.
    name: Option<ServerName<'static>>,
}

impl Dialer {
    /// Makes connections over TLS. A server's certificate must be for `name`, where one is given, and else for the
    /// host that is dialled, be it a name or an address.
    ///
    /// # Errors
    /// Where `name` is none.
    pub fn secured(client: Arc<Client>, name: Option<&str>) -> Result<Self, InvalidHost> {
        Ok(Self(Some(Secured { client, name: name.map(server_name).transpose()? })))
    }

    /// A connection by itself, with TLS in it, for tests that speak for themselves.
    ///
    /// # Errors
    /// Where none can be made.
    ///
    /// # Panics
    /// Where this makes plain ones.
    #[cfg(feature = "testing")]
    pub async fn stream(&self, server: std::net::SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let secured = self.0.clone().expect("it makes connections over TLS");
        secured.reach(&server.ip().to_string(), server.port()).await
    }

    /// A channel to `endpoint` that connects when it is first used. The URI of an endpoint has the scheme `http`,
    /// over TLS as well.
    #[must_use]
    pub fn lazy(&self, endpoint: &Endpoint) -> Channel {
        match &self.0 {
            None => endpoint.connect_lazy(),
            Some(secured) => secure(endpoint).connect_with_connector_lazy(secured.clone()),
        }
    }

    /// A channel to `endpoint` that is connected. The URI of an endpoint has the scheme `http`, over TLS as well.
    ///
    /// # Errors
    /// Where no connection can be made.
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        match &self.0 {
            None => endpoint.connect().await,
            Some(secured) => secure(endpoint).connect_with_connector(secured.clone()).await,
        }
    }
}

/// Has requests say that they came over TLS. The endpoint's own URI cannot say so: tonic would look for certificates
/// of its own.
fn secure(endpoint: &Endpoint) -> Endpoint {
    let mut origin = endpoint.uri().clone().into_parts();
    origin.scheme = Some(http::uri::Scheme::HTTPS);
    match Uri::from_parts(origin) {
        Ok(origin) => endpoint.clone().origin(origin),
        Err(_) => endpoint.clone(),
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, InvalidHost> {
    // In a URI, addresses of the sixth version stand in brackets.
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(address) => Ok(ServerName::from(address)),
        Err(_) => ServerName::try_from(bare.to_owned()).map_err(|_| InvalidHost(host.to_owned())),
    }
}

impl Service<Uri> for Secured {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let secured = self.clone();
        Box::pin(async move {
            let authority = server.authority().ok_or_else(|| invalid("the address has no host"))?;
            let mut stream = secured.reach(authority.host(), authority.port_u16().unwrap_or(443)).await?;
            hear(&mut stream).await?;
            Ok(TokioIo::new(stream))
        })
    }
}

impl Secured {
    /// A connection to `host`, which may stand in brackets.
    async fn reach(self, host: &str, port: u16) -> io::Result<TlsStream<TcpStream>> {
        let name = self.name.map_or_else(|| server_name(host), Ok).map_err(invalid)?;
        let stream = TcpStream::connect((host.trim_start_matches('[').trim_end_matches(']'), port)).await?;
        stream.set_nodelay(true)?;
        let config = task::spawn_blocking(move || self.client.refresh()).await?;
        TlsConnector::from(config).connect(name, stream).await
    }
}

/// Waits a moment for the server's first words, and leaves them to be read.
///
/// In TLS 1.3 a client is done before the server has judged its certificate. A request sent meanwhile breaks the
/// connection of a server that does not take it, and the reason is lost. HTTP/2 servers speak first.
async fn hear(stream: &mut TlsStream<TcpStream>) -> io::Result<()> {
    match time::timeout(FIRST_WORDS, stream.fill_buf()).await {
        Ok(Err(refused)) => Err(refused),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

fn invalid(why: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_by_name_or_address() {
        #[track_caller]
        fn check(host: &str, expected: Option<&str>) {
            let name = server_name(host).ok();
            assert_eq!(name.as_ref().map(ServerName::to_str).as_deref(), expected, "{host}");
        }
        check("gateway.example", Some("gateway.example"));
        check("10.0.0.7", Some("10.0.0.7"));
        check("[::1]", Some("::1"));
        check("::1", Some("::1"));
        check("not a name", None);
        check("", None);
    }
}
