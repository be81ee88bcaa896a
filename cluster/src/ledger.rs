//! What of an owner's entries is in etcd, as far as the owner knows, and how to make the rest so. Pure; the
//! [registrar](crate::registrar) acts.
//!
//! A write without an answer may be carried out later, after others that were answered. What a worker has taken back by
//! then must not be said again behind its back: others count on what is said. So every write compares, and writes, one
//! entry of the owner's, the *anchor*: of two writes only the later can be the last, and one that comes too late finds
//! the anchor written since.

use std::collections::BTreeMap;

use crate::keys::Key;
use crate::lease::LeaseId;
use crate::record::Record;
use crate::transaction::{Fact, Outcome, Transaction, Write};

/// Entries of one transaction: each takes two comparisons, and etcd takes 128 operations of a kind.
const ENTRIES_PER_TRANSACTION: usize = 60;

/// An owner's entries.
pub(crate) type Entries = BTreeMap<Key, Record>;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Errand {
    /// See when the anchor was last written.
    Look(Key),
    /// Carry this out.
    Write(Transaction),
    /// Nothing: all is as it should be.
    Rest,
}

/// An owner's entries, as wanted and as known.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    anchor: Key,
    /// When the anchor was last written, 0 if it is not there; none where that is not known.
    anchored: Option<i64>,
    wanted: Entries,
    /// Entries that may be in etcd because of us, and what they say where that is known.
    there: BTreeMap<Key, Option<Record>>,
    /// The lease that they are under.
    lease: LeaseId,
    /// What is being written.
    sent: Vec<Write>,
}

impl Ledger {
    /// Nothing is known yet. `anchor` is one of the entries, and always will be.
    pub(crate) fn new(anchor: Key, wanted: Entries) -> Self {
        Self { anchor, anchored: None, wanted, there: BTreeMap::new(), lease: 0, sent: Vec::new() }
    }

    /// Other entries from now on. Those that stay as they are are not written again: others wait for a time in which
    /// nothing was said.
    pub(crate) fn want(&mut self, wanted: Entries) {
        self.wanted = wanted;
    }

    /// Whether all is written under `lease`, and nothing else, unless somebody else has interfered.
    pub(crate) fn is_settled(&self, lease: LeaseId) -> bool {
        self.lease == lease && self.left().is_empty() && self.says(&self.anchor)
    }

    /// The next errand that brings the entries under `lease`.
    pub(crate) fn next(&mut self, lease: LeaseId) -> Errand {
        let Some(modified) = self.anchored else { return Errand::Look(self.anchor.clone()) };
        if self.lease != lease {
            self.lease = lease;
            self.doubt();
        }
        if self.is_settled(lease) {
            return Errand::Rest;
        }
        let anchor = self.wanted.get_key_value(&self.anchor).map(|entry| self.put(entry));
        let others = self.left().into_iter().take(ENTRIES_PER_TRANSACTION - 1);
        let then: Vec<Write> = anchor.into_iter().chain(others).collect();
        for write in &then {
            if let Write::PutUnder(_, key, _) = write {
                self.there.insert(key.clone(), None);
            }
        }
        self.sent.clone_from(&then);
        let when = vec![Fact::Unchanged { key: self.anchor.clone(), modified }];
        Errand::Write(Transaction { when, then })
    }

    /// Takes in when the anchor was last written.
    pub(crate) fn looked(&mut self, modified: i64) {
        self.anchored = Some(modified);
    }

    /// Takes in what became of a write; none where there was no answer.
    pub(crate) fn wrote(&mut self, outcome: Option<Outcome>) {
        let Some(Outcome::Done(revision)) = outcome else { return self.disturbed() };
        self.anchored = Some(revision);
        for write in std::mem::take(&mut self.sent) {
            match write {
                Write::Put(key, record) | Write::PutUnder(_, key, record) => {
                    self.there.insert(key, Some(record));
                }
                Write::Delete(key) => drop(self.there.remove(&key)),
            }
        }
    }

    /// Somebody has interfered, or may have: everything is to be written again.
    pub(crate) fn disturbed(&mut self) {
        self.anchored = None;
        self.doubt();
    }

    /// Transactions that write nothing, and tell whether all is there under `lease` as it should be.
    pub(crate) fn checks(&self, lease: LeaseId) -> Vec<Transaction> {
        let entries: Vec<_> = self.wanted.iter().collect();
        let is_there = |(key, record): &(&Key, &Record)| Fact::Is {
            key: (*key).clone(),
            record: (*record).clone(),
            lease,
        };
        let parts = entries.chunks(ENTRIES_PER_TRANSACTION);
        parts
            .map(|part| Transaction { when: part.iter().map(is_there).collect(), then: Vec::new() })
            .collect()
    }

    /// What is still to be written, but for the anchor, which is in each transaction.
    fn left(&self) -> Vec<Write> {
        let wanted = self.wanted.iter().filter(|(key, _)| **key != self.anchor && !self.says(key));
        let outdated = self.there.keys().filter(|key| !self.wanted.contains_key(*key));
        let puts = wanted.map(|entry| self.put(entry));
        puts.chain(outdated.map(|key| Write::Delete(key.clone()))).collect()
    }

    fn put(&self, (key, record): (&Key, &Record)) -> Write {
        Write::PutUnder(self.lease, key.clone(), record.clone())
    }

    /// Whether the entry is known to say what is wanted.
    fn says(&self, key: &Key) -> bool {
        self.there.get(key).is_some_and(|said| said.as_ref() == self.wanted.get(key))
    }

