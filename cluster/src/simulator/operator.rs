//! People: they promote, roll back, retire, pin, and are sometimes late.

use super::wire::{Purpose, Request};
use super::world::{Model, World, name};
use crate::keys::Key;
use crate::name::WorkerId;
use crate::record::{CanaryPlan, Pin, Record, SwapPlan};
use crate::swap::{Asked, Asking, Kinship, Refused, Standing, request, retire, roll_back};

/// Longer than any schedule lasts, in milliseconds.
pub(super) const FOR_EVER: u64 = 1_000_000_000;

impl World {
    /// Somebody asks for something.
    pub(super) fn ask(&mut self) {
        let model = self.any_model();
        match self.random.below(20) {
            0..=9 => self.promote(model),
            10..=15 => self.go_back(model),
            16..=18 => self.retire(model),
            _ => self.pin(model),
        }
    }

    /// The second model may be on trial for ever: nothing of the first one's waits for that.
    fn plan(&mut self, model: usize) -> SwapPlan {
        let random = &mut self.random;
        let hold_ms = if model > 0 && random.percent(30) { FOR_EVER } else { 1_000 };
        SwapPlan {
            min_ready: *random.one_of(&[None, None, Some(1), Some(2)]),
            deadline_ms: *random.one_of(&[3_000, 20_000, 20_000]),
            retire_after_ms: *random.one_of(&[None, Some(0), Some(1_000)]),
            new_space: true,
            canary: random.percent(30).then(|| CanaryPlan {
                hold_ms,
                min_calls: *random.one_of(&[0, 0, 2]),
                ..CanaryPlan::of(500)
            }),
            shadow_per_mille: *random.one_of(&[0, 0, 0, 100]),
            shadow_ms: 1_000,
        }
    }

    fn promote(&mut self, model: usize) {
        let digest = *self.random.one_of(&self.models[model].digests);
        let to = name(digest);
        let (plan, swap_id) = (self.plan(model), format!("swap-{}", self.next_id()));
        let asked = Asked { swap_id: &swap_id, to: &to, plan: &plan, kinship: Kinship::SameSpace };
        let asking = request(&self.standing(model), &asked, self.now);
        self.write_down(&format!("promotes {to}"), asking);
    }

    fn go_back(&mut self, model: usize) {
        let Model { name, alias_key, swap_key, .. } = &self.models[model];
        let is_open = self.etcd.swap(swap_key).is_some_and(|swap| swap.state.is_open());
        if is_open && self.random.percent(80) {
            return;
        }
        let before = self.etcd.alias(alias_key).and_then(|alias| alias.prev.clone());
        let is_ready = |key: &Key| match key {
            Key::Ready { model, digest, worker } => {
                (model == name && Some(digest.as_str()) == before.as_deref()).then(|| worker.clone())
            }
            _ => None,
        };
        let ready: Vec<WorkerId> = self.etcd.keys().filter_map(is_ready).collect();
        let asking = roll_back(&self.standing(model), &ready, self.now);
        self.write_down("rolls back", asking);
    }

    fn retire(&mut self, model: usize) {
        let asking = retire(&self.standing(model), None, self.now);
        self.write_down("retires", asking);
    }

    fn pin(&mut self, model: usize) {
        let digest = *self.random.one_of(&self.models[model].digests);
        let key = Key::Pin { model: self.models[model].name.clone(), digest: name(digest) };
        self.tell(|| format!("somebody pins {digest}, or takes the pin away"));
        if self.etcd.entry(&key).is_some() {
            self.etcd.delete(&key);
        } else {
            self.etcd.put(key, Record::Pin(Pin { since_unix_ms: 0 }), 0);
        }
    }

    fn standing(&self, model: usize) -> Standing<'_> {
        let modified = |key| self.etcd.entry(key).map_or(0, |entry| entry.revision.modified);
        let Model { name, alias_key, swap_key, .. } = &self.models[model];
        Standing {
            model: name.clone(),
            alias: self.etcd.alias(alias_key),
            alias_modified: modified(alias_key),
            swap: self.etcd.swap(swap_key),
            swap_modified: modified(swap_key),
        }
    }

    /// Writes what was asked for, some time later.
    fn write_down(&mut self, what: &str, asking: Result<Asking, Refused>) {
        match asking {
            Ok(Asking::Write(transaction, _)) => {
                self.tell(|| format!("somebody {what}"));
                self.send(Purpose::Operator, Request::Transact(transaction));
            }
            Ok(Asking::UnderWay(_)) => {}
            Err(refused) => self.tell(|| format!("somebody {what}: {refused}")),
        }
    }
}
