//! Certificates and keys in PEM files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, RootCertStore};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Our certificate, and those between it and its authority.
    Certificate,
    /// Our private key.
    Key,
    /// The authorities whose certificates the other end must have one of.
    Authorities,
}

impl What {
    fn words(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::Authorities => "certificate of an authority",
        }
    }
}

/// Why files are of no use. Nothing of what is in them is told.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unread {
        /// What it is for.
        what: What,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a PEM file with what it should have.
    #[error("{} has no {} that can be used: {why}", path.display(), what.words())]
    Malformed {
        /// What it is for.
        what: What,
        /// Which file.
        path: PathBuf,
        /// What is the matter with it.
        why: String,
    },
    /// The system trusts nobody.
    #[error("this system has no list of authorities that it trusts")]
    NoAuthorities,
    /// The private key belongs to another certificate.
    #[error("the private key in {} is not that of the certificate in {}", key.display(), certificate.display())]
    Pair {
        /// Where the certificate is.
        certificate: PathBuf,
        /// Where the key is.
        key: PathBuf,
    },
}

impl Unusable {
    /// Which of the files is to be repaired.
    #[must_use]
    pub fn what(&self) -> What {
        match self {
            Self::Unread { what, .. } | Self::Malformed { what, .. } => *what,
            Self::NoAuthorities => What::Authorities,
            Self::Pair { .. } => What::Key,
        }
    }
}

/// Why the files that are named are too few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomplete {
    /// A certificate without its key, or the other way round.
    Identity,
    /// Those who would have to show a certificate are not shown one.
    Authorities,
}

/// A certificate and its key: what one end shows the other.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Reads a certificate with its chain, and its private key.
pub(crate) fn identity(certificate: &Path, key: &Path) -> Result<Identity, Unusable> {
    let chain = certificates(What::Certificate, certificate)?;
    let found = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(What::Key, key, error))?;
    Ok(Identity { chain, key: found })
}

/// Reads the authorities that are trusted.
pub(crate) fn authorities(path: &Path) -> Result<Arc<RootCertStore>, Unusable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(What::Authorities, path)? {
        roots.add(certificate).map_err(|error| malformed(What::Authorities, path, &error))?;
    }
    Ok(Arc::new(roots))
}

/// The authorities that the system trusts.
pub(crate) fn system_authorities() -> Result<Arc<RootCertStore>, Unusable> {
    let mut roots = RootCertStore::empty();
    // Lists are long, and some in them are older than what can be read today.
    let (taken, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if taken == 0 { Err(Unusable::NoAuthorities) } else { Ok(Arc::new(roots)) }
}

fn certificates(what: What, path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(what, path, error))?;
    if all.is_empty() { Err(unusable(what, path, pem::Error::NoItemsFound)) } else { Ok(all) }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the other ways in which a file is not in PEM")]
fn unusable(what: What, path: &Path, error: pem::Error) -> Unusable {
    match error {
        pem::Error::Io(source) => Unusable::Unread { what, path: path.to_owned(), source },
        pem::Error::NoItemsFound => malformed(what, path, &"there is none in it"),
        // What they say may be of the file's content.
        _ => malformed(what, path, &"it is not in PEM"),
    }
}

pub(crate) fn malformed(what: What, path: &Path, why: &impl ToString) -> Unusable {
    Unusable::Malformed { what, path: path.to_owned(), why: why.to_string() }
}

/// What rustls says of a certificate and a key.
pub(crate) fn mismatched(certificate: &Path, key: &Path, error: &rustls::Error) -> Unusable {
    if let rustls::Error::InconsistentKeys(_) = error {
        return Unusable::Pair { certificate: certificate.to_owned(), key: key.to_owned() };
    }
    let what = if let rustls::Error::InvalidCertificate(_) = error { What::Certificate } else { What::Key };
    malformed(what, if what == What::Key { key } else { certificate }, error)
}

/// The one implementation of ciphers.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}
