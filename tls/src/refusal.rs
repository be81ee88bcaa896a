//! Why a connection was not let in: a word to count it by.

use std::io;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio_rustls::rustls::{CertificateError, Error, InvalidMessage};

/// Why a connection was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It does not speak TLS.
    Plaintext,
    /// It showed no certificate where one is wanted.
    NoCertificate,
    /// Its certificate has expired, or is not valid yet.
    Expired,
    /// Its certificate is of no authority that is trusted.
    UnknownAuthority,
    /// Its certificate is no good for another reason.
    BadCertificate,
    /// It does not like our certificate, or broke off for another reason it told.
    Declined,
    /// It speaks TLS in a way that is not taken here: an old version, say, or not HTTP/2.
    Protocol,
    /// It took too long.
    Slow,
    /// It went away before it said anything wrong.
    Gone,
}

impl Reason {
    /// The label of its metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::UnknownAuthority => "unknown_authority",
            Self::BadCertificate => "bad_certificate",
            Self::Declined => "declined",
            Self::Protocol => "protocol",
            Self::Slow => "slow",
            Self::Gone => "gone",
        }
    }

    /// Sorts what a handshake ended with.
    pub(crate) fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|source| source.downcast_ref::<Error>()) {
            Some(error) => Self::of_tls(error),
            None => Self::Gone,
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "rustls may learn of other errors")]
    fn of_tls(error: &Error) -> Self {
        match error {
            // The first byte of anything that is not TLS.
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::Plaintext,
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::InvalidCertificate(fault) => Self::of_certificate(fault),
            Error::AlertReceived(_) => Self::Declined,
            _ => Self::Protocol,
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "rustls may learn of other errors")]
    fn of_certificate(fault: &CertificateError) -> Self {
        match fault {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Expired,
            // A signature that is not right is of an authority that only has the name of one.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
            _ => Self::BadCertificate,
        }
    }
}

/// Connections that were not let in, by reason. Cheap to clone; clones count together.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Family<[(&'static str, &'static str); 1], Counter>);

impl Refusals {
    /// Has `registry` show them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connections_refused", "Connections not let in, by reason", self.0.clone());
    }

    pub(crate) fn count(&self, reason: Reason) {
        self.0.get_or_create(&[("reason", reason.label())]).inc();
    }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::{AlertDescription, PeerMisbehaved};

    use super::*;

    #[test]
    fn a_failure_is_sorted_by_who_should_do_something() {
        #[track_caller]
        fn check(error: Error, expected: Reason) {
            assert_eq!(Reason::of(&io::Error::new(io::ErrorKind::InvalidData, error)), expected);
        }
        check(Error::InvalidMessage(InvalidMessage::InvalidContentType), Reason::Plaintext);
        check(Error::InvalidMessage(InvalidMessage::MessageTooLarge), Reason::Protocol);
        check(Error::NoCertificatesPresented, Reason::NoCertificate);
        check(CertificateError::Expired.into(), Reason::Expired);
        check(CertificateError::NotValidYet.into(), Reason::Expired);
        check(CertificateError::UnknownIssuer.into(), Reason::UnknownAuthority);
        check(CertificateError::BadSignature.into(), Reason::UnknownAuthority);
        check(CertificateError::Revoked.into(), Reason::BadCertificate);
        check(Error::AlertReceived(AlertDescription::UnknownCA), Reason::Declined);
        check(Error::NoApplicationProtocol, Reason::Protocol);
        check(PeerMisbehaved::BadCertChainExtensions.into(), Reason::Protocol);
        assert_eq!(Reason::of(&io::ErrorKind::UnexpectedEof.into()), Reason::Gone);
    }
}