    /// What was written may be there, and may say anything.
    fn doubt(&mut self) {
        self.there.values_mut().for_each(|said| *said = None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{GatewayId, Name};
    use crate::record::{Alias, Gateway};

    const LEASE: LeaseId = 7;

    fn anchor() -> (Key, Record) {
        (Key::Gateway(GatewayId::parse("g").unwrap()), Record::Gateway(Gateway::default()))
    }

    /// The anchor, and entries of these names.
    fn entries(names: &[&str]) -> Entries {
        let entry = |name: &&str| (Key::Alias(Name::parse(*name).unwrap()), Record::Alias(Alias::of("d", 1)));
        names.iter().map(entry).chain([anchor()]).collect()
    }

    fn ledger(names: &[&str]) -> Ledger {
        Ledger::new(anchor().0, entries(names))
    }

    /// Does errands until there are none; answers what was written, by the revision of the anchor that was compared.
    fn settle(ledger: &mut Ledger, lease: LeaseId, mut revision: i64) -> Vec<(i64, Vec<Write>)> {
        let mut written = Vec::new();
        loop {
            match ledger.next(lease) {
                Errand::Look(_) => ledger.looked(revision),
                Errand::Rest => return written,
                Errand::Write(Transaction { when, then }) => {
                    assert_eq!(when, [Fact::Unchanged { key: anchor().0, modified: revision }]);
                    written.push((revision, then));
                    revision += 1;
                    ledger.wrote(Some(Outcome::Done(revision)));
                }
            }
        }
    }

    #[track_caller]
    fn writes(written: &[(i64, Vec<Write>)], puts: &[&str], deletes: &[&str]) {
        let (mut put, mut removed) = (Vec::new(), Vec::new());
        for write in written.iter().flat_map(|(_, writes)| writes) {
            match write {
                Write::PutUnder(_, Key::Alias(name), _) => put.push(name.as_str()),
                Write::Delete(Key::Alias(name)) => removed.push(name.as_str()),
                Write::PutUnder(..) | Write::Put(..) | Write::Delete(_) => {}
            }
        }
        assert_eq!((put.as_slice(), removed.as_slice()), (puts, deletes));
    }

    #[test]
    fn what_is_wanted_is_written_and_what_no_longer_is_is_removed() {
        let mut ledger = ledger(&["a", "b"]);
        writes(&settle(&mut ledger, LEASE, 1), &["a", "b"], &[]);
        assert!(ledger.is_settled(LEASE));
        ledger.want(entries(&["b", "c"]));
        assert!(!ledger.is_settled(LEASE));
        writes(&settle(&mut ledger, LEASE, 2), &["c"], &["a"]);
        assert!(ledger.is_settled(LEASE));
        writes(&settle(&mut ledger, LEASE, 3), &[], &[]);
    }

    #[test]
    fn an_entry_that_changes_has_no_other_written_but_the_anchor() {
        let mut ledger = ledger(&["a", "b"]);
        settle(&mut ledger, LEASE, 1);
        let mut other = entries(&["a", "b"]);
        let name = Name::parse("b").unwrap();
        other.insert(Key::Alias(name.clone()), Record::Alias(Alias::of("e", 2)));
        ledger.want(other);
        let written = settle(&mut ledger, LEASE, 2);
        let put = |key, record| Write::PutUnder(LEASE, key, record);
        let changed = put(Key::Alias(name), Record::Alias(Alias::of("e", 2)));
        assert_eq!(written, [(2, vec![put(anchor().0, anchor().1), changed])]);
    }

    #[test]
    fn another_lease_has_everything_written_again() {
        let mut ledger = ledger(&["a"]);
        settle(&mut ledger, LEASE, 1);
        assert!(!ledger.is_settled(LEASE + 1));
        writes(&settle(&mut ledger, LEASE + 1, 2), &["a"], &[]);
    }

    #[test]
    fn what_may_have_been_written_is_removed_when_it_is_no_longer_wanted() {
        let mut ledger = ledger(&["a"]);
        ledger.looked(5);
        assert!(matches!(ledger.next(LEASE), Errand::Write(_)));
        ledger.wrote(None);
        ledger.want(entries(&["b"]));
        assert_eq!(ledger.next(LEASE), Errand::Look(anchor().0), "it may have been carried out");
        writes(&settle(&mut ledger, LEASE, 6), &["b"], &["a"]);
    }

    #[test]
    fn many_entries_take_several_transactions_each_on_top_of_the_one_before() {
        let names: Vec<String> = (100..250).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut ledger = ledger(&names);
        let written = settle(&mut ledger, LEASE, 1);
        assert_eq!(written.len(), 3);
        assert!(written.iter().all(|(_, writes)| writes.len() <= ENTRIES_PER_TRANSACTION));
        writes(&written, &names, &[]);
        assert_eq!(ledger.checks(LEASE).len(), 3);
        ledger.want(entries(&[]));
        writes(&settle(&mut ledger, LEASE, 4), &[], &names);
        assert!(ledger.is_settled(LEASE));
    }

    #[test]
    fn a_conflict_has_it_look_again() {
        let mut ledger = ledger(&["a"]);
        settle(&mut ledger, LEASE, 1);
        ledger.want(entries(&["b"]));
        assert!(matches!(ledger.next(LEASE), Errand::Write(_)));
        ledger.wrote(Some(Outcome::Conflict));
        assert_eq!(ledger.next(LEASE), Errand::Look(anchor().0));
        writes(&settle(&mut ledger, LEASE, 9), &["b"], &["a"]);
    }
}
