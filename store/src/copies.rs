//! Copies of objects on a local disk, for all processes that share it.
//!
//! ```text
//! objects/<key>/<sha256>         an object's bytes; its key is that of its URL and of what the store says of it
//! objects/<key>/<bytes>.part     what has come so far of one that is to have so many bytes
//! locks/<key>                    exclusive for whoever uses it
//! ```
//!
//! Whoever asks for a copy has a link of its own, which stays when the copy makes room for others.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures::TryStreamExt as _;
use manifest::{hex, is_digest};
use sha2::{Digest as _, Sha256};

use crate::Error;
use crate::cache::blocking;
use crate::error::{At as _, ObjectError};
use crate::lock::Lock;
use crate::objects::{Object, Source};

/// Where copies are kept. A handle: clones are the same, and so are those of other processes.
#[derive(Clone, Debug)]
pub struct Copies {
    dir: Arc<Path>,
    bound: u64,
}

/// The directory of a copy.
struct Entry {
    key: String,
    bytes: u64,
    used: SystemTime,
}

impl Copies {
    /// Those in `dir`, which is made if it is not there. They are to take `bytes` bytes at most, links aside.
    ///
    /// # Errors
    /// [`Error::Disk`].
    pub fn open(dir: &Path, bytes: u64) -> Result<Self, Error> {
        for part in ["objects", "locks"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).at(&path)?;
        }
        Ok(Self { dir: dir.into(), bound: bytes })
    }

    /// Makes `to` the bytes of `object`, from here or from `source`; answers their SHA-256. What is at `to` goes; it is
    /// there whole or not at all, and read alone: it may be a link to what others read.
    ///
    /// Where it is cut off, by being dropped or with its process, a next one goes on from the bytes that had come. Where
    /// another process is fetching the same object, it waits for that.
    ///
    /// # Errors
    /// [`ObjectError::Changed`] where the store has another object by now; and the others.
    pub async fn copy(&self, source: &Source, object: &Object, to: &Path) -> Result<String, ObjectError> {
        let key = key(object);
        let dir = self.dir.join("objects").join(&key);
        let alone = Lock::exclusive(self.lock_path(&key), || ()).await?;
        alone.touch();
        fs::create_dir_all(&dir).at(&dir)?;
        let found = dir.clone();
        let sha256 = match blocking(move || whole(&found)).await? {
            Some(sha256) => sha256,
            None => self.fetch(source, object, (&key, &dir)).await?,
        };
        let (from, to) = (dir.join(&sha256), to.to_owned());
        blocking(move || link(&from, &to)).await?;
        Ok(sha256)
    }

    /// Fetches `object` into `dir`.
    async fn fetch(
        &self,
        source: &Source,
        object: &Object,
        (key, dir): (&str, &Path),
    ) -> Result<String, ObjectError> {
        {
            // One at a time, or two would take the same room. It is held for a moment.
            let _alone = Lock::exclusive(self.lock_path("room"), || ()).await?;
            let (own, copies, size) = (key.to_owned(), self.clone(), object.size);
            blocking(move || copies.make_room(&own, size)).await?;
        }
        let part = dir.join(format!("{}.part", object.size));
        let fetched = download(source, object, &part).await;
        if matches!(fetched, Err(ObjectError::Changed(_) | ObjectError::Local(_))) {
            // It is of no use any more, or in the way of more than this.
            let _ = fs::remove_dir_all(dir);
        }
        fetched?;
        let dir = dir.to_owned();
        let finish = move || -> Result<String, Error> {
            let (_, sha256) = manifest::hash_file(&part).at(&part)?;
            fs::rename(&part, dir.join(&sha256)).at(&part)?;
            Ok(sha256)
        };
        Ok(blocking(finish).await?)
    }

    /// Makes room for `size` bytes, where what was used longest ago goes first.
    fn make_room(&self, own: &str, size: u64) -> Result<(), Error> {
        let mut busy = BTreeSet::new();
        loop {
            let entries = self.survey(own)?;
            let held: u64 = entries.iter().map(|entry| entry.bytes).sum();
            if held + size <= self.bound {
                return Ok(());
            }
            let oldest = entries.iter().filter(|entry| !busy.contains(&entry.key)).min_by_key(|it| it.used);
            let Some(oldest) = oldest else {
                return Err(Error::Room { wanted: size, bound: self.bound, held });
            };
            match Lock::try_exclusive(self.lock_path(&oldest.key))? {
                Some(lock) => {
                    let path = self.dir.join("objects").join(&oldest.key);
                    tracing::info!(path = %path.display(), "makes room for other objects");
                    fs::remove_dir_all(&path).at(&path)?;
                    lock.remove();
                }
                None => {
                    busy.insert(oldest.key.clone());
                }
            }
        }
    }

    /// What is here beside `own`.
    fn survey(&self, own: &str) -> Result<Vec<Entry>, Error> {
        let objects = self.dir.join("objects");
        let mut found = Vec::new();
        for entry in fs::read_dir(&objects).at(&objects)? {
            let entry = entry.at(&objects)?;
            let key = entry.file_name().to_string_lossy().into_owned();
            if key == own || !is_digest(&key) {
                continue;
            }
            let files = fs::read_dir(entry.path()).into_iter().flatten().flatten();
            let bytes =
                files.map(|file| file.metadata().map_or(0, |meta| meta.len().max(announced(&file.path()))));
            let used = fs::metadata(self.lock_path(&key)).and_then(|meta| meta.modified());
            found.push(Entry { bytes: bytes.sum(), used: used.unwrap_or(SystemTime::UNIX_EPOCH), key });
        }
        Ok(found)
    }

    fn lock_path(&self, key: &str) -> PathBuf {
        self.dir.join("locks").join(key)
    }
}

