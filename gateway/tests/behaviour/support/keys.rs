//! A file of API keys, and callers that have one.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use gateway::guard::Guard;
use gateway::keys::Keys;
use tempfile::TempDir;
use tls::secret::{self, Fingerprint};
use tonic::Request;

/// A key: its name, its secret, and the rest of its entry.
#[derive(Clone)]
pub(crate) struct Key {
    name: &'static str,
    pub(crate) secret: String,
    terms: &'static str,
}

impl Key {
    /// A key of this name, on these terms: lines of TOML.
    pub(crate) fn new(name: &'static str, terms: &'static str) -> Self {
        Self { name, secret: secret::generate(), terms }
    }

    /// A request with this key.
    pub(crate) fn sign<T>(&self, message: T) -> Request<T> {
        signed(message, &format!("Bearer {}", self.secret))
    }

    fn entry(&self) -> String {
        let sha256 = Fingerprint::of(self.secret.as_bytes());
        format!("[[key]]\nid = \"{}\"\nsha256 = \"{sha256}\"\n{}\n", self.name, self.terms)
    }
}

/// A request with this authorization.
pub(crate) fn signed<T>(message: T, authorization: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", authorization.parse().unwrap());
    request
}

/// A file of keys.
pub(crate) struct KeyFile(TempDir);

impl KeyFile {
    pub(crate) fn of(keys: &[&Key]) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(keys);
        file
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("keys.toml")
    }

    pub(crate) fn write(&self, keys: &[&Key]) {
        fs::write(self.path(), keys.iter().map(|key| key.entry()).collect::<String>()).unwrap();
    }

    /// A guard that lets these keys in.
    pub(crate) fn guard(&self) -> Guard {
        Guard { keys: Some(Arc::new(Keys::load(self.path()).unwrap())), ..Guard::default() }
    }
}
