//! A key and what is there, taken together.

use super::{Alias, Gateway, Leader, Nack, Pin, Ready, Swap, Unreadable, Version, Worker, decode, encode};
use crate::keys::Key;

/// Where an entry stands in etcd's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revision {
    /// When its key came to be.
    pub(crate) created: i64,
    /// When it was last written.
    pub(crate) modified: i64,
}

/// An entry as etcd has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) revision: Revision,
}

/// What is at a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    Worker(Worker),
    Ready(Ready),
    Nack(Nack),
    Alias(Alias),
    Swap(Box<Swap>),
    Pin(Pin),
    Gateway(Gateway),
    Leader(Leader),
    Version(Box<Version>),
}

impl Record {
    /// What the bytes at `key` say; none where they are not ours to read.
    pub(crate) fn decode(key: &Key, bytes: &[u8]) -> Result<Option<Self>, Unreadable> {
        Ok(Some(match key {
            Key::Worker(id) => Self::Worker(Worker::decode(id.clone(), bytes)?),
            Key::Ready { .. } => Self::Ready(decode(bytes)?),
            Key::Nack { .. } => Self::Nack(decode(bytes)?),
            Key::Alias(_) => Self::Alias(decode(bytes)?),
            Key::Swap(_) => Self::Swap(decode(bytes)?),
            Key::Pin { .. } => Self::Pin(decode(bytes)?),
            Key::Gateway(_) => Self::Gateway(decode(bytes)?),
            Key::Leader => Self::Leader(decode(bytes)?),
            Key::Version { .. } => Self::Version(decode(bytes)?),
            Key::JobOwner(_) => return Ok(None),
        }))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Worker(worker) => worker.encode(),
            Self::Ready(ready) => encode(ready),
            Self::Nack(nack) => encode(nack),
            Self::Alias(alias) => encode(alias),
            Self::Swap(swap) => encode(swap),
            Self::Pin(pin) => encode(pin),
            Self::Gateway(gateway) => encode(gateway),
            Self::Leader(leader) => encode(leader),
            Self::Version(version) => encode(version),
        }
    }
}
