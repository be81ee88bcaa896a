//! The record: entries by callers, notes by whoever operates the cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::check::flaws;

/// A checkpoint's digest; cheap to copy, for a record names few of them very often.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Digest(Arc<str>);

impl Digest {
    /// All of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Digest {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Digest {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.to_string()
    }
}

/// What kind of call it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// One request, one answer.
    Embed,
    /// One query with documents.
    Rerank,
    /// A request of a stream, by the stream's number: one checkpoint for all of it.
    Item(u64),
}

/// One answer, or what came in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Who called: each caller waits for its answer before it calls again.
    pub caller: String,
    /// Who answered, or was called last.
    pub gateway: String,
    /// Who was called before that and was lost, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Left>,
    /// The model's name.
    pub model: String,
    /// What kind of call.
    pub call: Call,
    /// When the checkpoint was free to be chosen: when the call was sent to that gateway, or the stream it is part of
    /// was opened there.
    pub pinned: u64,
    /// When the request was sent first.
    pub sent: u64,
    /// When the answer, or the error, was there.
    pub ended: u64,
    /// The oldest epoch that the caller would take; 0 for any.
    pub min_epoch: u64,
    /// Texts that were sent.
    pub texts: usize,
    /// What came.
    pub result: Result<Answer, Failure>,
}

/// What an answer says of itself, and what its vectors say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The checkpoint it names.
    pub digest: Digest,
    /// The epoch it names.
    pub epoch: u64,
    /// For each vector, or score, that came: the checkpoint whose it is; `None` where it is nobody's.
    pub made_by: Vec<Option<Digest>>,
}

/// A gateway that was lost under a call, which went on at another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// When.
    pub at: u64,
    /// Which.
    pub gateway: String,
    /// What the caller saw of it.
    pub failure: Failure,
}

/// A call that was not answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The gRPC code's name.
    pub code: String,
    /// What was said.
    pub message: String,
}

/// What was done to the cluster, or learnt of it from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Note {
    /// From `at` on, whoever asks (one gateway, or any) is answered under this epoch or a later one.
    Known {
        /// When.
        at: u64,
        /// Where; `None` for everywhere.
        gateway: Option<String>,
        /// The model's name.
        model: String,
        /// The epoch.
        epoch: u64,
    },
    /// What a name means under an epoch.
    Meaning {
        /// The model's name.
        model: String,
        /// The epoch.
        epoch: u64,
        /// The checkpoint it means.
        digest: Digest,
        /// The checkpoint that part of the callers are answered by.
        canary: Option<Digest>,
    },
    /// A gateway was killed: a call that had not ended there by then goes on elsewhere.
    Killed {
        /// Shortly before.
        at: u64,
        /// Which.
        gateway: String,
    },
}

/// All that was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// What callers saw; in any order.
    pub entries: Vec<Entry>,
    /// What else is known.
    pub notes: Vec<Note>,
}

/// A line of a record's file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Entry(Entry),
    Note(Note),
}

impl Record {
    /// Writes it as JSON lines.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for entry in &self.entries {
            writeln!(file, "{}", serde_json::to_string(entry)?)?;
        }
        for note in &self.notes {
            writeln!(file, "{}", serde_json::to_string(note)?)?;
        }
        file.flush()
    }

    /// Reads what [`Record::write`] wrote.
    ///
    /// # Errors
    /// As the file system says; also where a line is none of a record's.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut record = Self::default();
        for line in BufReader::new(File::open(path)?).lines() {
            match serde_json::from_str(&line?)? {
                Line::Entry(entry) => record.entries.push(entry),
                Line::Note(note) => record.notes.push(note),
            }
        }
        Ok(record)
    }

    /// Nobody noticed anything; else the record is kept for whoever wants to know.
    #[track_caller]
    pub fn assert_flawless(&self) {
        let flaws = flaws(self);
        if !flaws.is_empty() {
            let file = tempfile::Builder::new().prefix("beige-history-").suffix(".jsonl").tempfile().unwrap();
            let (_, path) = file.keep().unwrap();
            self.write(&path).unwrap();
            let some: Vec<_> = flaws.iter().take(5).map(ToString::to_string).collect();
            let (count, some) = (flaws.len(), some.join("\n"));
            panic!("{count} flaws in the record {}, of them:\n{some}", path.display());
        }
    }

    /// Sums over the calls sent within `window`.
    pub fn summary(&self, window: Range<u64>) -> Summary {
        self.summary_over(&[window])
    }

    /// As [`Record::summary`], of calls sent in any of `windows`.
    pub fn summary_over(&self, windows: &[Range<u64>]) -> Summary {
        let mut summary = Summary::default();
        let mut latencies = Vec::new();
        let is_in = |entry: &&Entry| windows.iter().any(|window| window.contains(&entry.sent));
        for entry in self.entries.iter().filter(is_in) {
            summary.calls += 1;
            match &entry.result {
                Ok(answer) => *summary.digests.entry(answer.digest.clone()).or_default() += 1,
                Err(_) => summary.failed += 1,
            }
            summary.moved += usize::from(!entry.left.is_empty());
            latencies.push(entry.ended - entry.sent);
        }
        latencies.sort_unstable();
        let rank =
            |percent: usize| latencies.get((latencies.len() * percent).div_ceil(100).saturating_sub(1));
        summary.p50_us = rank(50).copied().unwrap_or_default();
        summary.p99_us = rank(99).copied().unwrap_or_default();
        summary
    }
}

/// Sums over calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Calls, and requests of streams.
    pub calls: usize,
    /// Of those, not answered.
    pub failed: usize,
    /// Those that another gateway was asked for, too: the first was lost.
    pub moved: usize,
    /// Answers by checkpoint.
    pub digests: BTreeMap<Digest, usize>,
    /// Half took no longer, microseconds.
    pub p50_us: u64,
    /// One in a hundred took longer, microseconds.
    pub p99_us: u64,
}
