//! Texts into batches, on a thread of their own: standard input may make readers wait.

use std::thread;

use anyhow::Context as _;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::failure::Failure;
use crate::texts::{Item, Texts};

use super::args::hex;
use super::mark::Mark;

/// A batch is closed when its texts exceed this, so that a call stays far below the server's limit.
const BATCH_BYTES: usize = 512 << 10;

/// Texts of one call.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Place of the first text in the whole input.
    pub(crate) first: u64,
    /// One per text.
    pub(crate) ids: Vec<Option<Value>>,
    pub(crate) texts: Vec<String>,
    /// SHA-256 of all texts of the input up to the end of this batch.
    pub(crate) input_sha256: String,
    /// Bytes of the input up to the end of this batch.
    pub(crate) bytes_read: u64,
}

/// Starts the reader: batches of at most `texts` texts, `depth` of them read ahead. Where a part is `done`,
/// its texts are read past, and are checked to be the same.
pub(crate) fn spawn(
    texts: Texts,
    (batch_texts, depth): (usize, usize),
    done: Option<&Mark>,
) -> Result<mpsc::Receiver<Result<Batch, Failure>>, Failure> {
    let (sender, batches) = mpsc::channel(depth);
    let done = done.map(|mark| (mark.count, mark.input_sha256.clone()));
    let read = move || {
        let mut reader = Reader { texts, batch_texts, sha256: Sha256::new(), next: 0 };
        let skipped = done.map_or(Ok(()), |(count, sha256)| reader.skip(count, &sha256));
        let mut next = skipped.map(|()| reader.batch());
        loop {
            let batch = match next.flatten() {
                Ok(Some(batch)) => Ok(batch),
                Ok(None) => return,
                Err(failure) => Err(failure),
            };
            let failed = batch.is_err();
            // The receiver is gone when the run has failed: nothing is left to read for.
            if sender.blocking_send(batch).is_err() || failed {
                return;
            }
            next = Ok(reader.batch());
        }
    };
    thread::Builder::new().name("texts".to_owned()).spawn(read).context("cannot start a thread")?;
    Ok(batches)
}

struct Reader {
    texts: Texts,
    batch_texts: usize,
    sha256: Sha256,
    /// Place of the next text.
    next: u64,
}

impl Reader {
    /// Reads past the first `count` texts.
    fn skip(&mut self, count: u64, sha256: &str) -> Result<(), Failure> {
        while self.next < count && self.item()?.is_some() {}
        if self.next == count && hex(&self.sha256.clone().finalize()) == sha256 {
            return Ok(());
        }
        let fault = format!("the first {count} texts are not those that the output was begun with");
        Err(Failure::Usage(format!("{fault}; --overwrite begins anew")))
    }

    fn batch(&mut self) -> Result<Option<Batch>, Failure> {
        let first = self.next;
        let (mut ids, mut texts, mut bytes) = (Vec::new(), Vec::new(), 0);
        while texts.len() < self.batch_texts && bytes < BATCH_BYTES {
            let Some(Item { id, text }) = self.item()? else { break };
            bytes += text.len();
            ids.push(id);
            texts.push(text);
        }
        let input_sha256 = hex(&self.sha256.clone().finalize());
        let bytes_read = self.texts.bytes_read();
        Ok((!texts.is_empty()).then_some(Batch { first, ids, texts, input_sha256, bytes_read }))
    }

    fn item(&mut self) -> Result<Option<Item>, Failure> {
        let Some(item) = self.texts.next().transpose()? else { return Ok(None) };
        // The length keeps "ab", "c" apart from "a", "bc".
        self.sha256.update((item.text.len() as u64).to_le_bytes());
        self.sha256.update(&item.text);
        self.next += 1;
        Ok(Some(item))
    }
}
