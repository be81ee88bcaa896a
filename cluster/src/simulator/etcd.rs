//! An etcd in memory: entries, revisions, leases, and transactions that compare.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::keys::Key;
use crate::lease::LeaseId;
use crate::record::{Alias, Record, Revision, Swap};
use crate::transaction::{Fact, Outcome, Transaction, Write};
use crate::view::View;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) revision: Revision,
    pub(super) lease: LeaseId,
}

#[derive(Debug, Default)]
pub(super) struct Etcd {
    entries: BTreeMap<Key, Entry>,
    /// Each with when it is over, in milliseconds: etcd takes its time to notice.
    leases: BTreeMap<LeaseId, u64>,
    granted: LeaseId,
    revision: i64,
    /// Of the present revision, once somebody asked.
    view: Option<Arc<View>>,
}

impl Etcd {
    /// A lease that is over at `until` unless it is renewed.
    pub(super) fn grant(&mut self, until: u64) -> LeaseId {
        self.granted += 1;
        self.leases.insert(self.granted, until);
        self.granted
    }

    /// Has a lease last until `until`; false where there is no such lease.
    pub(super) fn renew(&mut self, lease: LeaseId, until: u64) -> bool {
        self.leases.get_mut(&lease).map(|end| *end = until).is_some()
    }

    pub(super) fn is_alive(&self, lease: LeaseId) -> bool {
        self.leases.contains_key(&lease)
    }

    pub(super) fn leases(&self) -> impl Iterator<Item = LeaseId> {
        self.leases.keys().copied()
    }

    /// Leases that are over by `now`, and that nothing was done about yet.
    pub(super) fn overdue(&self, now: u64) -> impl Iterator<Item = LeaseId> {
        self.leases.iter().filter(move |(_, until)| **until <= now).map(|(lease, _)| *lease)
    }

    /// Ends a lease, and with it all that is under it. Answers what that was.
    pub(super) fn expire(&mut self, lease: LeaseId) -> Vec<Key> {
        if self.leases.remove(&lease).is_none() {
            return Vec::new();
        }
        let under = self.entries.iter().filter(|(_, entry)| entry.lease == lease);
        let gone: Vec<Key> = under.map(|(key, _)| key.clone()).collect();
        for key in &gone {
            self.entries.remove(key);
        }
        if !gone.is_empty() {
            self.changed();
        }
        gone
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter()
    }

    pub(super) fn put(&mut self, key: Key, record: Record, lease: LeaseId) {
        self.changed();
        self.write(key, record, lease);
    }

    pub(super) fn delete(&mut self, key: &Key) {
        if self.entries.remove(key).is_some() {
            self.changed();
        }
    }

    /// What holds of `transaction`, and its writes if all does. None where a lease is gone, which is an error of etcd's.
    pub(super) fn transact(&mut self, transaction: &Transaction) -> Option<Outcome> {
        if !transaction.when.iter().all(|fact| self.holds(fact)) {
            return Some(Outcome::Conflict);
        }
        let is_gone = |write: &Write| matches!(write, Write::PutUnder(lease, ..) if !self.is_alive(*lease));
        if transaction.then.iter().any(is_gone) {
            return None;
        }
        // A transaction that changes nothing has no revision of its own.
        let changes = |write: &Write| !matches!(write, Write::Delete(key) if !self.entries.contains_key(key));
        if transaction.then.iter().any(changes) {
            self.changed();
        }
        for write in &transaction.then {
            match write.clone() {
                Write::Put(key, record) => self.write(key, record, 0),
                Write::PutUnder(lease, key, record) => self.write(key, record, lease),
                Write::Delete(key) => {
                    self.entries.remove(&key);
                }
            }
        }
        Some(Outcome::Done(self.revision))
    }

    pub(super) fn view(&mut self) -> Arc<View> {
        let entries = &self.entries;
        let read = || {
            let all = entries.iter().map(|(key, entry)| (key.clone(), entry.record.clone(), entry.revision));
            Arc::new(View::of(all))
        };
        Arc::clone(self.view.get_or_insert_with(read))
    }

    pub(super) fn alias(&self, key: &Key) -> Option<&Alias> {
        match self.entries.get(key) {
            Some(Entry { record: Record::Alias(alias), .. }) => Some(alias),
            _ => None,
        }
    }

    pub(super) fn swap(&self, key: &Key) -> Option<&Swap> {
        match self.entries.get(key) {
            Some(Entry { record: Record::Swap(swap), .. }) => Some(swap),
            _ => None,
        }
    }

    fn changed(&mut self) {
        self.revision += 1;
        self.view = None;
    }

    fn write(&mut self, key: Key, record: Record, lease: LeaseId) {
        let modified = self.revision;
        let created = self.entries.get(&key).map_or(modified, |entry| entry.revision.created);
        self.entries.insert(key, Entry { record, revision: Revision { created, modified }, lease });
    }

    fn holds(&self, fact: &Fact) -> bool {
        match fact {
            Fact::Unchanged { key, modified } => {
                self.entries.get(key).map_or(0, |entry| entry.revision.modified) == *modified
            }
            Fact::Present(key) => self.entries.contains_key(key),
            Fact::Is { key, record, lease } => {
                self.entries.get(key).is_some_and(|entry| entry.record == *record && entry.lease == *lease)
            }
            Fact::Since { key, created } => {
                self.entries.get(key).map_or(0, |entry| entry.revision.created) == *created
            }
            Fact::NobodyReady { model, digest } => !self.entries.keys().any(
                |key| matches!(key, Key::Ready { model: of, digest: with, .. } if of == model && with == digest),
            ),
            Fact::NoGatewaySince(revision) => !self.entries.iter().any(|(key, entry)| {
                matches!(key, Key::Gateway(_)) && entry.revision.created > *revision
            }),
            Fact::QuietSince { model, revision } => !self.entries.iter().any(|(key, entry)| {
                matches!(key, Key::Seen { model: of, .. } if of == model) && entry.revision.modified > *revision
            }),
        }
    }
}
