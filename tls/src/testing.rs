//! Certificates made on the spot, for tests: no file of this kind is kept, for each would expire one day.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};

use crate::{ClientFiles, ServerFiles};

/// An authority that signs what it is told to.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// For longer than any test takes.
    Lasting,
    /// It was, once.
    Past,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// An authority of this name, with a key of its own.
    ///
    /// # Panics
    /// Where the system has no random numbers.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("the system has random numbers");
        Self(CertifiedIssuer::self_signed(params, key).expect("the parameters are sound"))
    }

    /// Its own certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `names`: host names and addresses.
    ///
    /// # Panics
    /// Where they are none.
    #[must_use]
    pub fn issue(&self, names: &[&str], validity: Validity) -> Issued {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the names are names");
        if validity == Validity::Past {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().expect("the system has random numbers");
        let certificate = params.signed_by(&key, &self.0).expect("the parameters are sound");
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// A directory of certificates in files.
#[derive(Debug)]
pub struct Files<'a>(pub &'a Path);

impl Files<'_> {
    /// Writes `issued` as `NAME.pem` and `NAME.key`: each file is whole at any moment, the pair is not.
    ///
    /// # Panics
    /// Where the system does not let it.
    #[must_use]
    pub fn identity(&self, name: &str, issued: &Issued) -> (PathBuf, PathBuf) {
        (
            self.write(&format!("{name}.pem"), &issued.certificate),
            self.write(&format!("{name}.key"), &issued.key),
        )
    }

    /// Writes the certificates of `authorities` as `NAME.pem`.
    ///
    /// # Panics
    /// Where the system does not let it.
    #[must_use]
    pub fn authorities(&self, name: &str, authorities: &[&Authority]) -> PathBuf {
        self.write(
            &format!("{name}.pem"),
            &authorities.iter().map(|authority| authority.pem()).collect::<String>(),
        )
    }

    /// What a server needs to show `issued`, and to ask callers for a certificate of `clients`.
    #[must_use]
    pub fn server(&self, name: &str, issued: &Issued, clients: Option<&Authority>) -> ServerFiles {
        let (certificate, key) = self.identity(name, issued);
        let client_authorities =
            clients.map(|clients| self.authorities(&format!("{name}-clients"), &[clients]));
        ServerFiles { certificate, key, client_authorities }
    }

    /// What a client needs to trust `servers`, and to show `issued`.
    #[must_use]
    pub fn client(&self, name: &str, servers: &Authority, issued: Option<&Issued>) -> ClientFiles {
        ClientFiles {
            authorities: Some(self.authorities(&format!("{name}-servers"), &[servers])),
            identity: issued.map(|issued| self.identity(name, issued)),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, draft) = (self.0.join(name), self.0.join(format!("{name}.draft")));
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .expect("the directory can be written");
        path
    }
}
