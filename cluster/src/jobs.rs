//! Fine-tuning jobs in etcd: submitted by anybody, run by one trainer at a time.
//!
//! A job's record is written by its owner alone, in transactions that compare that it still is the owner: what a
//! trainer writes that was cut off and replaced changes nothing. That a job is wanted no more is a key of its own, so
//! that nobody's wish is lost under what the owner writes.

use std::collections::BTreeMap;

use etcd_client::{Client, GetOptions};

use crate::clock::unix_ms;
use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::name::{Name, TrainerId};
use crate::record::{Job, JobCurve, JobEvent, JobOwner, JobProgress, JobState, Record};
use crate::transaction::{Fact, Found, Outcome, Transaction, Write};
use crate::versions::JobFence;

/// Bytes of one answer that are taken.
const ANSWER_LIMIT: usize = 64 << 20;

/// A round is lost only to the job's owner, or to one who becomes it.
const ROUNDS: usize = 8;

/// A job and what belongs to it, all at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct ListedJob {
    /// Its name.
    pub name: Name,
    /// What its owner says of it.
    pub job: Job,
    /// How far its ranks are.
    pub progress: Option<JobProgress>,
    /// Who runs it.
    pub owner: Option<TrainerId>,
    /// Whether it is wanted no more.
    pub cancelled: bool,
    /// When the record was last written, by etcd's count.
    modified: i64,
}

impl ListedJob {
    /// A job that nobody runs. It is as no record has it, and cannot be claimed.
    #[must_use]
    pub fn new(name: Name, job: Job) -> Self {
        Self { name, job, progress: None, owner: None, cancelled: false, modified: 0 }
    }
}

/// What became of a job that was submitted.
#[derive(Clone, Debug, PartialEq)]
pub enum Submitted {
    /// It waits for its turn.
    New(Box<ListedJob>),
    /// There is one of this name already.
    Known(Box<ListedJob>),
}

impl Etcd {
    /// Writes a new job down. A name is used once.
    ///
    /// # Errors
    /// As every call.
    pub async fn submit_job(&self, name: &Name, job: &Job) -> Result<Submitted, Error> {
        let key = Key::Job(name.clone());
        let put = Transaction {
            when: vec![Fact::absent(key.clone())],
            then: vec![Write::Put(key, Record::Job(Box::new(job.clone())))],
        };
        let outcome = self.transact("submit a job", &put).await?;
        let found = self.job(name).await?.ok_or_else(|| self.contended_job(name))?;
        Ok(match outcome {
            Outcome::Done(_) => Submitted::New(Box::new(found)),
            Outcome::Conflict => Submitted::Known(Box::new(found)),
        })
    }

    /// All jobs, by name. What cannot be read is left out, with a warning.
    ///
    /// # Errors
    /// As every call.
    pub async fn jobs(&self) -> Result<Vec<ListedJob>, Error> {
        let prefix = self.keys().jobs();
        let get = |client: Client| async move {
            let mut client = client.kv_client().max_decoding_message_size(ANSWER_LIMIT);
            client.get(prefix, Some(GetOptions::new().with_prefix())).await
        };
        let answer = self.call("list jobs", get).await?;
        let mut found: BTreeMap<Name, Vec<(Key, Record, i64)>> = BTreeMap::new();
        for entry in answer.kvs() {
            let Ok(key) = self.keys().parse(entry.key()) else { continue };
            let (Key::Job(name) | Key::JobOwner(name) | Key::JobProgress(name) | Key::JobCancel(name)) = &key
            else {
                continue;
            };
            let name = name.clone();
            match Record::decode(&key, entry.value()) {
                Ok(record) => found.entry(name).or_default().push((key, record, entry.mod_revision())),
                Err(reason) => {
                    tracing::warn!(job = %name, %reason, "skipped an entry of a job in etcd");
                }
            }
        }
        Ok(found.into_iter().filter_map(|(name, entries)| assemble(name, entries)).collect())
    }

