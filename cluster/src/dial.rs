//! How etcd is reached: the addresses of its members, in the clear or over TLS.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions};
use tls::{ClientFiles, Dialer, InvalidHost, Source, Unusable};
use tokio::{task, time};
use tonic::transport::Endpoint;

use crate::name::Name;

/// Within the time that a call may take, so that the error says that it was the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A silent stream is probed this often: not below what etcd takes for abuse (5 s).
const PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// A probe unanswered for this long ends the connection, and the watch on it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// A disk that does not answer is no reason to wait: the certificates that were read last still hold.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the cluster's etcd is, and which cluster it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `host:port`, `http://host:port` or `https://host:port` of each member of etcd, at least one. Either all are
    /// reached over TLS or none.
    pub endpoints: Vec<String>,
    /// The cluster: all its keys are under `/beige/<cluster>/`.
    pub cluster: Name,
    /// Reach etcd over TLS with these certificates. Without them, endpoints with `https://` must have certificates of
    /// authorities that the system trusts.
    pub tls: Option<Tls>,
}

/// How etcd and we know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Where our certificates are. They are read again when the files change.
    pub files: ClientFiles,
    /// The name that each member's certificate must have; `None` for that of the host that is dialled.
    pub server_name: Option<String>,
}

impl Tls {
    /// Reaches etcd over TLS with the files that are named; `None` where nothing is said of TLS.
    ///
    /// # Errors
    /// Where a certificate is named without its key, or a key without its certificate.
    pub fn of(
        authorities: Option<PathBuf>,
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
        server_name: Option<String>,
    ) -> Result<Option<Self>, InvalidSettings> {
        let files =
            ClientFiles::of(authorities, certificate, key).map_err(|_| InvalidSettings::HalfAnIdentity)?;
        let is_asked_for = files.authorities.is_some() || files.identity.is_some() || server_name.is_some();
        Ok(is_asked_for.then_some(Self { files, server_name }))
    }
}

