//! How two views differ.

use std::collections::{BTreeMap, BTreeSet};

use super::View;
use crate::name::{GatewayId, WorkerId};
use crate::record::{Alias, Gateway, Leader, Nack, Pin, Swap, Worker};

/// A step from one view to a newer one.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A worker that was not there.
    WorkerJoined(Worker),
    /// A worker with another address, another process or another standing than before.
    WorkerChanged(Worker),
    /// A worker has a checkpoint loaded and warm.
    Ready {
        /// The model's name.
        model: String,
        /// The checkpoint.
        digest: String,
        /// Who has it.
        worker: WorkerId,
    },
    /// A worker cannot run a checkpoint.
    Nacked {
        /// The model's name.
        model: String,
        /// The checkpoint.
        digest: String,
        /// Who cannot.
        worker: WorkerId,
        /// Why.
        nack: Nack,
    },
    /// A checkpoint is kept.
    Pinned {
        /// The model's name.
        model: String,
        /// The checkpoint.
        digest: String,
        /// Since when.
        pin: Pin,
    },
    /// A gateway is new, or has seen or needs something else than before.
    GatewayChanged {
        /// Which one.
        id: GatewayId,
        /// What it says.
        gateway: Box<Gateway>,
    },
    /// A model's name is new, or means another checkpoint or epoch.
    AliasMoved {
        /// The model's name.
        model: String,
        /// What it means now.
        alias: Alias,
    },
    /// A model has a first swap or another one, or its swap got further.
    SwapMoved {
        /// The model's name.
        model: String,
        /// Where it stands.
        swap: Box<Swap>,
    },
    /// Another gateway carries swaps out, or none does.
    LeaderChanged(Option<Leader>),
    /// A model's swap is forgotten.
    SwapGone {
        /// The model's name.
        model: String,
    },
    /// A model's name means nothing any more.
    AliasGone {
        /// The model's name.
        model: String,
    },
    /// A checkpoint is no longer kept.
    Unpinned {
        /// The model's name.
        model: String,
        /// The checkpoint.
        digest: String,
    },
    /// A worker no longer says that it cannot run a checkpoint.
    NackGone {
        /// The model's name.
        model: String,
        /// The checkpoint.
        digest: String,
        /// Who said so.
        worker: WorkerId,
    },
    /// A worker no longer has a checkpoint.
    Unready {
        /// The model's name.
        model: String,
        /// The checkpoint.
        digest: String,
        /// Who had it.
        worker: WorkerId,
    },
    /// A gateway is gone.
    GatewayLeft(GatewayId),
    /// A worker is gone.
    WorkerLeft(WorkerId),
}

impl View {
    /// The changes that turn this view into `newer`, but for its [revisions](View::revisions).
    ///
    /// What appears comes before what disappears, and workers come before and go after what refers to them: a
    /// reader that applies the changes one by one never passes through a state emptier than both ends.
    #[must_use]
    pub fn diff(&self, newer: &Self) -> Vec<Change> {
        let mut changes = self.workers_joined(newer);
        changes.extend(self.said_of_checkpoints(newer));
        changes.extend(self.moved(newer));
        changes.extend(self.unsaid_of_checkpoints(newer));
        changes.extend(missing(&self.gateways, &newer.gateways).map(|id| Change::GatewayLeft(id.clone())));
        changes.extend(missing(&self.workers, &newer.workers).map(|id| Change::WorkerLeft(id.clone())));
        changes
    }

    fn workers_joined(&self, newer: &Self) -> Vec<Change> {
        let change = |(id, worker): (&WorkerId, &Worker)| {
            if self.workers.contains_key(id) {
                Change::WorkerChanged(worker.clone())
            } else {
                Change::WorkerJoined(worker.clone())
            }
        };
        new_or_other(&self.workers, &newer.workers).map(change).collect()
    }

    /// What is ready, refused and kept in `newer` and was not here.
    fn said_of_checkpoints(&self, newer: &Self) -> Vec<Change> {
        let (was, is) = (self.readiness(), newer.readiness());
        let ready = is.difference(&was).map(|&(model, digest, worker)| Change::Ready {
            model: model.to_owned(),
            digest: digest.to_owned(),
            worker: worker.clone(),
        });
        let (was, is) = (self.refusals(), newer.refusals());
        let nacked = new_or_other(&was, &is).map(|(&(model, digest, worker), nack)| Change::Nacked {
            model: model.to_owned(),
            digest: digest.to_owned(),
            worker: worker.clone(),
            nack: (*nack).clone(),
        });
        let pinned = new_or_other(&self.pins, &newer.pins).map(|((model, digest), pin)| Change::Pinned {
            model: model.clone(),
            digest: digest.clone(),
            pin: *pin,
        });
        ready.chain(nacked).chain(pinned).collect()
    }

