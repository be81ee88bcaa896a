//! What was published: records that are in no view, because they only become more, and some are large.

use etcd_client::{Client, GetOptions, KeyValue};

use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::name::{Name, WorkerId};
use crate::record::{Record, Version};
use crate::transaction::{Fact, Found, Outcome, Transaction, Write};

/// Versions in one answer of etcd: each may be some hundred kilobytes, and an answer some megabytes.
const PAGE: u8 = 16;

/// Bytes of one answer that are taken: a page of the largest versions.
const ANSWER_LIMIT: usize = 64 << 20;

/// A round is lost only to another publisher of the same version.
const ROUNDS: usize = 8;

/// Who publishes on behalf of a fine-tuning job, which may have another owner by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFence {
    /// The job.
    pub job: Name,
    /// When `jobs/<job>/owner` came to be, by etcd's count.
    pub owner_revision: i64,
}

/// What became of a version that was to be put.
#[derive(Clone, Debug, PartialEq)]
pub enum PutVersion {
    /// It was not there and is now.
    New,
    /// It was there; this is what it says now. The store may have become known to have its files.
    Known(Box<Version>),
    /// The job has another owner, and nothing was written.
    NotOwner,
}

/// A version, and what it is a version of.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedVersion {
    /// The model.
    pub model: String,
    /// The checkpoint.
    pub digest: String,
    /// Its record.
    pub version: Version,
}

impl Etcd {
    /// Makes a version known, unless it is. Of one that was known without its files, the files become known; its index
    /// space stays, as vectors may have been made in it.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; [`Error::Unreadable`] where a newer release wrote it; else as every call.
    pub async fn put_version(
        &self,
        model: &str,
        version: &Version,
        fence: Option<&JobFence>,
    ) -> Result<PutVersion, Error> {
        let key =
            Key::Version { model: Name::parse(model)?, digest: Name::parse(version.manifest.digest())? };
        for _ in 0..ROUNDS {
            let (put, modified) = match self.version_at(&key).await? {
                None => (version.clone(), 0),
                Some((known, _)) if known.stored || !version.stored => {
                    return Ok(PutVersion::Known(Box::new(known)));
                }
                Some((known, modified)) => (with_files(known, version), modified),
            };
            let mut when = vec![Fact::Unchanged { key: key.clone(), modified }];
            when.extend(fence.map(JobFence::fact));
            let then = vec![Write::Put(key.clone(), Record::Version(Box::new(put.clone())))];
            match self.transact("put a version", &Transaction { when, then }).await? {
                Outcome::Done(_) if modified == 0 => return Ok(PutVersion::New),
                Outcome::Done(_) => return Ok(PutVersion::Known(Box::new(put))),
                Outcome::Conflict if !self.owns_job(fence).await? => return Ok(PutVersion::NotOwner),
                Outcome::Conflict => {}
            }
        }
        Err(Error::Contended { key: self.keys().format(&key) })
    }

    /// Makes a version of `model` known again, that was known to `worker` when it took it up, as long as it is ready with
    /// it. Answers whether it had been forgotten: by an etcd that went back in time, for what is in use is not
    /// [forgotten](Self::forget_version).
    ///
    /// # Errors
    /// [`Error::InvalidName`]; else as every call.
    pub async fn put_version_back(
        &self,
        model: &str,
        version: &Version,
        worker: &WorkerId,
    ) -> Result<bool, Error> {
        let (model, digest) = (Name::parse(model)?, Name::parse(version.manifest.digest())?);
        let key = Key::Version { model: model.clone(), digest: digest.clone() };
        let ready = Key::Ready { model, digest, worker: worker.clone() };
        let transaction = Transaction {
            when: vec![Fact::absent(key.clone()), Fact::Present(ready)],
            then: vec![Write::Put(key, Record::Version(Box::new(version.clone())))],
        };
        Ok(self.transact("put a version back", &transaction).await? != Outcome::Conflict)
    }

    /// The version of `model` that is `digest`, if it was published.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; [`Error::Unreadable`] where a newer release wrote it; else as every call.
    pub async fn version(&self, model: &str, digest: &str) -> Result<Option<Version>, Error> {
        let key = Key::Version { model: Name::parse(model)?, digest: Name::parse(digest)? };
        Ok(self.version_at(&key).await?.map(|(version, _)| version))
    }

    /// All versions of `model`, or of all models, by model and digest. What cannot be read is left out, with a warning.
    ///
    /// They come in pages, one after the other: a version that is put meanwhile may be among them or not.
    ///
    /// # Errors
    /// [`Error::InvalidName`]; else as every call.
    pub async fn list_versions(&self, model: Option<&str>) -> Result<Vec<ListedVersion>, Error> {
        let model = model.map(Name::parse).transpose()?;
        let prefix = self.keys().versions(model.as_ref());
        // The key behind all that begin with the prefix, which ends with `/`.
        let end = format!("{}0", prefix.trim_end_matches('/'));
        let (mut versions, mut from) = (Vec::new(), prefix);
        loop {
            let page = self.versions_page(&from, &end).await?;
            let full = page.len() == usize::from(PAGE);
            let Some(last) = page.last() else { break };
            // The next key in order.
            from = format!("{}\0", String::from_utf8_lossy(last.key()));
            versions.extend(page.iter().filter_map(|entry| self.listed(entry)));
            if !full {
                break;
            }
        }
        Ok(versions)
    }

    async fn versions_page(&self, from: &str, end: &str) -> Result<Vec<KeyValue>, Error> {
        let options = GetOptions::new().with_range(end).with_limit(PAGE.into());
        let get = |client: Client| async move {
            let mut client = client.kv_client().max_decoding_message_size(ANSWER_LIMIT);
            client.get(from, Some(options)).await
        };
        Ok(self.call("list versions", get).await?.take_kvs())
    }

    fn listed(&self, entry: &KeyValue) -> Option<ListedVersion> {
        let skip = |reason: &dyn std::fmt::Display| {
            let key = String::from_utf8_lossy(entry.key());
            tracing::warn!(%key, %reason, "skipped a version in etcd");
        };
        let key = self.keys().parse(entry.key()).inspect_err(|foreign| skip(foreign)).ok()?;
        let record = Record::decode(&key, entry.value()).inspect_err(|unreadable| skip(unreadable)).ok()?;
        match (key, record) {
            (Key::Version { model, digest }, Record::Version(version)) => {
                Some(ListedVersion { model: model.into(), digest: digest.into(), version: *version })
            }
            (_, _) => None,
        }
    }

    /// A version, and when it was last written.
    async fn version_at(&self, key: &Key) -> Result<Option<(Version, i64)>, Error> {
        match self.read("read a version", [key]).await? {
            [Some(Found { record: Record::Version(version), revision, lease: _ })] => {
                Ok(Some((*version, revision.modified)))
            }
            [Some(_) | None] => Ok(None),
        }
    }

    async fn owns_job(&self, fence: Option<&JobFence>) -> Result<bool, Error> {
        let Some(fence) = fence else { return Ok(true) };
        let still_owner = Transaction { when: vec![fence.fact()], then: Vec::new() };
        Ok(self.transact("read who owns a job", &still_owner).await? != Outcome::Conflict)
    }
}

impl JobFence {
    pub(crate) fn fact(&self) -> Fact {
        Fact::Since { key: Key::JobOwner(self.job.clone()), created: self.owner_revision }
    }
}

/// What is known of a version once the store has its files.
fn with_files(known: Version, published: &Version) -> Version {
    Version { index_space: known.index_space, created_unix_ms: known.created_unix_ms, ..published.clone() }
}