/// Why [`Settings`] cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSettings {
    /// There is no endpoint.
    #[error("no endpoint of etcd is given")]
    NoEndpoint,
    /// An endpoint is not of the form it should have.
    #[error("the etcd endpoint {0:?} is not host:port, http://host:port or https://host:port")]
    Endpoint(String),
    /// An endpoint asks for another protocol than the other settings.
    #[error("the etcd endpoint {0:?} is reached in the clear, where certificates or another one ask for TLS")]
    InTheClear(String),
    /// The name that etcd's certificates must have is none.
    #[error("the name of etcd's certificates: {0}")]
    ServerName(#[from] InvalidHost),
    /// A certificate for etcd is named without its key, or the other way round.
    #[error("a certificate and its private key go together")]
    HalfAnIdentity,
    /// The certificates cannot be used.
    #[error("the certificates for etcd: {0}")]
    Certificates(#[from] Unusable),
}

/// What a connection showed and trusted. Equal by address: what was read anew is another one.
pub(crate) type Certificates = Arc<<ClientFiles as Source>::Value>;

/// Makes connections to the members of etcd.
#[derive(Debug)]
pub(crate) struct Dial {
    endpoints: Vec<Endpoint>,
    dialer: Dialer,
    certificates: Option<Arc<tls::Client>>,
}

impl Dial {
    /// Reads the certificates, where there are any.
    pub(crate) fn new(endpoints: &[String], tls: Option<Tls>) -> Result<Self, InvalidSettings> {
        let tls = match tls {
            None if endpoints.iter().any(|text| text.starts_with("https://")) => {
                Some(Tls { files: ClientFiles { authorities: None, identity: None }, server_name: None })
            }
            given => given,
        };
        if endpoints.is_empty() {
            return Err(InvalidSettings::NoEndpoint);
        }
        let endpoint = |text: &String| match text.strip_prefix("http://") {
            Some(_) if tls.is_some() => Err(InvalidSettings::InTheClear(text.clone())),
            _ => endpoint(text),
        };
        let endpoints = endpoints.iter().map(endpoint).collect::<Result<_, _>>()?;
        let Some(Tls { files, server_name }) = tls else {
            return Ok(Self { endpoints, dialer: Dialer::default(), certificates: None });
        };
        let certificates = Arc::new(tls::Client::load(files)?);
        let dialer = Dialer::secured(Arc::clone(&certificates), server_name.as_deref())?;
        Ok(Self { endpoints, dialer, certificates: Some(certificates) })
    }

    /// A connection to the member whose turn it is, and the certificates it was made with.
    pub(crate) async fn connect(
        &self,
        turn: usize,
    ) -> Result<(Client, Option<Certificates>), etcd_client::Error> {
        let channel = self.dialer.connect(&self.endpoints[turn % self.endpoints.len()]).await?;
        let certificates = self.certificates.as_ref().map(|certificates| certificates.value());
        // A member cut off from its leader says so at once, and ends its watches.
        let options = ConnectOptions::new().with_require_leader(true);
        Ok((Client::from_channel(Channel::Tonic(channel), Some(options)).await?, certificates))
    }

    /// Whether the files have other certificates now than `those`. Cancel safe.
    pub(crate) async fn is_outdated(&self, those: &Certificates) -> bool {
        let Some(certificates) = self.certificates.clone() else { return false };
        let read = task::spawn_blocking(move || certificates.refresh());
        matches!(time::timeout(READ_TIMEOUT, read).await, Ok(Ok(now)) if !Arc::ptr_eq(&now, those))
    }
}

/// An endpoint as tonic has it: the dialer alone knows of TLS.
fn endpoint(text: &str) -> Result<Endpoint, InvalidSettings> {
    let invalid = || InvalidSettings::Endpoint(text.to_owned());
    let authority = text.strip_prefix("http://").or(text.strip_prefix("https://")).unwrap_or(text);
    let (host, port) = authority.trim_end_matches('/').rsplit_once(':').ok_or_else(invalid)?;
    let host_is_plain = |c: char| c.is_ascii_alphanumeric() || ".-_[]:".contains(c);
    let port: u16 = port.parse().map_err(|_| invalid())?;
    if host.is_empty() || !host.chars().all(host_is_plain) {
        return Err(invalid());
    }
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).map_err(|_| invalid())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PROBE_INTERVAL)
        .keep_alive_timeout(PROBE_TIMEOUT)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dial(endpoints: &[&str], tls: Option<Tls>) -> Result<Dial, InvalidSettings> {
        Dial::new(&endpoints.iter().map(ToString::to_string).collect::<Vec<_>>(), tls)
    }

    fn with_authorities(path: PathBuf, server_name: Option<&str>) -> Tls {
        let files = ClientFiles { authorities: Some(path), identity: None };
        Tls { files, server_name: server_name.map(ToOwned::to_owned) }
    }

    #[test]
    fn endpoints_are_hosts_and_ports() {
        #[track_caller]
        fn check(endpoint: &str, expected: &str) {
            assert_eq!(dial(&[endpoint], None).unwrap().endpoints[0].uri().to_string(), expected);
        }
        check("127.0.0.1:2379", "http://127.0.0.1:2379/");
        check("http://etcd-0.etcd:2379/", "http://etcd-0.etcd:2379/");
        check("[::1]:2379", "http://[::1]:2379/");
    }

    #[test]
    fn other_endpoints_are_refused_by_name() {
        assert!(matches!(dial(&[], None), Err(InvalidSettings::NoEndpoint)));
        for text in ["", "etcd", ":2379", "etcd:", "etcd:99999", "http://a b:1", "unix:///x:1"] {
            let refused = dial(&["ok:1", text], None);
            assert!(
                matches!(&refused, Err(InvalidSettings::Endpoint(named)) if named == text),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn nothing_is_sent_in_the_clear_where_tls_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let authority = tls::testing::Authority::named("ours");
        let path = tls::testing::Files(directory.path()).authorities("ca", &[&authority]);
        for text in ["https://etcd:2379", "etcd:2379"] {
            let dial = dial(&[text], Some(with_authorities(path.clone(), None))).unwrap();
            assert!(dial.certificates.is_some(), "{text}");
        }
        for (endpoints, tls) in [
            (["https://a:1", "http://b:1"], None),
            (["a:1", "http://b:1"], Some(with_authorities(path.clone(), None))),
        ] {
            let refused = dial(&endpoints, tls);
            assert!(matches!(&refused, Err(InvalidSettings::InTheClear(named)) if named == "http://b:1"));
        }
        let refused = dial(&["a:1"], Some(with_authorities(path, Some("not a name"))));
        assert!(matches!(refused, Err(InvalidSettings::ServerName(_))), "{refused:?}");
    }

    #[test]
    fn tls_is_asked_for_by_any_of_its_settings_and_an_identity_is_whole() {
        let of = |named: [&str; 4]| {
            let [ca, certificate, key, name] = named.map(|text| (!text.is_empty()).then(|| text.to_owned()));
            Tls::of(ca.map(Into::into), certificate.map(Into::into), key.map(Into::into), name)
        };
        assert!(matches!(of(["", "", "", ""]), Ok(None)));
        for asked_for in [["ca", "", "", ""], ["", "", "", "name"], ["ca", "certificate", "key", "name"]] {
            assert!(matches!(of(asked_for), Ok(Some(_))), "{asked_for:?}");
        }
        for half in [["ca", "certificate", "", ""], ["ca", "", "key", ""]] {
            assert!(matches!(of(half), Err(InvalidSettings::HalfAnIdentity)), "{half:?}");
        }
    }

    #[test]
    fn certificates_that_cannot_be_used_are_named() {
        let missing = with_authorities("/nonexistent/ca.pem".into(), None);
        let refused = dial(&["a:1"], Some(missing)).unwrap_err();
        assert!(refused.to_string().contains("cannot read /nonexistent/ca.pem"), "{refused}");
    }
}