    /// What gateways, names, swaps and the leader are in `newer` and were not here, or no longer are.
    fn moved(&self, newer: &Self) -> Vec<Change> {
        let gateways = new_or_other(&self.gateways, &newer.gateways).map(|(id, gateway)| {
            Change::GatewayChanged { id: id.clone(), gateway: Box::new(gateway.clone()) }
        });
        let aliases = new_or_other(&self.aliases, &newer.aliases)
            .map(|(model, alias)| Change::AliasMoved { model: model.clone(), alias: alias.clone() });
        let swaps = new_or_other(&self.swaps, &newer.swaps)
            .map(|(model, swap)| Change::SwapMoved { model: model.clone(), swap: Box::new(swap.clone()) });
        let leader = (self.leader != newer.leader).then(|| Change::LeaderChanged(newer.leader.clone()));
        let swaps_gone =
            missing(&self.swaps, &newer.swaps).map(|model| Change::SwapGone { model: model.clone() });
        let aliases_gone =
            missing(&self.aliases, &newer.aliases).map(|model| Change::AliasGone { model: model.clone() });
        gateways.chain(aliases).chain(swaps).chain(leader).chain(swaps_gone).chain(aliases_gone).collect()
    }

    /// What was kept, refused and ready here and is not in `newer`.
    fn unsaid_of_checkpoints(&self, newer: &Self) -> Vec<Change> {
        let unpinned = missing(&self.pins, &newer.pins)
            .map(|(model, digest)| Change::Unpinned { model: model.clone(), digest: digest.clone() });
        let (was, is) = (self.refusals(), newer.refusals());
        let nack_gone = missing(&was, &is).map(|&(model, digest, worker)| Change::NackGone {
            model: model.to_owned(),
            digest: digest.to_owned(),
            worker: worker.clone(),
        });
        let (was, is) = (self.readiness(), newer.readiness());
        let unready = was.difference(&is).map(|&(model, digest, worker)| Change::Unready {
            model: model.to_owned(),
            digest: digest.to_owned(),
            worker: worker.clone(),
        });
        unpinned.chain(nack_gone).chain(unready).collect()
    }

    fn readiness(&self) -> BTreeSet<(&str, &str, &WorkerId)> {
        self.ready
            .iter()
            .flat_map(|((model, digest), workers)| {
                workers.iter().map(move |worker| (model.as_str(), digest.as_str(), worker))
            })
            .collect()
    }

    fn refusals(&self) -> BTreeMap<(&str, &str, &WorkerId), &Nack> {
        self.nacks
            .iter()
            .flat_map(|((model, digest), nacks)| {
                nacks.iter().map(move |(worker, nack)| ((model.as_str(), digest.as_str(), worker), nack))
            })
            .collect()
    }
}

/// Entries of `newer` that are not in `older`, or are otherwise there.
fn new_or_other<'a, K: Ord, V: PartialEq>(
    older: &'a BTreeMap<K, V>,
    newer: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    newer.iter().filter(|(key, value)| older.get(*key) != Some(*value))
}

