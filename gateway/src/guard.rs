//! Who is let in, and how workers are reached.

use std::path::PathBuf;
use std::sync::Arc;

use tls::{Client, ClientFiles, Dialer, Incomplete, Server, ServerFiles, Unusable, What};

use crate::config::InvalidConfig;
use crate::keys::Keys;

/// Where that stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// What callers are shown; `None` where they are talked to in the clear.
    pub tls: Option<ServerFiles>,
    /// The API keys; `None` where nobody needs one.
    pub keys: Option<PathBuf>,
    /// How workers are known; `None` where they are talked to in the clear.
    pub workers: Option<ClientFiles>,
    /// The name that every worker's certificate has; `None` for that of the address it is registered with.
    pub worker_name: Option<String>,
}

/// The same, read. By default everybody is let in, and all of it is in the clear.
#[derive(Clone, Debug, Default)]
pub struct Guard {
    /// What callers are shown.
    pub tls: Option<Arc<Server>>,
    /// The API keys.
    pub keys: Option<Arc<Keys>>,
    /// Makes connections to workers.
    pub workers: Dialer,
}

/// The settings of one end, by what they are for.
struct Names {
    certificate: &'static str,
    key: &'static str,
    authorities: &'static str,
}

const PUBLIC: Names = Names { certificate: "tls-cert", key: "tls-key", authorities: "tls-client-ca" };
const WORKERS: Names = Names { certificate: "worker-cert", key: "worker-key", authorities: "worker-ca" };

impl Names {
    fn of(&self, unusable: &Unusable) -> &'static str {
        match unusable.what() {
            What::Certificate => self.certificate,
            What::Key => self.key,
            What::Authorities => self.authorities,
        }
    }
}

impl Files {
    /// Files of the public port: certificate, key, and the authorities of callers.
    ///
    /// # Errors
    /// Where some are missing beside those that are named.
    pub fn public(files: [Option<PathBuf>; 3]) -> Result<Option<ServerFiles>, InvalidConfig> {
        let [certificate, key, authorities] = files;
        ServerFiles::of(certificate, key, authorities).map_err(|incomplete| {
            InvalidConfig::Pair(match incomplete {
                Incomplete::Identity => "tls-cert and tls-key go together",
                Incomplete::Authorities => "tls-client-ca needs tls-cert and tls-key",
            })
        })
    }

    /// Files for workers: the gateway's certificate, its key, and the authorities of workers.
    ///
    /// # Errors
    /// Where some are missing beside those that are named.
    pub fn workers(files: [Option<PathBuf>; 3]) -> Result<Option<ClientFiles>, InvalidConfig> {
        let [certificate, key, authorities] = files;
        if authorities.is_none() && (certificate.is_some() || key.is_some()) {
            return Err(InvalidConfig::Pair("worker-cert and worker-key need worker-ca"));
        }
        let files = ClientFiles::of(authorities, certificate, key)
            .map_err(|_| InvalidConfig::Pair("worker-cert and worker-key go together"))?;
        Ok(Some(files).filter(|files| files.authorities.is_some()))
    }
}

impl Guard {
    /// Reads `files`. Blocks.
    ///
    /// # Errors
    /// Names the setting whose file is of no use.
    pub fn load(files: Files) -> Result<Self, InvalidConfig> {
        let Files { tls, keys, workers, worker_name } = files;
        let tls = tls.map(Server::load).transpose().map_err(|unusable| wrong(&PUBLIC, &unusable))?;
        let keys = keys.map(Keys::load).transpose().map_err(|invalid| value("keys", &invalid))?;
        let workers =
            match workers.map(Client::load).transpose().map_err(|unusable| wrong(&WORKERS, &unusable))? {
                None => Dialer::default(),
                Some(client) => Dialer::secured(Arc::new(client), worker_name.as_deref())
                    .map_err(|invalid| value("worker-name", &invalid))?,
            };
        Ok(Self { tls: tls.map(Arc::new), keys: keys.map(Arc::new), workers })
    }
}

fn wrong(names: &Names, unusable: &Unusable) -> InvalidConfig {
    value(names.of(unusable), unusable)
}

fn value(name: &'static str, why: &impl ToString) -> InvalidConfig {
    InvalidConfig::Value { name, why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tls::testing::{Authority, Files as Pem, Validity};

    use super::*;

    #[track_caller]
    fn refused(files: Files, name: &str) {
        let error = Guard::load(files).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name}: ")), "{error}");
    }

    #[test]
    fn a_file_of_no_use_is_named_by_its_setting() {
        let directory = tempfile::tempdir().unwrap();
        let (authority, pem) = (Authority::named("ours"), Pem(directory.path()));
        let issued = authority.issue(&["a.test"], Validity::Lasting);
        let server = pem.server("a", &issued, Some(&authority));
        let client = pem.client("b", &authority, Some(&issued));
        let good = || Files { tls: Some(server.clone()), workers: Some(client.clone()), ..Files::default() };
        let nowhere = || Path::new("/nonexistent").to_owned();
        Guard::load(good()).unwrap();

        let tls = |tls| Files { tls: Some(tls), ..good() };
        refused(tls(ServerFiles { certificate: nowhere(), ..server.clone() }), "tls-cert");
        refused(tls(ServerFiles { key: server.certificate.clone(), ..server.clone() }), "tls-key");
        refused(tls(ServerFiles { client_authorities: Some(nowhere()), ..server.clone() }), "tls-client-ca");
        let workers = |workers| Files { workers: Some(workers), ..good() };
        refused(workers(ClientFiles { authorities: Some(nowhere()), identity: None }), "worker-ca");
        let identity = Some((nowhere(), server.key.clone()));
        refused(workers(ClientFiles { identity, ..client.clone() }), "worker-cert");
        refused(Files { worker_name: Some("no name".to_owned()), ..good() }, "worker-name");
        refused(Files { keys: Some(nowhere()), ..good() }, "keys");
    }

    #[test]
    fn files_that_go_together_are_wanted_together() {
        let some = || Some(PathBuf::from("x"));
        assert_eq!(Files::public([None, None, None]).unwrap(), None);
        assert!(Files::public([some(), some(), None]).unwrap().is_some());
        Files::public([some(), None, None]).unwrap_err();
        Files::public([None, some(), some()]).unwrap_err();
        Files::public([None, None, some()]).unwrap_err();
        assert_eq!(Files::workers([None, None, None]).unwrap(), None);
        assert!(Files::workers([None, None, some()]).unwrap().is_some());
        assert!(Files::workers([some(), some(), some()]).unwrap().is_some());
        Files::workers([some(), None, some()]).unwrap_err();
        Files::workers([some(), some(), None]).unwrap_err();
    }
}
