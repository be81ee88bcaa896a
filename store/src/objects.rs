//! Objects that others put: read as they are, and known by what the store says of them.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::address::{self, InvalidUrl, Settings};
use crate::blob::{AT_ONCE, PIECE, cut};
use crate::error::ObjectError;

/// Objects below one prefix that are taken.
const MOST: usize = 10_000;

/// A bucket, or what is below a prefix of one, to be read from. A handle: clones are the same.
#[derive(Clone)]
pub struct Source {
    objects: Arc<dyn ObjectStore>,
    root: Path,
    /// Scheme and bucket, `s3://bucket`.
    bucket: Arc<str>,
}

/// An object, or the objects below a prefix, of a source.
#[derive(Clone, Debug)]
pub struct Place {
    source: Source,
    path: Path,
}

/// An object as the store described it: another one of the same URL is told from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Where it is, without credentials.
    pub url: String,
    /// Bytes of it.
    pub size: u64,
    /// What the store calls these bytes, where it does.
    pub e_tag: Option<String>,
    /// When it was put there, in seconds since 1970.
    pub modified: i64,
    /// Its name in the bucket.
    pub(crate) key: String,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}/{})", self.bucket, self.root)
    }
}

impl Object {
    /// Whether `other` is the same bytes, as far as the store tells.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let same_bytes = match (&self.e_tag, &other.e_tag) {
            (Some(own), Some(other)) => own == other,
            _ => self.modified == other.modified,
        };
        self.size == other.size && same_bytes
    }
}

impl Source {
    /// The objects at `url`, `s3://bucket/prefix` or `gs://bucket/prefix`. Nobody is spoken to yet.
    ///
    /// # Errors
    /// [`InvalidUrl`] says what is wrong with the URL, or which setting it lacks.
    pub fn open(url: &str, settings: &Settings) -> Result<Self, InvalidUrl> {
        let parsed = Url::parse(url).map_err(|source| InvalidUrl::Malformed { url: url.into(), source })?;
        if !matches!(parsed.scheme(), "s3" | "gs") {
            return Err(InvalidUrl::NoBucket(parsed.scheme().to_owned()));
        }
        let (objects, root) = address::open(url, settings)?;
        Ok(Self { objects, root, bucket: bucket(&parsed).into() })
    }

    #[cfg(test)]
    pub(crate) fn over(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, root: Path::default(), bucket: "s3://bucket".into() }
    }

    /// The place that `url` names; none where it is of another bucket, or not below the prefix.
    #[must_use]
    pub fn find(&self, url: &str) -> Option<Place> {
        let parsed = Url::parse(url).ok().filter(|parsed| bucket(parsed) == *self.bucket)?;
        let path = Path::from_url_path(parsed.path()).ok()?;
        path.prefix_matches(&self.root).then(|| Place { source: self.clone(), path })
    }

    /// The bytes of `object` from the byte `from` to its end, in order.
    pub(crate) fn read(
        &self,
        object: &Object,
        from: u64,
    ) -> impl Stream<Item = Result<Bytes, ObjectError>> + Send + use<> {
        let pieces: Vec<_> = cut(from..object.size, PIECE).collect();
        let (source, object) = (self.clone(), Arc::new(object.clone()));
        let fetch = move |range| {
            let (source, object) = (source.clone(), Arc::clone(&object));
            async move { source.piece(&object, range).await }
        };
        stream::iter(pieces).map(fetch).buffered(AT_ONCE)
    }

    async fn piece(&self, object: &Object, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let at = |source| ObjectError::at(&object.url, source);
        let path = Path::parse(&object.key).map_err(|_| ObjectError::Missing(object.url.clone()))?;
        let options = GetOptions {
            range: Some(range.clone().into()),
            if_match: object.e_tag.clone(),
            ..GetOptions::default()
        };
        let found = self.objects.get_opts(&path, options).await.map_err(at)?;
        // Not every server heeds the condition.
        if !object.is(&self.describe(&found.meta)) {
            return Err(ObjectError::Changed(object.url.clone()));
        }
        let bytes = found.bytes().await.map_err(at)?;
        let whole = bytes.len() as u64 == range.end - range.start;
        if whole { Ok(bytes) } else { Err(ObjectError::Changed(object.url.clone())) }
    }

    fn describe(&self, meta: &ObjectMeta) -> Object {
        Object {
            url: self.url(&meta.location),
            size: meta.size,
            e_tag: meta.e_tag.clone(),
            modified: meta.last_modified.timestamp(),
            key: meta.location.to_string(),
        }
    }

    fn url(&self, path: &Path) -> String {
        format!("{}/{path}", self.bucket)
    }
}

impl Place {
    /// Where it is; without credentials.
    #[must_use]
    pub fn url(&self) -> String {
        self.source.url(&self.path)
    }

    /// The last part of its name; empty for a whole bucket.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.filename().unwrap_or_default()
    }

    /// The bucket that it is in.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The object at this place.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn object(&self) -> Result<Object, ObjectError> {
        let meta = self.source.objects.head(&self.path).await;
        Ok(self.source.describe(&meta.map_err(|source| ObjectError::at(&self.url(), source))?))
    }

    /// The objects below this place, at least one, each with its name below it, in the order of names.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn below(&self) -> Result<Vec<(PathBuf, Object)>, ObjectError> {
        let url = self.url();
        let listed = self.source.objects.list(Some(&self.path)).take(MOST + 1).try_collect::<Vec<_>>().await;
        let listed = listed.map_err(|source| ObjectError::at(&url, source))?;
        if listed.len() > MOST {
            return Err(ObjectError::Many { url, most: MOST });
        }
        let named = listed.iter().filter_map(|meta| Some((self.name_of(meta)?, self.source.describe(meta))));
        let mut found: Vec<_> = named.collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        if found.is_empty() { Err(ObjectError::Missing(url)) } else { Ok(found) }
    }

    /// An object's name below this place. No part of a [`Path`] climbs.
    fn name_of(&self, meta: &ObjectMeta) -> Option<PathBuf> {
        let name: PathBuf =
            meta.location.prefix_match(&self.path)?.map(|part| part.as_ref().to_owned()).collect();
        (!name.as_os_str().is_empty()).then_some(name)
    }
}

/// Scheme and bucket.
fn bucket(url: &Url) -> String {
    format!("{}://{}", url.scheme(), url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_reaches_what_is_below_it_and_nothing_else() {
        let settings: Settings = [("AWS_REGION".into(), "nowhere".into())].into_iter().collect();
        let source = Source::open("s3://bucket/a/b", &settings).unwrap();
        for (url, found) in [
            ("s3://bucket/a/b", true),
            ("s3://bucket/a/b/", true),
            ("s3://bucket/a/b/c%20d.jsonl", true),
            ("s3://bucket/a/bc", false),
            ("s3://bucket/a", false),
            ("s3://bucket/a/b/../c", false),
            ("s3://bucket/a/b/%2e%2e/c", false),
            ("s3://other/a/b/c", false),
            ("gs://bucket/a/b/c", false),
            ("/a/b/c", false),
        ] {
            assert_eq!(source.find(url).is_some(), found, "{url}");
        }
        assert_eq!(source.find("s3://bucket/a/b/c%20d.jsonl").unwrap().name(), "c d.jsonl");
        for (refused, part) in [
            ("file:///a", "file:// is no bucket; there are s3:// and gs://"),
            ("https://bucket", "https:// is no bucket"),
            ("s3://key:secret@bucket/a", "credentials are given in the environment"),
            ("bucket", "is no URL"),
        ] {
            let error = Source::open(refused, &settings).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("secret"), "{error}");
        }
    }
}
