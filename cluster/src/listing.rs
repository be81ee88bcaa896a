//! The cluster's directory in etcd: its folders listed in one transaction, and watched from its revision on.

use etcd_client::{Client, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream};

use crate::directory::Directory;
use crate::error::Error;
use crate::etcd::Etcd;
use crate::keys::Scope;
use crate::mend::Doubts;
use crate::record::{Raw, Revision};
use crate::view::{Skipped, View};

/// Bytes of one answer that are taken: thousands of workers. The default of 4 MiB is hundreds.
const ANSWER_LIMIT: usize = 64 << 20;

/// [`Directory`] over a live etcd.
#[derive(Debug)]
pub struct EtcdDirectory {
    etcd: Etcd,
    scope: Scope,
    /// Of the last list; 0 before the first.
    revision: i64,
    /// Open while it is known to tell everything since some list; it outlives later ones.
    watch: Option<Watch>,
    /// What the last list skipped, so that each bad entry is logged once and not at every list.
    skipped: Vec<Skipped>,
    /// Since when names are overtaken.
    doubts: Doubts,
}

/// A watch, and the line it is on.
#[derive(Debug)]
struct Watch {
    turn: usize,
    stream: WatchStream,
}

impl EtcdDirectory {
    pub(crate) fn new(etcd: Etcd, scope: Scope) -> Self {
        Self { etcd, scope, revision: 0, watch: None, skipped: Vec::new(), doubts: Doubts::default() }
    }

    fn report(&mut self, skipped: Vec<Skipped>) {
        for entry in skipped.iter().filter(|entry| !self.skipped.contains(entry)) {
            let Skipped { key, reason } = entry;
            tracing::warn!(key, reason, "skipped an entry in etcd");
        }
        self.skipped = skipped;
    }

    async fn next_change(&mut self) -> Result<(), Error> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            None => self.watch.insert(open_watch(&self.etcd, self.scope, self.revision + 1).await?),
        };
        loop {
            let message = tokio::select! {
                message = watch.stream.message() => message,
                () = self.etcd.left(watch.turn) => {
                    // A call has found the endpoint dead or its certificates outdated. The probes of a silent
                    // connection take longer to find out; what happened meanwhile is in the next list.
                    self.watch = None;
                    return Ok(());
                }
            };
            let message = message
                .map_err(|error| self.etcd.blame(watch.turn, Error::of("watch the cluster", error)))?;
            let Some(message) = message else {
                return Err(Error::WatchEnded { reason: "etcd closed it".into() });
            };
            if message.canceled() {
                let reason = match message.compact_revision() {
                    0 => message.cancel_reason().to_owned(),
                    compacted => format!("history up to revision {compacted} was compacted"),
                };
                return Err(Error::WatchEnded { reason });
            }
            // What the last list had seen already is no news.
            let revisions = message.events().iter().filter_map(|event| Some(event.kv()?.mod_revision()));
            if revisions.max() > Some(self.revision) {
                return Ok(());
            }
        }
    }
}

impl Directory for EtcdDirectory {
    type Error = Error;

    async fn list(&mut self) -> Result<View, Error> {
        let (revision, entries) = list_folders(&self.etcd, self.scope).await?;
        if revision < self.revision {
            // Another history: wiped, or restored from a snapshot. The watch waits for a revision far ahead.
            tracing::warn!(revision, last = self.revision, "etcd went back in time");
            self.watch = None;
        }
        self.revision = revision;
        let (view, skipped) = View::read(self.etcd.keys(), entries.iter().map(raw));
        self.report(skipped);
        Ok(view)
    }

    async fn mend(&mut self, view: &View) -> Result<(), Error> {
        self.etcd.mend(view, &mut self.doubts).await
    }

    async fn changed(&mut self) -> Result<(), Error> {
        let outcome = self.next_change().await;
        if outcome.is_err() {
            self.watch = None;
        }
        outcome
    }
}

fn raw(entry: &KeyValue) -> Raw<'_> {
    let revision = Revision { created: entry.create_revision(), modified: entry.mod_revision() };
    Raw { key: entry.key(), value: entry.value(), revision }
}

/// All entries of the cluster's folders at one revision.
async fn list_folders(etcd: &Etcd, scope: Scope) -> Result<(i64, Vec<KeyValue>), Error> {
    let folder = |folder| TxnOp::get(folder, Some(GetOptions::new().with_prefix()));
    let gets: Vec<_> = etcd.keys().folders(scope).into_iter().map(folder).collect();
    let list = |client: Client| async move {
        let mut client = client.kv_client().max_decoding_message_size(ANSWER_LIMIT);
        client.txn(Txn::new().and_then(gets)).await
    };
    let answer = etcd.call("list the cluster", list).await?;
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    let entries = answer.op_responses().into_iter().flat_map(|part| match part {
        TxnOpResponse::Get(mut get) => get.take_kvs(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => Vec::new(),
    });
    Ok((revision, entries.collect()))
}

/// One stream that watches each folder from `revision` on.
async fn open_watch(etcd: &Etcd, scope: Scope, revision: i64) -> Result<Watch, Error> {
    // Before the watch: one that comes to be on the next line is opened once more, and no change is overlooked.
    let turn = etcd.turn();
    let options = Some(WatchOptions::new().with_prefix().with_start_revision(revision));
    let mut folders = etcd.keys().folders(scope).into_iter();
    let first = folders.next().unwrap_or_default();
    let open = |client: Client| async move {
        let mut client = client.watch_client().max_decoding_message_size(ANSWER_LIMIT);
        let mut watch = client.watch(first, options.clone()).await?;
        for folder in folders {
            watch.watch(folder, options.clone()).await?;
        }
        Ok(watch)
    };
    let stream = etcd.call("watch the cluster", open).await?;
    Ok(Watch { turn, stream })
}
