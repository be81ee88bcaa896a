//! Workers: they hold what the cluster wants, as far as it fits, and say what is ready.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::etcd::Etcd;
use super::sabotage::Rule;
use super::world::{MODEL, name};
use crate::desired::{Desired, desired};
use crate::keys::Key;
use crate::lease::LeaseId;
use crate::name::WorkerId;
use crate::record::{Nack, NackReason, Ready, Record, Worker};
use crate::view::View;

#[derive(Debug)]
pub(super) struct SimWorker {
    pub(super) id: WorkerId,
    pub(super) is_up: bool,
    /// How many checkpoints fit.
    room: usize,
    boots: u32,
    pub(super) lease: Option<LeaseId>,
    pub(super) view: Arc<View>,
    pub(super) loaded: BTreeSet<String>,
    /// Of what is loaded, what is on its way out: no longer said to be ready.
    withdrawn: BTreeSet<String>,
    loading: Option<Loading>,
}

#[derive(Debug)]
struct Loading {
    digest: String,
    swap_id: Option<String>,
    made_room: bool,
}

impl SimWorker {
    pub(super) fn new(id: WorkerId, room: usize) -> Self {
        Self {
            id,
            is_up: true,
            room,
            boots: 0,
            lease: None,
            view: Arc::default(),
            loaded: BTreeSet::new(),
            withdrawn: BTreeSet::new(),
            loading: None,
        }
    }

    fn boot_id(&self) -> String {
        self.boots.to_string()
    }

    fn record(&self) -> Worker {
        Worker {
            id: self.id.clone(),
            address: String::new(),
            boot_id: self.boot_id(),
            device: String::new(),
            memory: 0,
            draining: false,
            serves: None,
        }
    }

    /// Another process in its place, with nothing loaded. The keys of the one before stay until its lease is over.
    pub(super) fn restart(&mut self) {
        let (id, room, boots) = (self.id.clone(), self.room, self.boots + 1);
        *self = Self { boots, ..Self::new(id, room) };
    }

    fn wishes(&self) -> Option<Desired> {
        desired(&self.view, &self.record()).remove(MODEL)
    }

    /// Takes one step towards what is wanted: withdraws, or begins to load. Answers what it did.
    pub(super) fn step(&mut self) -> Option<String> {
        let wishes = self.wishes()?;
        let holds = |digest: &String| wishes.holds(digest);
        self.withdrawn.retain(|digest| !holds(digest));
        let leaving = self.loaded.iter().find(|digest| !holds(digest) && !self.withdrawn.contains(*digest));
        if let Some(digest) = leaving.cloned() {
            self.withdrawn.insert(digest.clone());
            return Some(format!("withdraws {digest}"));
        }
        if self.loading.is_some() {
            return None;
        }
        let is_in_the_way = |digest: &String| !wishes.load.iter().any(|wish| wish.digest == *digest);
        if wishes.make_room && self.loaded.iter().any(is_in_the_way) {
            return None;
        }
        let wish = wishes.load.into_iter().find(|wish| !self.loaded.contains(&wish.digest))?;
        let said = format!("loads {}", wish.digest);
        self.loading =
            Some(Loading { digest: wish.digest, swap_id: wish.swap_id, made_room: wishes.make_room });
        Some(said)
    }

    /// What is being loaded is there; or it is not, and why is said in etcd.
    pub(super) fn finish_loading(&mut self, is_broken: bool, etcd: &mut Etcd) -> Option<String> {
        let Loading { digest, swap_id, made_room } = self.loading.take()?;
        let reason = match (is_broken, self.loaded.len() < self.room) {
            (true, _) => NackReason::Golden,
            (false, false) => NackReason::Memory,
            (false, true) => {
                let said = format!("has loaded {digest}");
                self.loaded.insert(digest);
                return Some(said);
            }
        };
        let said = format!("cannot load {digest}: {reason}");
        let nack = Nack { reason, detail: String::new(), swap_id, boot_id: self.boot_id(), made_room };
        let key = Key::Nack { model: name(MODEL), digest: name(&digest), worker: self.id.clone() };
        etcd.put(key, Record::Nack(nack), 0);
        Some(said)
    }

    /// Whether what it is registered with is what it has.
    fn says(&self, broken: Option<Rule>) -> BTreeSet<String> {
        let mut said: BTreeSet<String> = self.loaded.difference(&self.withdrawn).cloned().collect();
        if broken == Some(Rule::ReadyIsLoaded) {
            said.extend(self.loading.iter().map(|loading| loading.digest.clone()));
        }
        said
    }

    fn ready_key(&self, digest: &str) -> Key {
        Key::Ready { model: name(MODEL), digest: name(digest), worker: self.id.clone() }
    }

    /// Makes etcd say what it has, under its lease.
    pub(super) fn register(&mut self, etcd: &mut Etcd, broken: Option<Rule>) {
        if self.lease.is_some_and(|lease| !etcd.is_alive(lease)) {
            self.lease = None;
        }
        let lease = *self.lease.get_or_insert_with(|| etcd.grant());
        let record = Record::Worker(self.record());
        let key = Key::Worker(self.id.clone());
        if etcd.entry(&key).is_none_or(|entry| entry.record != record || entry.lease != lease) {
            etcd.put(key, record, lease);
        }
        let says = self.says(broken);
        let own = |key: &&Key| matches!(key, Key::Ready { worker, digest, .. } if *worker == self.id && !says.contains(digest.as_str()));
        let stale: Vec<Key> = etcd.keys().filter(own).cloned().collect();
        for key in stale {
            etcd.delete(&key);
        }
        let ready = Record::Ready(Ready { boot_id: self.boot_id(), load_ms: 0, golden_cosine: None });
        for digest in says {
            let key = self.ready_key(&digest);
            if etcd.entry(&key).is_none_or(|entry| entry.record != ready || entry.lease != lease) {
                etcd.put(key, ready.clone(), lease);
            }
        }
    }

    /// Lets go of what is withdrawn, once etcd does not say any more that it is ready. With that there is room, and what
    /// was refused for want of it is tried again.
    pub(super) fn let_go(&mut self, etcd: &mut Etcd, broken: Option<Rule>) -> Option<String> {
        let is_said = |digest: &&String| etcd.entry(&self.ready_key(digest)).is_some();
        let may_go = |digest: &&String| broken == Some(Rule::WithdrawnFirst) || !is_said(digest);
        let digest = self.withdrawn.iter().find(may_go)?.clone();
        self.withdrawn.remove(&digest);
        self.loaded.remove(&digest);
        let is_mended = |key: &&Key| {
            let of_memory = |entry: &super::etcd::Entry| {
                matches!(&entry.record, Record::Nack(Nack { reason: NackReason::Memory, .. }))
            };
            matches!(key, Key::Nack { worker, .. } if *worker == self.id)
                && etcd.entry(key).is_some_and(of_memory)
        };
        let mended: Vec<Key> = etcd.keys().filter(is_mended).cloned().collect();
        for key in &mended {
            etcd.delete(key);
        }
        Some(format!("lets go of {digest}"))
    }

    pub(super) fn has(&self, digest: &str) -> bool {
        self.is_up && self.loaded.contains(digest)
    }
}
