//! Where a store is: an URL, and what the environment says of the cloud it is in.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::sync::{Arc, Once};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::error::Cause;

/// One request, body and all: a part of the usual size at two megabits per second.
const REQUEST: Duration = Duration::from_secs(120);
/// Until a server has taken the connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a failing request is repeated before it is an error.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often, within that.
const MOST_RETRIES: usize = 6;

/// Credentials and endpoints, named as the clouds' own tools name them: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
/// `AWS_ALLOW_HTTP`, `GOOGLE_APPLICATION_CREDENTIALS`, `GOOGLE_BASE_URL` and so on.
///
/// Made of a whole environment, of which it takes only what begins with `AWS_` or `GOOGLE_`.
#[derive(Clone, Default)]
pub struct Settings(BTreeMap<String, String>);

/// Why there is no store at an URL.
#[derive(Debug, thiserror::Error)]
pub enum InvalidUrl {
    /// It is no URL at all.
    #[error("{url:?} is no URL; a directory is given as file:///path/to/it")]
    Malformed {
        /// What is given.
        url: String,
        /// What is wrong with it.
        source: url::ParseError,
    },
    /// It is the URL of something else.
    #[error("{0}:// is no store; there are file://, s3:// and gs://")]
    Scheme(String),
    /// It is the URL of something else where a bucket is wanted.
    #[error("{0}:// is no bucket; there are s3:// and gs://")]
    NoBucket(String),
    /// It has something in it that may be a secret, and would end up in logs.
    #[error(
        "an URL of a store has no user, no password and no query: credentials are given in the environment"
    )]
    Credentials,
    /// It does not say where.
    #[error("{0:?} does not name a place: file:///directory, s3://bucket/prefix or gs://bucket/prefix")]
    Place(String),
    /// The settings are not enough, or contradict each other.
    #[error("{url} cannot be used")]
    Settings {
        /// The store.
        url: String,
        /// What is missing or wrong.
        source: Cause,
    },
}

impl FromIterator<(OsString, OsString)> for Settings {
    fn from_iter<I: IntoIterator<Item = (OsString, OsString)>>(environment: I) -> Self {
        let text =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        let ours = |(name, _): &(String, String)| name.starts_with("AWS_") || name.starts_with("GOOGLE_");
        Self(environment.into_iter().filter_map(text).filter(ours).collect())
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names only: values are secrets.
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Settings {
    /// The settings of one cloud, in the lower-case form in which its builder knows them.
    fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (String, String)> {
        let of_cloud = self.0.iter().filter(move |(name, _)| name.starts_with(prefix));
        of_cloud.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
    }
}

/// The objects at `url`, and the prefix below which they are.
pub(crate) fn open(url: &str, settings: &Settings) -> Result<(Arc<dyn ObjectStore>, Path), InvalidUrl> {
    let parsed = Url::parse(url).map_err(|source| InvalidUrl::Malformed { url: url.into(), source })?;
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.query().is_some() {
        return Err(InvalidUrl::Credentials);
    }
    let refuse = |source: Cause| InvalidUrl::Settings { url: url.into(), source };
    match parsed.scheme() {
        "file" => folder(&parsed),
        "s3" => Ok((s3(&parsed, settings).map_err(refuse)?, prefix(&parsed)?)),
        "gs" => Ok((gcs(&parsed, settings).map_err(refuse)?, prefix(&parsed)?)),
        other => Err(InvalidUrl::Scheme(other.into())),
    }
}

/// The path of an URL with a bucket.
fn prefix(url: &Url) -> Result<Path, InvalidUrl> {
    let place = || InvalidUrl::Place(url.to_string());
    if url.host_str().is_none_or(str::is_empty) {
        return Err(place());
    }
    Path::from_url_path(url.path()).map_err(|_| place())
}

fn folder(url: &Url) -> Result<(Arc<dyn ObjectStore>, Path), InvalidUrl> {
    let dir = url.to_file_path().map_err(|()| InvalidUrl::Place(url.to_string()))?;
    let refuse = |source: Cause| InvalidUrl::Settings { url: url.to_string(), source };
    fs::create_dir_all(&dir).map_err(|error| refuse(error.into()))?;
    let files = LocalFileSystem::new_with_prefix(dir).map_err(|error| refuse(error.into()))?;
    // What was published outlives a power cut.
    Ok((Arc::new(files.with_fsync(true)), Path::default()))
}

fn s3(url: &Url, settings: &Settings) -> Result<Arc<dyn ObjectStore>, Cause> {
    secure();
    let mut builder = AmazonS3Builder::new().with_client_options(client()).with_retry(retry());
    for (name, value) in settings.with_prefix("AWS_") {
        // The environment has names that concern other programs.
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    Ok(Arc::new(builder.with_url(url.as_str()).build()?))
}

fn gcs(url: &Url, settings: &Settings) -> Result<Arc<dyn ObjectStore>, Cause> {
    secure();
    let mut builder = GoogleCloudStorageBuilder::new().with_client_options(client()).with_retry(retry());
    for (name, value) in settings.with_prefix("GOOGLE_") {
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    Ok(Arc::new(builder.with_url(url.as_str()).build()?))
}

fn client() -> ClientOptions {
    ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT)
}

fn retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: MOST_RETRIES, retry_timeout: PATIENCE }
}

/// The HTTP client takes whichever cryptography the process has chosen, and there is no default.
fn secure() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error says that the process has chosen already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_store_is_refused_by_name() {
        #[track_caller]
        fn check(url: &str, expected: &str) {
            let refused = open(url, &Settings::default()).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
            assert!(!refused.contains("secret"), "{refused}");
        }
        check("", "file:///path");
        check("/var/store", "file:///path");
        check("ftp://host/dir", "ftp://");
        check("https://bucket.s3.amazonaws.com", "https://");
        check("s3://key:secret@bucket", "environment");
        check("s3:bucket", "s3:bucket");
        check("gs://", "gs:");
        check("file://dir", "file://dir");
        check("file:///dir?x=secret", "no query");
    }

    #[test]
    fn clouds_are_opened_without_a_word_to_them() {
        let environment = [
            ("AWS_REGION", "nowhere"),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_PAGER", "less"),
            ("GOOGLE_SKIP_SIGNATURE", "true"),
            ("HOME", "/root"),
        ];
        let settings: Settings =
            environment.map(|(name, value)| (name.into(), value.into())).into_iter().collect();
        assert!(!format!("{settings:?}").contains("secret"), "{settings:?}");
        assert!(!format!("{settings:?}").contains("HOME"), "{settings:?}");
        for (url, expected) in [("s3://bucket/a/b", "a/b"), ("gs://bucket", ""), ("gs://bucket/a/", "a")] {
            let (_, prefix) = open(url, &settings).unwrap();
            assert_eq!(prefix.as_ref(), expected, "{url}");
        }
    }
}
