//! How the bytes of a file lie in the store, and how they are read.

use std::iter;
use std::ops::Range;
use std::pin::pin;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use manifest::{ManifestFile, hex, is_digest};
use object_store::ObjectStoreExt as _;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Error, Store};

/// Bytes of one request.
pub(crate) const PIECE: u64 = 8 << 20;
/// Requests at once: what hides a cloud's latency, and the memory that one reader takes.
pub(crate) const AT_ONCE: usize = 4;
/// The version of the list of parts that this release writes and reads.
const VERSION: u32 = 1;

/// A file as the store has it.
#[derive(Clone, Debug)]
pub(crate) enum Blob {
    /// One object.
    Whole,
    /// One object per part.
    Parts(PartList),
}

/// The list of a file's parts: the file is there exactly where this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PartList {
    /// Bytes of every part but the last.
    pub(crate) part_bytes: u64,
    /// SHA-256 of each part.
    pub(crate) parts: Vec<String>,
    /// Bytes in all.
    pub(crate) size: u64,
    /// Version of this format.
    pub(crate) v: u32,
}

impl PartList {
    pub(crate) fn new(size: u64, part_bytes: u64, parts: Vec<String>) -> Self {
        Self { part_bytes, parts, size, v: VERSION }
    }

    /// Reads a list, which must be that of a file of `size` bytes.
    fn parse(json: &[u8], size: u64) -> Result<Self, String> {
        let parts: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if parts.v != VERSION {
            return Err(format!("it is of version {}, and this release reads version {VERSION}", parts.v));
        }
        if parts.size != size {
            return Err(format!("it is of {} bytes, and not of {size}", parts.size));
        }
        let count = parts.parts.len() as u64;
        if parts.part_bytes == 0 || count != size.div_ceil(parts.part_bytes) {
            return Err(format!("{count} parts of {} bytes are not {size} bytes", parts.part_bytes));
        }
        match parts.parts.iter().find(|part| !is_digest(part)) {
            Some(part) => Err(format!("{part:?} is no hash")),
            None => Ok(parts),
        }
    }

    /// Bytes of the part at `index`.
    pub(crate) fn bytes_of(&self, index: u64) -> u64 {
        self.part_bytes.min(self.size - index * self.part_bytes)
    }
}

impl Store {
    pub(crate) fn blob_path(&self, sha256: &str) -> Path {
        self.path(&format!("blobs/{sha256}"))
    }

    pub(crate) fn parts_path(&self, sha256: &str) -> Path {
        self.path(&format!("blobs/{sha256}.parts"))
    }

    pub(crate) fn part_path(&self, sha256: &str, index: u64, part: &str) -> Path {
        self.path(&format!("parts/{sha256}/{index:06}-{part}"))
    }

    /// The bytes of `file` from the byte `from` to its end, in order, as they lie in the store: whoever reads them all
    /// holds them against the hash.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Checksum`] where there are not as many as there should be; and what befalls a
    /// store.
    pub async fn read(
        &self,
        file: &ManifestFile,
        from: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let blob = self.locate(file).await?.ok_or_else(|| Error::Missing(format!("blob {}", file.sha256)))?;
        let pieces: Vec<_> = match &blob {
            Blob::Whole => {
                let path = self.blob_path(&file.sha256);
                cut(from..file.size, PIECE).map(|range| (path.clone(), range)).collect()
            }
            Blob::Parts(parts) => self.pieces(&file.sha256, parts, from).collect(),
        };
        let store = self.clone();
        let fetch = move |(path, range)| {
            let store = store.clone();
            async move { store.piece(&path, range).await }
        };
        Ok(stream::iter(pieces).map(fetch).buffered(AT_ONCE))
    }

