//! Certificates for a gateway, its callers and its workers, all of one authority.

use std::sync::Arc;

use gateway::guard::Guard;
use tempfile::TempDir;
use tls::testing::{Authority, Files, Validity};
use tls::{Client, ClientFiles, Dialer, Server, ServerFiles};

const HOST: &str = "127.0.0.1";

/// A directory of certificates.
pub(crate) struct Certificates {
    directory: TempDir,
    authority: Authority,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), authority: Authority::named("ours") }
    }

    fn files(&self) -> Files<'_> {
        Files(self.directory.path())
    }

    /// Writes new certificates for everybody, over those that are there.
    pub(crate) fn renew(&self) {
        for name in ["public", "caller", "worker", "gateway"] {
            let issued = self.authority.issue(&[HOST], Validity::Lasting);
            let _ = self.files().identity(name, &issued);
        }
    }

    fn server(&self, name: &str) -> ServerFiles {
        let issued = self.authority.issue(&[HOST], Validity::Lasting);
        self.files().server(name, &issued, Some(&self.authority))
    }

    /// A client that shows a certificate.
    fn client(&self, name: &str) -> Dialer {
        let issued = self.authority.issue(&[HOST], Validity::Lasting);
        dialer(self.files().client(name, &self.authority, Some(&issued)))
    }

    /// A gateway that speaks TLS to callers, who need a certificate, and to workers.
    pub(crate) fn guard(&self) -> Guard {
        Guard { workers: self.client("gateway"), ..self.public() }
    }

    /// A gateway that speaks TLS to callers alone.
    pub(crate) fn public(&self) -> Guard {
        let tls = Arc::new(Server::load(self.server("public")).unwrap());
        Guard { tls: Some(tls), ..Guard::default() }
    }

    /// What a worker needs that speaks TLS, and wants a certificate of gateways.
    pub(crate) fn worker(&self) -> ServerFiles {
        self.server("worker")
    }

    /// A caller with a certificate.
    pub(crate) fn caller(&self) -> Dialer {
        self.client("caller")
    }

    /// A caller without one.
    pub(crate) fn stranger(&self) -> Dialer {
        dialer(self.files().client("stranger", &self.authority, None))
    }
}

fn dialer(files: ClientFiles) -> Dialer {
    Dialer::secured(Arc::new(Client::load(files).unwrap()), None).unwrap()
}
