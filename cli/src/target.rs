//! Where a gateway is, and what it is shown: an address, certificates, a key.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tls::{Client, ClientFiles, Dialer};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::failure::{Failure, innermost};

/// A key as it is sent; never shown.
pub(crate) type Bearer = MetadataValue<Ascii>;

/// A gateway's address, not yet connected to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// With the scheme `http`, over TLS as well.
    endpoint: Endpoint,
    scheme: Scheme,
    /// As it was given.
    url: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Plain,
    Tls,
}

/// What a gateway is shown.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Access")]
pub(crate) struct Access {
    /// The API key; better given in the environment, where other users do not see it
    #[arg(long, global = true, env = "BEIGE_KEY", hide_env_values = true, value_name = "KEY")]
    key: Option<Key>,
    /// Authorities one of which signed the gateway's certificate, PEM [default: those the system trusts]
    #[arg(long, global = true, env = "BEIGE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// This client's own certificate, PEM, where the gateway wants one
    #[arg(long, global = true, env = "BEIGE_CERT", value_name = "FILE", requires = "cert_key")]
    cert: Option<PathBuf>,
    /// The private key of that certificate, PEM
    #[arg(long, global = true, env = "BEIGE_CERT_KEY", value_name = "FILE", requires = "cert")]
    cert_key: Option<PathBuf>,
}

/// An API key.
#[derive(Clone)]
struct Key(Bearer);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Whatever is wrong with it, the text is not repeated.
        let mut bearer: Bearer = format!("Bearer {}", text.trim())
            .parse()
            .map_err(|_| "a key is letters and digits".to_owned())?;
        if text.trim().is_empty() {
            return Err("it is empty".to_owned());
        }
        bearer.set_sensitive(true);
        Ok(Self(bearer))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let (scheme, rest) = match url.split_once("://") {
            Some(("http", rest)) => (Scheme::Plain, rest),
            Some(("https", rest)) => (Scheme::Tls, rest),
            Some(_) | None => return Err("http:// and https:// are spoken".to_owned()),
        };
        let wrong = || "it is not http://HOST:PORT or https://HOST:PORT".to_owned();
        let endpoint = Endpoint::from_shared(format!("http://{rest}")).map_err(|_| wrong())?;
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(5))
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .tcp_nodelay(true);
        let agent = endpoint.user_agent(concat!("beige/", env!("CARGO_PKG_VERSION")));
        Ok(Self { endpoint: agent.map_err(|error| error.to_string())?, scheme, url })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Target {
    /// Connects; answers the key that calls show, too.
    pub(crate) async fn dial(&self, access: &Access) -> Result<(Channel, Option<Bearer>), Failure> {
        let dialer = self.dialer(access)?;
        let channel = dialer.connect(&self.endpoint).await.map_err(|error| {
            Failure::Unreachable(format!("cannot reach {}: {}", self.url, innermost(&error)))
        })?;
        Ok((channel, access.key.as_ref().map(|key| key.0.clone())))
    }

    fn dialer(&self, access: &Access) -> Result<Dialer, Failure> {
        let Access { key: _, ca, cert, cert_key } = access.clone();
        let usage = |error: &dyn std::error::Error| Failure::Usage(error.to_string());
        match self.scheme {
            Scheme::Plain if ca.is_some() || cert.is_some() => Err(Failure::Usage(format!(
                "certificates are given for {}, which is spoken to in plain: say https://",
                self.url
            ))),
            Scheme::Plain => Ok(Dialer::default()),
            Scheme::Tls => {
                let files = ClientFiles { authorities: ca, identity: cert.zip(cert_key) };
                let client = Client::load(files).map_err(|error| usage(&error))?;
                Dialer::secured(Arc::new(client), None).map_err(|error| usage(&error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_url_or_an_address() {
        let parsed = |text: &str| text.parse::<Target>().map(|target| (target.scheme, target.to_string()));
        assert_eq!(parsed("http://10.0.0.7:8080").unwrap(), (Scheme::Plain, "http://10.0.0.7:8080".into()));
        assert_eq!(parsed("localhost:8080").unwrap(), (Scheme::Plain, "http://localhost:8080".into()));
        assert_eq!(parsed("https://example.test").unwrap(), (Scheme::Tls, "https://example.test".into()));
        assert_eq!(parsed("ftp://example.test").unwrap_err(), "http:// and https:// are spoken");
        assert_eq!(parsed("http://").unwrap_err(), "it is not http://HOST:PORT or https://HOST:PORT");
    }

    #[test]
    fn a_key_is_never_shown() {
        let key: Key = "bg_secret".parse().unwrap();
        assert_eq!(key.0, "Bearer bg_secret");
        assert!(!format!("{key:?} {:?}", key.0).contains("secret"));
        let refused = "bg\u{7f}secret".parse::<Key>().unwrap_err();
        assert!(!refused.contains("secret"), "{refused}");
        assert!(" ".parse::<Key>().is_err());
    }
}
