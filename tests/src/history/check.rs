//! What must hold of a record, and what is found where it does not.
//!
//! Each rule is a function over the whole record and nothing else. A record without a flaw shows that nobody noticed
//! a swap: every call was answered, by one checkpoint, and no one was ever taken back to an older meaning of a name.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::record::{Answer, Call, Digest, Entry, Left, Note, Record};

/// A rule that does not hold, and where.
#[derive(Clone, Debug, PartialEq)]
pub enum Flaw {
    /// Nobody was answered: such a record shows nothing.
    Nothing,
    /// A call was not answered.
    Failed(Entry),
    /// A call went to another gateway, and nobody had killed the first.
    Fled(Entry),
    /// A vector is missing, or not the one that the checkpoint named by the answer makes of that text.
    Mixed(Entry),
    /// A stream was answered by another checkpoint, or under another epoch, than before.
    Moved(Entry),
    /// The epoch is older than one that was known before the call began: to the caller, by an answer of its own or by
    /// asking for it; at the gateway, by an answer to anybody; or to whoever operates the cluster.
    WentBack(Entry, u64),
    /// Under this epoch the name means another checkpoint.
    Misnamed(Entry, Vec<Digest>),
    /// Under this epoch the same caller was answered by another checkpoint: callers are never split.
    Split(Entry, Digest),
}

/// All flaws of a record; empty for one without.
pub fn flaws(record: &Record) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    if record.entries.iter().all(|entry| entry.result.is_err()) {
        flaws.push(Flaw::Nothing);
    }
    flaws.extend(failed(record));
    flaws.extend(fled(record));
    flaws.extend(mixed(record));
    flaws.extend(moved(record));
    flaws.extend(went_back(record));
    flaws.extend(misnamed(record));
    flaws.extend(split(record));
    flaws
}

/// Entries with their answers, the earliest answered first.
fn answers(record: &Record) -> Vec<(&Entry, &Answer)> {
    let answered = |entry| Some((entry, Entry::answer(entry)?));
    let mut answers: Vec<_> = record.entries.iter().filter_map(answered).collect();
    answers.sort_by_key(|(entry, _)| entry.ended);
    answers
}

fn failed(record: &Record) -> Vec<Flaw> {
    let failed = record.entries.iter().filter(|entry| entry.result.is_err());
    failed.cloned().map(Flaw::Failed).collect()
}

fn fled(record: &Record) -> Vec<Flaw> {
    let killed: HashMap<&str, u64> = record
        .notes
        .iter()
        .filter_map(|note| match note {
            Note::Killed { at, gateway } => Some((gateway.as_str(), *at)),
            Note::Known { .. } | Note::Meaning { .. } => None,
        })
        .collect();
    let was_killed = |left: &Left| killed.get(left.gateway.as_str()).is_some_and(|at| *at <= left.at);
    let fled = record.entries.iter().filter(|entry| !entry.left.iter().all(was_killed));
    fled.cloned().map(Flaw::Fled).collect()
}

fn mixed(record: &Record) -> Vec<Flaw> {
    let whole = |entry: &Entry, answer: &Answer| {
        answer.made_by.len() == entry.texts
            && answer.made_by.iter().all(|maker| maker.as_ref() == Some(&answer.digest))
    };
    let mixed = answers(record).into_iter().filter(|(entry, answer)| !whole(entry, answer));
    mixed.map(|(entry, _)| Flaw::Mixed(entry.clone())).collect()
}

fn moved(record: &Record) -> Vec<Flaw> {
    let mut pins = HashMap::new();
    let moved = answers(record).into_iter().filter(|(entry, answer)| {
        let Call::Item(stream) = entry.call else { return false };
        let pin = (&answer.digest, answer.epoch);
        *pins.entry((&entry.caller, stream)).or_insert(pin) != pin
    });
    moved.map(|(entry, _)| Flaw::Moved(entry.clone())).collect()
}