/// Appends to `part` what it lacks of `object`.
async fn download(source: &Source, object: &Object, part: &Path) -> Result<(), ObjectError> {
    let open = OpenOptions::new().create(true).write(true).truncate(false).open(part);
    let (open, path): (_, Arc<Path>) = (Arc::new(open.at(part)?), part.into());
    let mut at = open.metadata().at(part)?.len().min(object.size);
    let mut pieces = std::pin::pin!(source.read(object, at));
    while let Some(data) = pieces.try_next().await? {
        let bytes = data.len() as u64;
        let (open, path) = (Arc::clone(&open), Arc::clone(&path));
        blocking(move || open.write_all_at(&data, at).at(&path)).await?;
        at += bytes;
    }
    blocking(move || open.set_len(at).at(&path)).await?;
    Ok(())
}

/// The hash of the copy in `dir`, if its bytes are those it was named for.
fn whole(dir: &Path) -> Result<Option<String>, Error> {
    for entry in fs::read_dir(dir).at(dir)? {
        let path = entry.at(dir)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_digest(name))
        else {
            continue;
        };
        if manifest::hash_file(&path).at(&path)?.1 == name {
            return Ok(Some(name.to_owned()));
        }
        tracing::warn!(path = %path.display(), "a copy is damaged, and fetched again");
        fs::remove_file(&path).at(&path)?;
    }
    Ok(None)
}

/// Puts `from` at `to` as well. Whoever looks sees what was there before, or this.
fn link(from: &Path, to: &Path) -> Result<(), Error> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).at(parent)?;
    }
    let mut staged = to.as_os_str().to_owned();
    staged.push(".staged");
    let staged = PathBuf::from(staged);
    let _ = fs::remove_file(&staged); // Of a process that was ended here.
    match fs::hard_link(from, &staged) {
        Ok(()) => {}
        // Another file system, or one without links: then there are two.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::CrossesDevices | io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied
            ) =>
        {
            fs::copy(from, &staged).map(drop).at(&staged)?;
        }
        Err(error) => return Err(error).at(&staged),
    }
    fs::rename(&staged, to).at(to)?;
    // Renaming a file onto itself leaves both names.
    let _ = fs::remove_file(&staged);
    Ok(())
}

/// The bytes that a file will have, by the name it has until then.
fn announced(path: &Path) -> u64 {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_suffix(".part").and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

/// Equal exactly where URLs are, and the store says of both the same.
fn key(object: &Object) -> String {
    let Object { url, size, e_tag, modified, .. } = object;
    // What the store calls the bytes says more than when they came.
    let bytes = e_tag.clone().unwrap_or_else(|| format!("at {modified}"));
    hex(&Sha256::digest(format!("{url}\n{size}\n{bytes}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::{ObjectStore, ObjectStoreExt as _};

    use super::*;

    #[tokio::test]
    async fn objects_of_one_second_and_size_are_told_apart_by_what_the_store_calls_them() {
        let (dir, objects) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()));
        let source = Source::over(Arc::clone(&objects) as Arc<dyn ObjectStore>);
        let copies = Copies::open(&dir.path().join("copies"), 1 << 20).unwrap();
        let put = async |text: &'static str| {
            objects.put(&"a.jsonl".into(), text.into()).await.unwrap();
            source.find("s3://bucket/a.jsonl").unwrap().object().await.unwrap()
        };
        let old = put("old").await;
        let new = Object { modified: old.modified, ..put("new").await };
        assert!(old.e_tag.is_some() && old.size == new.size);
        let changed = copies.copy(&source, &old, &dir.path().join("old")).await.unwrap_err();
        assert!(matches!(changed, ObjectError::Changed(_)), "{changed:?}");
        copies.copy(&source, &new, &dir.path().join("new")).await.unwrap();
        let newer = Object { modified: old.modified, ..put("abc").await };
        copies.copy(&source, &newer, &dir.path().join("newer")).await.unwrap();
        assert_eq!(fs::read(dir.path().join("new")).unwrap(), b"new");
        assert_eq!(fs::read(dir.path().join("newer")).unwrap(), b"abc");
    }
}