    /// Reads `files` back, and deletes those that are not what they should be: a next publication sends them again, as it
    /// does those that are not there. Answers their hashes. It is for when somebody may have met a damaged one; it takes
    /// as long as reading does.
    ///
    /// # Errors
    /// What befalls a store.
    pub async fn mend(&self, files: &[ManifestFile]) -> Result<Vec<String>, Error> {
        let mut damaged = Vec::new();
        for file in files {
            match self.check(file).await {
                Ok(()) | Err(Error::Missing { .. }) => {}
                Err(Error::Checksum { .. } | Error::Format { .. }) => {
                    self.forget(&file.sha256).await?;
                    damaged.push(file.sha256.clone());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(damaged)
    }

    async fn check(&self, file: &ManifestFile) -> Result<(), Error> {
        let mut hasher = Sha256::new();
        let mut pieces = pin!(self.read(file, 0).await?);
        while let Some(piece) = pieces.try_next().await? {
            hasher.update(&piece);
        }
        match hex(&hasher.finalize()) {
            found if found == file.sha256 => Ok(()),
            found => {
                let what = format!("blob {}", file.sha256);
                Err(Error::Checksum { what, found: format!("it hashes to {found}") })
            }
        }
    }

    /// Deletes a file, what makes it visible first.
    async fn forget(&self, sha256: &str) -> Result<(), Error> {
        self.delete(&self.blob_path(sha256)).await?;
        self.delete(&self.parts_path(sha256)).await?;
        for part in self.list(&format!("parts/{sha256}")).await? {
            self.delete(&part.location).await?;
        }
        Ok(())
    }

    /// How the store has `file`; `None` where it does not.
    pub(crate) async fn locate(&self, file: &ManifestFile) -> Result<Option<Blob>, Error> {
        let path = self.blob_path(&file.sha256);
        if let Some(meta) = self.head(&path).await? {
            let damaged =
                || Error::Checksum { what: path.to_string(), found: format!("it has {} bytes", meta.size) };
            return if meta.size == file.size { Ok(Some(Blob::Whole)) } else { Err(damaged()) };
        }
        let path = self.parts_path(&file.sha256);
        match self.record(&path).await {
            Ok(json) => {
                let parts =
                    PartList::parse(&json, file.size).map_err(|why| Error::format(path.as_ref(), why))?;
                Ok(Some(Blob::Parts(parts)))
            }
            Err(Error::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What is to be read of which object, for the bytes of a file behind `from`.
    fn pieces<'a>(
        &'a self,
        sha256: &'a str,
        parts: &'a PartList,
        from: u64,
    ) -> impl Iterator<Item = (Path, Range<u64>)> + 'a {
        let first = from / parts.part_bytes;
        parts
            .parts
            .iter()
            .enumerate()
            .map(|(i, part)| (i as u64, part))
            .skip_while(move |(i, _)| *i < first)
            .flat_map(move |(index, part)| {
                let start = if index == first { from % parts.part_bytes } else { 0 };
                let path = self.part_path(sha256, index, part);
                cut(start..parts.bytes_of(index), PIECE).map(move |range| (path.clone(), range))
            })
    }

    /// Exactly the bytes in `range` of an object.
    async fn piece(&self, path: &Path, range: Range<u64>) -> Result<Bytes, Error> {
        let wanted = range.end - range.start;
        let short =
            |size: u64| Error::Checksum { what: path.to_string(), found: format!("it has {size} bytes") };
        match self.objects.get_range(path, range.clone()).await {
            Ok(data) if data.len() as u64 == wanted => Ok(data),
            Ok(data) => Err(short(range.start + data.len() as u64)),
            // Stores have different words for a range that is not there.
            Err(source) => match self.head(path).await {
                Ok(Some(meta)) if meta.size < range.end => Err(short(meta.size)),
                _ => Err(Error::at(path, source)),
            },
        }
    }
}

/// Cuts `range` into ranges of at most `most` bytes.
pub(crate) fn cut(range: Range<u64>, most: u64) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    iter::from_fn(move || {
        let start = at;
        at = range.end.min(start + most);
        (start < at).then_some(start..at)
    })
}

/// All of a small object.
pub(crate) async fn whole(store: &Store, path: &Path, size: u64) -> Result<Vec<u8>, Error> {
    let mut data = Vec::new();
    let mut pieces =
        stream::iter(cut(0..size, PIECE)).map(|range| store.piece(path, range)).buffered(AT_ONCE);
    while let Some(piece) = pieces.try_next().await? {
        data.extend_from_slice(&piece);
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(size: u64, part_bytes: u64) -> PartList {
        let count = usize::try_from(size.div_ceil(part_bytes)).unwrap();
        PartList::new(size, part_bytes, vec!["a".repeat(64); count])
    }

    #[test]
    fn a_list_that_is_not_of_the_file_is_refused() {
        #[track_caller]
        fn check(parts: &PartList, expected: &str) {
            let json = serde_json::to_vec(parts).unwrap();
            let refused = PartList::parse(&json, 100).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        let good = parts(100, 30);
        assert_eq!(PartList::parse(&serde_json::to_vec(&good).unwrap(), 100).unwrap(), good);
        check(&PartList { v: 2, ..good.clone() }, "version 2");
        check(&parts(99, 30), "99 bytes");
        check(&PartList { part_bytes: 0, ..good.clone() }, "of 0 bytes");
        check(&PartList { part_bytes: 20, ..good.clone() }, "4 parts");
        check(&PartList { parts: vec!["../../etc".into(); 4], ..good }, "no hash");
        assert!(PartList::parse(b"[]", 100).is_err());
    }

    proptest! {
        #[test]
        fn pieces_are_the_file_from_where_it_is_wanted(size in 1..200u64, part_bytes in 1..60u64, from in 0..200u64) {
            let from = from.min(size);
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&format!("file://{}", dir.path().display()), &crate::Settings::default()).unwrap();
            let parts = parts(size, part_bytes);
            let mut next = from;
            for (path, range) in store.pieces("x", &parts, from) {
                let index: u64 = path.filename().unwrap()[..6].parse().unwrap();
                prop_assert_eq!(index * part_bytes + range.start, next);
                next = index * part_bytes + range.end;
            }
            prop_assert_eq!(next, size);
        }
    }
}
