//! An etcd in memory: entries, revisions, leases, and transactions that compare.

use std::collections::{BTreeMap, BTreeSet};
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
    leases: BTreeSet<LeaseId>,
    granted: LeaseId,
    revision: i64,
    /// Of the present revision, once somebody asked.
    view: Option<Arc<View>>,
}

impl Etcd {
    pub(super) fn grant(&mut self) -> LeaseId {
        self.granted += 1;
        self.leases.insert(self.granted);
        self.granted
    }

    pub(super) fn last_lease(&self) -> LeaseId {
        self.granted
    }

    pub(super) fn is_alive(&self, lease: LeaseId) -> bool {
        self.leases.contains(&lease)
    }

    /// Ends a lease, and with it all that is under it.
    pub(super) fn expire(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease) {
            let before = self.entries.len();
            self.entries.retain(|_, entry| entry.lease != lease);
            if self.entries.len() < before {
                self.changed();
            }
        }
    }

    pub(super) fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.entries.keys()
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
        self.changed();
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
