//! What can go wrong between a checkpoint and the store, by what the caller can do about it.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

use manifest::InvalidManifest;

/// A cause that is for people to read.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// Why the store or the cache did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was never published, or has been collected: publish it.
    #[error("{0} is not in the store")]
    Missing(String),
    /// Bytes are not those that their name stands for: publish it again.
    #[error("{what} is damaged: {found}")]
    Checksum {
        /// The blob.
        what: String,
        /// How it differs.
        found: String,
    },
    /// It is written in a way that is not taken: a path that climbs out, a release that is not known.
    #[error("{what} is not of the form it should have")]
    Format {
        /// A manifest, a list of files, a list of parts.
        what: String,
        /// What is wrong with it.
        source: Cause,
    },
    /// The store does not let this process do it: correct the credentials.
    #[error("the store refuses access to {what}")]
    Denied {
        /// The object.
        what: String,
        /// In the store's words.
        source: Cause,
    },
    /// The store cannot be reached, or failed: try again later.
    #[error("the store failed at {what}")]
    Unreachable {
        /// The object.
        what: String,
        /// In the store's words.
        source: Cause,
    },
    /// The store is being collected: try again in a moment.
    #[error("the store is being collected")]
    Busy,
    /// This machine's disk does not take it, full or broken: make room.
    #[error("{} cannot be written or read here", path.display())]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// In the system's words.
        source: io::Error,
    },
    /// It does not fit into the cache beside what is in use: raise the bound.
    #[error("{wanted} bytes do not fit into a cache of {bound} bytes, of which {held} are in use")]
    Room {
        /// Bytes to be had.
        wanted: u64,
        /// Bytes that the cache may have.
        bound: u64,
        /// Bytes that cannot be let go of now.
        held: u64,
    },
}

impl Error {
    pub(crate) fn format(what: impl Into<String>, source: impl Into<Cause>) -> Self {
        Self::Format { what: what.into(), source: source.into() }
    }

    pub(crate) fn files(source: InvalidManifest) -> Self {
        Self::format("the list of files", source)
    }

    /// What the store said of the object at `path`.
    pub(crate) fn at(path: &object_store::path::Path, source: object_store::Error) -> Self {
        use object_store::Error as Said;
        let what = path.to_string();
        if matches!(source, Said::NotFound { .. }) {
            Self::Missing(what)
        } else if matches!(source, Said::PermissionDenied { .. } | Said::Unauthenticated { .. }) {
            Self::Denied { what, source: source.into() }
        } else {
            Self::Unreachable { what, source: source.into() }
        }
    }
}

/// Why an object that somebody else put somewhere is not here.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Correct the URL, or put it there.
    #[error("{0} is not there")]
    Missing(String),
    /// Look at it again: it is another one by now.
    #[error("{0} has changed")]
    Changed(String),
    /// Name fewer.
    #[error("{url} has more than {most} objects below it")]
    Many {
        /// The prefix.
        url: String,
        /// So many are taken.
        most: usize,
    },
    /// The store does not let this process read it: correct the credentials.
    #[error("the store refuses access to {url}")]
    Denied {
        /// The object or prefix.
        url: String,
        /// In the store's words.
        source: Cause,
    },
    /// The store cannot be reached, or failed: try again later.
    #[error("the store cannot be reached, or failed, at {url}")]
    Unreachable {
        /// The object or prefix.
        url: String,
        /// In the store's words.
        source: Cause,
    },
    /// There is no place for it here.
    #[error(transparent)]
    Local(#[from] Error),
}

impl ObjectError {
    /// What the store said of what is at `url`.
    pub(crate) fn at(url: &str, source: object_store::Error) -> Self {
        use object_store::Error as Said;
        let url = url.to_owned();
        if matches!(source, Said::NotFound { .. }) {
            Self::Missing(url)
        } else if matches!(source, Said::Precondition { .. }) {
            Self::Changed(url)
        } else if matches!(source, Said::PermissionDenied { .. } | Said::Unauthenticated { .. }) {
            Self::Denied { url, source: source.into() }
        } else {
            Self::Unreachable { url, source: source.into() }
        }
    }
}

/// Names the file at fault.
pub(crate) trait At<T> {
    fn at(self, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Disk { path: path.into(), source })
    }
}
