//! One file on its way into the store.

use bytes::{Bytes, BytesMut};
use manifest::hex;
use sha2::{Digest as _, Sha256};

use super::UploadError;
use crate::blob::{self, PartList};
use crate::{Error, Store};

/// A file of which some bytes have come.
#[derive(Debug)]
pub(super) struct Upload {
    sha256: String,
    size: u64,
    part_bytes: u64,
    /// Over all bytes that came.
    hasher: Sha256,
    /// Bytes that came, those in `buffer` included.
    taken: u64,
    /// What is not in the store yet: less than a part.
    buffer: BytesMut,
    /// Hashes of the parts that are in the store.
    parts: Vec<String>,
}

impl Upload {
    /// The upload of a file, which goes on behind the parts that are there already.
    pub(super) async fn resume(store: &Store, sha256: &str, size: u64) -> Result<Self, Error> {
        let mut upload = Self {
            sha256: sha256.into(),
            size,
            part_bytes: store.part_bytes,
            hasher: Sha256::new(),
            taken: 0,
            buffer: BytesMut::new(),
            parts: Vec::new(),
        };
        if upload.is_small() {
            return Ok(upload);
        }
        for (index, part) in store.parts_there(sha256).await? {
            let next = upload.parts.len() as u64;
            let bytes = upload.part_bytes.min(size - upload.taken);
            if index != next || bytes == 0 || !upload.read_back(store, &part, bytes).await? {
                break;
            }
        }
        Ok(upload)
    }

    /// Takes the part called `part` for what came first, if it is what it says.
    async fn read_back(&mut self, store: &Store, part: &str, bytes: u64) -> Result<bool, Error> {
        let path = store.part_path(&self.sha256, self.parts.len() as u64, part);
        if store.head(&path).await?.is_none_or(|meta| meta.size != bytes) {
            return Ok(false);
        }
        let data = blob::whole(store, &path, bytes).await?;
        if hex(&Sha256::digest(&data)) != part {
            return Ok(false);
        }
        self.hasher.update(&data);
        self.taken += bytes;
        self.parts.push(part.into());
        Ok(true)
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn is_whole(&self) -> bool {
        self.taken == self.size
    }

    /// Whether it is one object.
    fn is_small(&self) -> bool {
        self.size <= self.part_bytes
    }

    pub(super) async fn write(
        &mut self,
        store: &Store,
        offset: u64,
        mut data: Bytes,
    ) -> Result<(), UploadError> {
        if offset != self.taken {
            let sha256 = self.sha256.clone();
            return Err(UploadError::Misplaced { sha256, wanted: self.taken, given: offset });
        }
        if data.len() as u64 > self.size - self.taken {
            return Err(UploadError::Overlong { sha256: self.sha256.clone(), size: self.size });
        }
        while !data.is_empty() {
            let room = self.part_bytes - self.buffer.len() as u64;
            let some = data.split_to(usize::try_from(room).unwrap_or(usize::MAX).min(data.len()));
            self.hasher.update(&some);
            self.buffer.extend_from_slice(&some);
            self.taken += some.len() as u64;
            if !self.is_small() && self.buffer.len() as u64 == self.part_bytes {
                self.put_part(store).await?;
            }
        }
        Ok(())
    }

    async fn put_part(&mut self, store: &Store) -> Result<(), Error> {
        let data = self.buffer.split().freeze();
        let part = hex(&Sha256::digest(&data));
        let path = store.part_path(&self.sha256, self.parts.len() as u64, &part);
        store.put(&path, data).await?;
        self.parts.push(part);
        Ok(())
    }

    /// Makes the blob visible, all bytes of which have come.
    pub(super) async fn finish(&mut self, store: &Store) -> Result<(), UploadError> {
        if !self.is_small() && !self.buffer.is_empty() {
            self.put_part(store).await?;
        }
        let found = hex(&self.hasher.finalize_reset());
        if found != self.sha256 {
            self.forget(store).await?;
            return Err(UploadError::Checksum { sha256: self.sha256.clone(), found });
        }
        if self.is_small() {
            store.put(&store.blob_path(&self.sha256), self.buffer.split().freeze()).await?;
            return Ok(());
        }
        let parts = PartList::new(self.size, self.part_bytes, std::mem::take(&mut self.parts));
        // Another upload of the same file, of wrong bytes, may have removed what it took for its own.
        if !store.has_parts(&self.sha256, &parts).await? {
            return Err(Error::Missing(format!("a part of blob {}", self.sha256)).into());
        }
        let path = store.parts_path(&self.sha256);
        let json = serde_json::to_vec(&parts).map_err(|error| Error::format(path.as_ref(), error))?;
        Ok(store.put(&path, json).await?)
    }

    /// Removes the parts: one at least is wrong, and nobody can tell which.
    async fn forget(&self, store: &Store) -> Result<(), Error> {
        for (index, part) in self.parts.iter().enumerate() {
            store.delete(&store.part_path(&self.sha256, index as u64, part)).await?;
        }
        Ok(())
    }
}

impl Store {
    /// Index and hash of the parts of a file that are there, ascending.
    async fn parts_there(&self, sha256: &str) -> Result<Vec<(u64, String)>, Error> {
        let objects = self.list(&format!("parts/{sha256}")).await?;
        let name = |path: &object_store::path::Path| {
            let (index, part) = path.filename()?.split_once('-')?;
            Some((index.parse().ok()?, part.to_owned()))
        };
        let mut parts: Vec<_> = objects.iter().filter_map(|object| name(&object.location)).collect();
        parts.sort();
        Ok(parts)
    }

    /// Whether every part on the list is there, and as long as it should be.
    pub(super) async fn has_parts(&self, sha256: &str, parts: &PartList) -> Result<bool, Error> {
        let objects = self.list(&format!("parts/{sha256}")).await?;
        let there = |index: u64, part: &String| {
            let path = self.part_path(sha256, index, part);
            objects.iter().any(|object| object.location == path && object.size == parts.bytes_of(index))
        };
        Ok(parts.parts.iter().zip(0..).all(|(part, index)| there(index, part)))
    }
}
