//! Why the two ends of a connection did not come to trust each other, as a client learns it.

use std::error::Error;
use std::io;

use tokio_rustls::rustls::{self, CertificateError};

/// Why the two ends of a connection did not come to trust each other. Nothing of what is in a certificate is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// The server's certificate is not valid at this time.
    #[error("the server's certificate has expired, or is not valid yet")]
    Expired,
    /// Nobody who is trusted signed the server's certificate.
    #[error("the server's certificate is of no authority that is trusted here")]
    UnknownAuthority,
    /// The server is not the one that was meant.
    #[error("the server's certificate is for another name")]
    OtherName,
    /// The server's certificate is no good for another reason.
    #[error("the server's certificate is no good: {0}")]
    BadCertificate(String),
    /// The server does not take our certificate, or wants one.
    #[error("the server does not take our certificate, or wants one: {0}")]
    Declined(String),
    /// What answers there speaks another protocol, in the clear perhaps.
    #[error("the server does not speak TLS as it is spoken here: {0}")]
    Protocol(String),
}

/// What rustls says when the other end breaks off. An HTTP/2 connection keeps the words of its error and not the error.
const ALERT: &str = "received fatal alert: ";

/// What the handshake says when the other end closes the connection, as a server does that expects other words.
const HUNG_UP: &str = "tls handshake eof";

impl Distrust {
    /// Finds it among the reasons for `error`; none where the connection failed otherwise.
    #[must_use]
    pub fn among(error: &(dyn Error + 'static)) -> Option<Self> {
        std::iter::successors(Some(error), |&error| error.source()).find_map(Self::of)
    }

    fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = wrapped.and_then(|error| error.downcast_ref::<rustls::Error>());
        if let Some(error) = found.or_else(|| error.downcast_ref()) {
            return Some(Self::of_tls(error));
        }
        let text = error.to_string();
        if text == HUNG_UP {
            return Some(Self::Protocol(text));
        }
        let (_, alert) = text.split_once(ALERT)?;
        Some(Self::Declined(alert.to_owned()))
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "rustls may learn of other errors")]
    fn of_tls(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(fault) => Self::of_certificate(fault),
            rustls::Error::AlertReceived(alert) => Self::Declined(format!("{alert:?}")),
            other => Self::Protocol(other.to_string()),
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "rustls may learn of other errors")]
    fn of_certificate(fault: &CertificateError) -> Self {
        match fault {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Expired,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownAuthority,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::OtherName
            }
            other => Self::BadCertificate(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::{AlertDescription, InvalidMessage};

    use super::*;

    /// An error for a reason.
    #[derive(Debug, thiserror::Error)]
    #[error("it did not work")]
    struct Because(#[source] io::Error);

    #[track_caller]
    fn check(error: impl Into<Box<dyn Error + Send + Sync>>, expected: Option<&Distrust>) {
        assert_eq!(Distrust::among(&Because(io::Error::other(error))).as_ref(), expected);
    }

    #[test]
    fn it_is_found_among_the_reasons() {
        check(rustls::Error::from(CertificateError::Expired), Some(&Distrust::Expired));
        check(rustls::Error::from(CertificateError::UnknownIssuer), Some(&Distrust::UnknownAuthority));
        check(rustls::Error::from(CertificateError::NotValidForName), Some(&Distrust::OtherName));
        let declined = Distrust::Declined("CertificateRequired".to_owned());
        check(rustls::Error::AlertReceived(AlertDescription::CertificateRequired), Some(&declined));
        check("connection error: received fatal alert: CertificateRequired", Some(&declined));
        check("tls handshake eof", Some(&Distrust::Protocol("tls handshake eof".to_owned())));
        let plain = rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
        assert!(matches!(Distrust::among(&plain), Some(Distrust::Protocol(_))));
    }

    #[test]
    fn what_failed_otherwise_is_none() {
        check("connection refused", None);
        assert_eq!(Distrust::among(&io::Error::from(io::ErrorKind::ConnectionRefused)), None);
    }
}
