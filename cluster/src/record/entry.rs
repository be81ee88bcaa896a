//! A key and what is there, taken together.

use super::{
    Alias, Gateway, Job, JobCurve, JobOwner, JobProgress, Leader, Nack, Pin, Ready, Seen, Swap, Trainer,
    Unreadable, Version, Worker, decode, encode,
};
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
    Seen(Box<Seen>),
    Leader(Leader),
    Version(Box<Version>),
    Trainer(Trainer),
    Job(Box<Job>),
    JobOwner(JobOwner),
    JobProgress(JobProgress),
    JobCurve(JobCurve),
    /// There is nothing to say but that it is wanted no more.
    JobCancel,
}

impl Record {
    /// What the bytes at `key` say.
    pub(crate) fn decode(key: &Key, bytes: &[u8]) -> Result<Self, Unreadable> {
        Ok(match key {
            Key::Worker(id) => Self::Worker(Worker::decode(id.clone(), bytes)?),
            Key::Ready { .. } => Self::Ready(decode(bytes)?),
            Key::Nack { .. } => Self::Nack(decode(bytes)?),
            Key::Alias(_) => Self::Alias(decode(bytes)?),
            Key::Swap(_) => Self::Swap(decode(bytes)?),
            Key::Pin { .. } => Self::Pin(decode(bytes)?),
            Key::Gateway(_) => Self::Gateway(decode(bytes)?),
            Key::Seen { .. } => Self::Seen(decode(bytes)?),
            Key::Leader => Self::Leader(decode(bytes)?),
            Key::Version { .. } => Self::Version(decode(bytes)?),
            Key::Trainer(_) => Self::Trainer(decode(bytes)?),
            Key::Job(_) => Self::Job(decode(bytes)?),
            Key::JobOwner(_) => Self::JobOwner(decode(bytes)?),
            Key::JobProgress(_) => Self::JobProgress(decode(bytes)?),
            Key::JobCurve(_) => Self::JobCurve(decode(bytes)?),
            Key::JobCancel(_) => Self::JobCancel,
        })
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
            Self::Seen(seen) => encode(seen),
            Self::Leader(leader) => encode(leader),
            Self::Version(version) => encode(version),
            Self::Trainer(trainer) => encode(trainer),
            Self::Job(job) => encode(job),
            Self::JobOwner(owner) => encode(owner),
            Self::JobProgress(progress) => encode(progress),
            Self::JobCurve(curve) => encode(curve),
            Self::JobCancel => b"{\"v\":1}".to_vec(),
        }
    }
}
