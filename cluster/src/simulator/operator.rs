//! People: they promote, roll back, retire, pin, and are sometimes late.

use super::wire::Purpose;
use super::world::{DIGESTS, MODEL, World, name};
use crate::keys::Key;
use crate::name::WorkerId;
use crate::record::{CanaryPlan, Pin, Record, SwapPlan};
use crate::swap::{Asked, Asking, Refused, Standing, request, retire, roll_back};

impl World {
    /// Somebody asks for something.
    pub(super) fn ask(&mut self) {
        match self.random.below(20) {
            0..=9 => self.promote(),
            10..=15 => self.go_back(),
            16..=18 => self.retire(),
            _ => self.pin(),
        }
    }

    fn plan(&mut self) -> SwapPlan {
        let random = &mut self.random;
        SwapPlan {
            min_ready: *random.one_of(&[None, None, Some(1), Some(2)]),
            deadline_ms: *random.one_of(&[3_000, 20_000, 20_000]),
            retire_after_ms: *random.one_of(&[None, Some(0), Some(1_000)]),
            new_space: true,
            canary: random.percent(30).then(|| CanaryPlan {
                hold_ms: 1_000,
                min_calls: 0,
                ..CanaryPlan::of(500)
            }),
            shadow_per_mille: *random.one_of(&[0, 0, 0, 100]),
            shadow_ms: 1_000,
        }
    }

    fn promote(&mut self) {
        let to = DIGESTS[self.random.below(DIGESTS.len())];
        let to = name(to);
        let (plan, swap_id) = (self.plan(), format!("swap-{}", self.next_id()));
        let asked = Asked { swap_id: &swap_id, to: &to, plan: &plan, same_space: true };
        let asking = request(&self.standing(), &asked, self.now);
        self.send(&format!("promotes {to}"), asking);
    }

    fn go_back(&mut self) {
        let is_open = self.etcd.swap(&self.swap_key).is_some_and(|swap| swap.state.is_open());
        if is_open && self.random.percent(80) {
            return;
        }
        let before = self.etcd.alias(&self.alias_key).and_then(|alias| alias.prev.clone());
        let is_ready = |key: &Key| match key {
            Key::Ready { digest, worker, .. } => {
                (Some(digest.as_str()) == before.as_deref()).then(|| worker.clone())
            }
            _ => None,
        };
        let ready: Vec<WorkerId> = self.etcd.keys().filter_map(is_ready).collect();
        let asking = roll_back(&self.standing(), &ready, self.now);
        self.send("rolls back", asking);
    }

    fn retire(&mut self) {
        let asking = retire(&self.standing(), None, self.now);
        self.send("retires", asking);
    }

    fn pin(&mut self) {
        let digest = *self.random.one_of(&DIGESTS);
        let key = Key::Pin { model: name(MODEL), digest: name(digest) };
        self.tell(|| format!("somebody pins {digest}, or takes the pin away"));
        if self.etcd.entry(&key).is_some() {
            self.etcd.delete(&key);
        } else {
            self.etcd.put(key, Record::Pin(Pin { since_unix_ms: 0 }), 0);
        }
    }

    fn standing(&self) -> Standing<'_> {
        let modified = |key| self.etcd.entry(key).map_or(0, |entry| entry.revision.modified);
        Standing {
            model: name(MODEL),
            alias: self.etcd.alias(&self.alias_key),
            alias_modified: modified(&self.alias_key),
            swap: self.etcd.swap(&self.swap_key),
            swap_modified: modified(&self.swap_key),
        }
    }

    /// Writes what was asked for, some time later.
    fn send(&mut self, what: &str, asking: Result<Asking, Refused>) {
        match asking {
            Ok(Asking::Write(transaction, _)) => {
                self.tell(|| format!("somebody {what}"));
                self.fly(Purpose::Operator, transaction, false);
            }
            Ok(Asking::UnderWay(_)) => {}
            Err(refused) => self.tell(|| format!("somebody {what}: {refused}")),
        }
    }
}