/// Keys of `older` that are not in `newer`.
fn missing<'a, K: Ord, V>(
    older: &'a BTreeMap<K, V>,
    newer: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    older.keys().filter(|key| !newer.contains_key(*key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::{NackReason, SwapPlan};
    use crate::view::tests::{id, view, worker};

    fn ready(worker: &str) -> Change {
        Change::Ready { model: "m".into(), digest: "d".into(), worker: id(worker) }
    }

    fn unready(worker: &str) -> Change {
        Change::Unready { model: "m".into(), digest: "d".into(), worker: id(worker) }
    }

    #[track_caller]
    fn check(old: &View, newer: &View, expected: &[Change]) {
        assert_eq!(old.diff(newer), expected);
    }

    #[test]
    fn equal_views_do_not_differ() {
        check(&View::default(), &View::default(), &[]);
        check(&view(&["a", "b"]), &view(&["a", "b"]), &[]);
    }

    #[test]
    fn what_comes_is_told_before_what_goes() {
        check(
            &view(&["a", "b"]),
            &view(&["b", "c"]),
            &[Change::WorkerJoined(worker("c")), ready("c"), unready("a"), Change::WorkerLeft(id("a"))],
        );
    }

    #[test]
    fn a_worker_that_says_something_else_has_changed() {
        let (old, mut newer) = (view(&["a"]), view(&["a"]));
        let draining = Worker { draining: true, ..worker("a") };
        newer.workers.insert(id("a"), draining.clone());
        check(&old, &newer, &[Change::WorkerChanged(draining)]);
    }

    #[test]
    fn an_alias_moves_appears_and_goes() {
        let (mut old, mut newer) = (View::default(), View::default());
        old.aliases.insert("moved".into(), Alias::of("d", 1));
        old.aliases.insert("gone".into(), Alias::of("d", 1));
        old.aliases.insert("same".into(), Alias::of("d", 1));
        newer.aliases.insert("moved".into(), Alias::of("e", 2));
        newer.aliases.insert("new".into(), Alias::of("e", 1));
        newer.aliases.insert("same".into(), Alias::of("d", 1));
        let moved = |model: &str, alias| Change::AliasMoved { model: model.into(), alias };
        check(
            &old,
            &newer,
            &[
                moved("moved", Alias::of("e", 2)),
                moved("new", Alias::of("e", 1)),
                Change::AliasGone { model: "gone".into() },
            ],
        );
    }

    /// What a reader of changes would do.
    fn apply(view: &mut View, change: Change) {
        match change {
            Change::WorkerJoined(worker) | Change::WorkerChanged(worker) => {
                view.workers.insert(worker.id.clone(), worker);
            }
            Change::Ready { model, digest, worker } => {
                view.ready.entry((model, digest)).or_default().insert(worker);
            }
            Change::Nacked { model, digest, worker, nack } => {
                view.nacks.entry((model, digest)).or_default().insert(worker, nack);
            }
            Change::Pinned { model, digest, pin } => drop(view.pins.insert((model, digest), pin)),
            Change::GatewayChanged { id, gateway } => drop(view.gateways.insert(id, *gateway)),
            Change::AliasMoved { model, alias } => drop(view.aliases.insert(model, alias)),
            Change::SwapMoved { model, swap } => drop(view.swaps.insert(model, *swap)),
            Change::LeaderChanged(leader) => view.leader = leader,
            Change::SwapGone { model } => drop(view.swaps.remove(&model)),
            Change::AliasGone { model } => drop(view.aliases.remove(&model)),
            Change::Unpinned { model, digest } => drop(view.pins.remove(&(model, digest))),
            Change::NackGone { model, digest, worker } => {
                let nacks = view.nacks.get_mut(&(model, digest)).unwrap();
                nacks.remove(&worker);
                view.nacks.retain(|_, nacks| !nacks.is_empty());
            }
            Change::Unready { model, digest, worker } => {
                let workers = view.ready.get_mut(&(model, digest)).unwrap();
                workers.remove(&worker);
                view.ready.retain(|_, workers| !workers.is_empty());
            }
            Change::GatewayLeft(id) => drop(view.gateways.remove(&id)),
            Change::WorkerLeft(id) => drop(view.workers.remove(&id)),
        }
    }

    /// Workers with `m` at `d` and `e`, ready with it or refusing it, and what `m` to `o` mean.
    fn any_fleet() -> impl Strategy<Value = View> {
        let workers = proptest::collection::btree_map("[a-e]", any::<(bool, bool, bool)>(), 0..5);
        let aliases = proptest::collection::btree_map("[m-o]", ("[d-f]", 1..3_u64), 0..3);
        (workers, aliases).prop_map(|(workers, aliases)| {
            let mut view = View::default();
            for (text, (draining, with_d, with_e)) in workers {
                view.workers.insert(id(&text), Worker { draining, ..worker(&text) });
                for (digest, has) in [("d", with_d), ("e", with_e)] {
                    let checkpoint = ("m".to_owned(), digest.to_owned());
                    if has {
                        view.ready.entry(checkpoint).or_default().insert(id(&text));
                    } else {
                        let nack = nack(if draining { NackReason::Disk } else { NackReason::Store });
                        view.nacks.entry(checkpoint).or_default().insert(id(&text), nack);
                    }
                }
            }
            view.aliases =
                aliases.into_iter().map(|(m, (digest, epoch))| (m, Alias::of(digest, epoch))).collect();
            view
        })
    }

    fn nack(reason: NackReason) -> Nack {
        Nack { reason, detail: String::new(), swap_id: None, boot_id: "b".into(), made_room: false }
    }

    fn any_view() -> impl Strategy<Value = View> {
        let swaps = proptest::collection::btree_map("[m-o]", "[s-u]", 0..3);
        let pins = proptest::collection::btree_map(("[m-o]", "[d-f]"), 0..3_u64, 0..3);
        let gateways = proptest::collection::btree_map("[g-i]", 0..3_u64, 0..3);
        let leader = proptest::option::of("[g-i]");
        (any_fleet(), swaps, pins, gateways, leader).prop_map(|(fleet, swaps, pins, gateways, leader)| {
            let gateway = |text: String| GatewayId::parse(text).unwrap();
            let swap = |id| Swap::requested(id, (None, "d".into()), SwapPlan::default(), 0);
            let seen = |epoch| BTreeMap::from([("m".to_owned(), epoch)]);
            View {
                swaps: swaps.into_iter().map(|(m, id)| (m, swap(id))).collect(),
                pins: pins.into_iter().map(|(key, since_unix_ms)| (key, Pin { since_unix_ms })).collect(),
                gateways: gateways
                    .into_iter()
                    .map(|(id, epoch)| (gateway(id), Gateway { epochs: seen(epoch), ..Gateway::default() }))
                    .collect(),
                leader: leader.map(|text| Leader { gateway: gateway(text), address: String::new() }),
                ..fleet
            }
        })
    }

    proptest! {
        #[test]
        fn the_changes_lead_from_the_old_view_to_the_newer(old in any_view(), newer in any_view()) {
            let fewest = old.workers.len().min(newer.workers.len());
            let mut reached = old.clone();
            for change in old.diff(&newer) {
                apply(&mut reached, change);
                prop_assert!(reached.workers.len() >= fewest, "passed through an emptier view");
            }
            prop_assert_eq!(reached, newer);
        }
    }
}