    /// One job, if there is one of this name.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where a newer release wrote it; else as every call.
    pub async fn job(&self, name: &Name) -> Result<Option<ListedJob>, Error> {
        let of = |key: fn(Name) -> Key| key(name.clone());
        let keys = [of(Key::Job), of(Key::JobOwner), of(Key::JobProgress), of(Key::JobCancel)];
        let [job, owner, progress, cancel] = &keys;
        let found = self.read("read a job", [job, owner, progress, cancel]).await?;
        let entries = keys.into_iter().zip(found).filter_map(|(key, found)| {
            let found = found?;
            Some((key, found.record, found.revision.modified))
        });
        Ok(assemble(name.clone(), entries.collect()))
    }

    /// How a job went; nothing where it has not begun.
    ///
    /// # Errors
    /// [`Error::Unreadable`] where a newer release wrote it; else as every call.
    pub async fn job_curve(&self, name: &Name) -> Result<JobCurve, Error> {
        let [found] = self.read("read a job's curve", [&Key::JobCurve(name.clone())]).await?;
        let Some(Found { record: Record::JobCurve(curve), .. }) = found else {
            return Ok(JobCurve::default());
        };
        Ok(curve)
    }

    /// Says that a job is wanted no more; answers it as it is then, if there is one. One that nobody runs has ended by
    /// then; of any other its owner ends it. One that has ended stays as it is.
    ///
    /// # Errors
    /// [`Error::Contended`]; else as every call.
    pub async fn cancel_job(&self, name: &Name) -> Result<Option<ListedJob>, Error> {
        for _ in 0..ROUNDS {
            let Some(found) = self.job(name).await? else { return Ok(None) };
            if found.job.state.is_final() || found.cancelled {
                return Ok(Some(found));
            }
            let (key, owner) = (Key::Job(name.clone()), Key::JobOwner(name.clone()));
            let mut when = vec![Fact::Unchanged { key: key.clone(), modified: found.modified }];
            let then = if found.owner.is_none() {
                when.push(Fact::absent(owner));
                vec![Write::Put(key, Record::Job(Box::new(cancelled(found.job))))]
            } else {
                when.push(Fact::Present(owner));
                vec![Write::Put(Key::JobCancel(name.clone()), Record::JobCancel)]
            };
            if let Outcome::Done(_) = self.transact("cancel a job", &Transaction { when, then }).await? {
                return self.job(name).await;
            }
        }
        Err(self.contended_job(name))
    }

    /// Removes a job that has ended, and all that belongs to it. Answers it as it was: gone where its state is final, and
    /// otherwise still there.
    ///
    /// # Errors
    /// [`Error::Contended`]; else as every call.
    pub async fn delete_job(&self, name: &Name) -> Result<Option<ListedJob>, Error> {
        for _ in 0..ROUNDS {
            let Some(found) = self.job(name).await? else { return Ok(None) };
            if !found.job.state.is_final() {
                return Ok(Some(found));
            }
            let of = |key: fn(Name) -> Key| key(name.clone());
            let when = vec![
                Fact::Unchanged { key: of(Key::Job), modified: found.modified },
                Fact::absent(of(Key::JobOwner)),
            ];
            let then =
                [Key::Job, Key::JobProgress, Key::JobCancel, Key::JobCurve].map(|key| Write::Delete(of(key)));
            let delete = Transaction { when, then: then.to_vec() };
            if let Outcome::Done(_) = self.transact("delete a job", &delete).await? {
                return Ok(Some(found));
            }
        }
        Err(self.contended_job(name))
    }

