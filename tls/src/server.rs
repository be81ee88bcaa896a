//! What a server shows to those who connect, and whom it asks for a certificate of theirs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use crate::files::{self, Identity, Incomplete, Unusable, What};
use crate::reload::{Reloaded, Source};

/// A server's certificates, as its files have them.
pub type Server = Reloaded<ServerFiles>;

/// Where a server's certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate and those between it and its authority, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// The authorities one of which must have signed the caller's certificate; `None` where callers need none.
    pub client_authorities: Option<PathBuf>,
}

impl ServerFiles {
    /// The files that are named, where any is.
    ///
    /// # Errors
    /// Where some are named, and not those that go with them.
    pub fn of(
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        client_authorities: Option<PathBuf>,
    ) -> Result<Option<Self>, Incomplete> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Self { certificate, key, client_authorities })),
            (None, None) if client_authorities.is_some() => Err(Incomplete::Authorities),
            (None, None) => Ok(None),
            (Some(_), None) | (None, Some(_)) => Err(Incomplete::Identity),
        }
    }
}

impl Source for ServerFiles {
    type Value = ServerConfig;
    type Error = Unusable;

    fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = vec![&self.certificate, &self.key];
        files.extend(self.client_authorities.as_deref());
        files
    }

    fn read(&self) -> Result<ServerConfig, Unusable> {
        let Identity { chain, key } = files::identity(&self.certificate, &self.key)?;
        let versions = ServerConfig::builder_with_provider(files::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers for them");
        let clients = match &self.client_authorities {
            None => versions.with_no_client_auth(),
            Some(path) => {
                let roots = files::authorities(path)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, files::provider()).build();
                versions.with_client_cert_verifier(
                    verifier.map_err(|error| files::malformed(What::Authorities, path, &error))?,
                )
            }
        };
        let mut config = clients
            .with_single_cert(chain, key)
            .map_err(|error| files::mismatched(&self.certificate, &self.key, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A session that is taken up again is not asked for its certificate, which may have expired meanwhile.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}