/// Where an epoch is known.
#[derive(PartialEq, Eq, Hash)]
enum At<'a> {
    Caller(&'a str),
    Gateway(&'a str),
    Everywhere,
}

fn went_back(record: &Record) -> Vec<Flaw> {
    let mut known = Vec::new(); // (since when, model, where, epoch)
    for (entry, answer) in answers(record) {
        known.push((entry.ended, &entry.model, At::Caller(&entry.caller), answer.epoch));
        known.push((entry.ended, &entry.model, At::Gateway(&entry.gateway), answer.epoch));
    }
    for note in &record.notes {
        if let Note::Known { at, gateway, model, epoch } = note {
            known.push((*at, model, gateway.as_deref().map_or(At::Everywhere, At::Gateway), *epoch));
        }
    }
    known.sort_by_key(|(since, ..)| *since);

    let mut calls = answers(record);
    calls.sort_by_key(|(entry, _)| entry.pinned);
    let (mut known, mut newest, mut flaws) = (known.into_iter().peekable(), HashMap::new(), Vec::new());
    for (entry, answer) in calls {
        while let Some((_, model, at, epoch)) = known.next_if(|(since, ..)| *since < entry.pinned) {
            let newest = newest.entry((model, at)).or_insert(0);
            *newest = epoch.max(*newest);
        }
        let places = [At::Caller(&entry.caller), At::Gateway(&entry.gateway), At::Everywhere];
        let floors = places.map(|at| newest.get(&(&entry.model, at)).copied().unwrap_or(0));
        let floor = floors.into_iter().fold(entry.min_epoch, u64::max);
        if answer.epoch < floor {
            flaws.push(Flaw::WentBack(entry.clone(), floor));
        }
    }
    flaws
}

/// Where nobody has noted what a name means under an epoch, the first answer says it.
fn misnamed(record: &Record) -> Vec<Flaw> {
    let mut meanings = HashMap::new();
    for note in &record.notes {
        if let Note::Meaning { model, epoch, digest, canary } = note {
            let meaning = std::iter::once(digest).chain(canary).collect::<HashSet<_>>();
            meanings.insert((model, *epoch), meaning);
        }
    }
    let mut flaws = Vec::new();
    for (entry, answer) in answers(record) {
        let first = || HashSet::from([&answer.digest]);
        let meaning = meanings.entry((&entry.model, answer.epoch)).or_insert_with(first);
        if !meaning.contains(&answer.digest) {
            flaws.push(Flaw::Misnamed(entry.clone(), meaning.iter().copied().cloned().collect()));
        }
    }
    flaws
}

fn split(record: &Record) -> Vec<Flaw> {
    let mut first = HashMap::new();
    let mut flaws = Vec::new();
    for (entry, answer) in answers(record) {
        let key = (&entry.model, answer.epoch, &entry.caller);
        let before = *first.entry(key).or_insert(&answer.digest);
        if before != &answer.digest {
            flaws.push(Flaw::Split(entry.clone(), before.clone()));
        }
    }
    flaws
}

impl Entry {
    fn answer(&self) -> Option<&Answer> {
        self.result.as_ref().ok()
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => write!(f, "nobody was answered"),
            Self::Failed(entry) => write!(f, "not answered: {entry:?}"),
            Self::Fled(entry) => write!(f, "left a gateway that nobody had killed: {entry:?}"),
            Self::Mixed(entry) => write!(f, "not all of the checkpoint it names: {entry:?}"),
            Self::Moved(entry) => write!(f, "another checkpoint in mid stream: {entry:?}"),
            Self::WentBack(entry, floor) => write!(f, "epoch {floor} was known before: {entry:?}"),
            Self::Misnamed(entry, meaning) => write!(f, "the name meant {meaning:?}: {entry:?}"),
            Self::Split(entry, other) => write!(f, "the caller was answered by {other:?}: {entry:?}"),
        }
    }
}

#[cfg(test)]
mod tests;