    /// Makes `trainer` the owner of a job that nobody runs, under its lease, and the job what `job` says; none where
    /// somebody was faster.
    ///
    /// # Errors
    /// As every call.
    pub async fn claim_job(
        &self,
        found: &ListedJob,
        job: &Job,
        (trainer, lease): (&TrainerId, LeaseId),
    ) -> Result<Option<JobFence>, Error> {
        let (key, owner) = (Key::Job(found.name.clone()), Key::JobOwner(found.name.clone()));
        let when = vec![
            Fact::Unchanged { key: key.clone(), modified: found.modified },
            Fact::absent(owner.clone()),
            Fact::Present(Key::Trainer(trainer.clone())),
        ];
        let record = Record::JobOwner(JobOwner { trainer: trainer.clone() });
        let then =
            vec![Write::PutUnder(lease, owner, record), Write::Put(key, Record::Job(Box::new(job.clone())))];
        Ok(match self.transact("claim a job", &Transaction { when, then }).await? {
            Outcome::Done(owner_revision) => Some(JobFence { job: found.name.clone(), owner_revision }),
            Outcome::Conflict => None,
        })
    }

    /// Writes what the owner says of its job. False where it is the owner no more, and nothing was written.
    ///
    /// # Errors
    /// As every call.
    pub async fn write_job(&self, fence: &JobFence, job: &Job) -> Result<bool, Error> {
        let put = Write::Put(Key::Job(fence.job.clone()), Record::Job(Box::new(job.clone())));
        self.write_fenced("write a job", fence, vec![put]).await
    }

    /// The same, and gives the job up: nobody owns it then. It has ended, or another trainer may have it.
    ///
    /// # Errors
    /// As every call.
    pub async fn release_job(&self, fence: &JobFence, job: &Job) -> Result<bool, Error> {
        let name = || fence.job.clone();
        let mut writes = vec![
            Write::Put(Key::Job(name()), Record::Job(Box::new(job.clone()))),
            Write::Delete(Key::JobOwner(name())),
        ];
        if job.state.is_final() {
            writes.push(Write::Delete(Key::JobCancel(name())));
        }
        self.write_fenced("release a job", fence, writes).await
    }

    /// Writes how far a job is, and how it went so far. False where the writer is the owner no more.
    ///
    /// # Errors
    /// As every call.
    pub async fn write_progress(
        &self,
        fence: &JobFence,
        progress: &JobProgress,
        curve: Option<&JobCurve>,
    ) -> Result<bool, Error> {
        let name = || fence.job.clone();
        let mut writes = vec![Write::Put(Key::JobProgress(name()), Record::JobProgress(progress.clone()))];
        writes.extend(curve.map(|curve| Write::Put(Key::JobCurve(name()), Record::JobCurve(curve.clone()))));
        self.write_fenced("write a job's progress", fence, writes).await
    }

    async fn write_fenced(
        &self,
        call: &'static str,
        fence: &JobFence,
        then: Vec<Write>,
    ) -> Result<bool, Error> {
        let outcome = self.transact(call, &Transaction { when: vec![fence.fact()], then }).await?;
        Ok(outcome != Outcome::Conflict)
    }

    fn contended_job(&self, name: &Name) -> Error {
        Error::Contended { key: self.keys().format(&Key::Job(name.clone())) }
    }
}

/// `job`, which nobody runs, as it is once nobody wants it.
fn cancelled(job: Job) -> Job {
    let now = unix_ms();
    let mut events = job.events;
    events.push(JobEvent { at_unix_ms: now, what: "cancelled while nobody ran it".to_owned() });
    Job { state: JobState::Cancelled, ended_unix_ms: now, events, ..job }
}

/// One job of its entries; none where the record itself is not among them.
fn assemble(name: Name, entries: Vec<(Key, Record, i64)>) -> Option<ListedJob> {
    let (mut job, mut progress, mut owner, mut cancelled) = (None, None, None, false);
    for (_, record, modified) in entries {
        if let Record::Job(found) = record {
            job = Some((*found, modified));
        } else if let Record::JobProgress(found) = record {
            progress = Some(found);
        } else if let Record::JobOwner(found) = record {
            owner = Some(found.trainer);
        } else if let Record::JobCancel = record {
            cancelled = true;
        }
    }
    let (job, modified) = job?;
    Some(ListedJob { progress, owner, cancelled, modified, ..ListedJob::new(name, job) })
}
