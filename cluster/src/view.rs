//! What one part of the cluster knows about the others, and how two such views differ.

use std::collections::{BTreeMap, BTreeSet};

use crate::keys::{Key, Keys};
use crate::name::WorkerId;
use crate::record::{self, Alias, Ready, Unreadable, Worker};

/// The cluster at one revision of etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The workers that are registered.
    pub workers: BTreeMap<WorkerId, Worker>,
    /// Who is ready with which checkpoint, by model and digest. Each set is non-empty, its workers are in
    /// [`View::workers`], and it was the process registered now that said so.
    pub ready: BTreeMap<(String, String), BTreeSet<WorkerId>>,
    /// What each model's name means.
    pub aliases: BTreeMap<String, Alias>,
}

/// A step from one view to a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// A model's name is new, or means another checkpoint or epoch.
    AliasMoved {
        /// The model's name.
        model: String,
        /// What it means now.
        alias: Alias,
    },
    /// A model's name means nothing any more.
    AliasGone {
        /// The model's name.
        model: String,
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
    /// A worker is gone.
    WorkerLeft(WorkerId),
}

impl View {
    /// The changes that turn this view into `newer`.
    ///
    /// What appears comes before what disappears, and workers come before and go after what refers to them: a
    /// reader that applies the changes one by one never passes through a state emptier than both ends.
    #[must_use]
    pub fn diff(&self, newer: &Self) -> Vec<Change> {
        let (was, is) = (self.readiness(), newer.readiness());
        let workers = newer.workers.iter().filter_map(|(id, worker)| match self.workers.get(id) {
            None => Some(Change::WorkerJoined(worker.clone())),
            Some(old) if old != worker => Some(Change::WorkerChanged(worker.clone())),
            Some(_) => None,
        });
        let ready = is.difference(&was).map(|&(model, digest, worker)| Change::Ready {
            model: model.to_owned(),
            digest: digest.to_owned(),
            worker: worker.clone(),
        });
        let moved = newer
            .aliases
            .iter()
            .filter(|(model, alias)| self.aliases.get(*model) != Some(alias))
            .map(|(model, alias)| Change::AliasMoved { model: model.clone(), alias: alias.clone() });
        let gone = self
            .aliases
            .keys()
            .filter(|model| !newer.aliases.contains_key(*model))
            .map(|model| Change::AliasGone { model: model.clone() });
        let unready = was.difference(&is).map(|&(model, digest, worker)| Change::Unready {
            model: model.to_owned(),
            digest: digest.to_owned(),
            worker: worker.clone(),
        });
        let left = self.workers.keys().filter(|id| !newer.workers.contains_key(*id));
        let left = left.map(|id| Change::WorkerLeft(id.clone()));
        workers.chain(ready).chain(moved).chain(gone).chain(unready).chain(left).collect()
    }

    fn readiness(&self) -> BTreeSet<(&str, &str, &WorkerId)> {
        self.ready
            .iter()
            .flat_map(|((model, digest), workers)| {
                workers.iter().map(move |worker| (model.as_str(), digest.as_str(), worker))
            })
            .collect()
    }
}

/// An entry of etcd that no view takes in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) key: String,
    pub(crate) reason: String,
}

impl View {
    /// Reads `entries`, keys and values as etcd has them, in any order. What cannot be read is skipped and
    /// reported beside the view: one bad entry never hides the others.
    pub(crate) fn read<'a>(
        keys: &Keys,
        entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> (Self, Vec<Skipped>) {
        let mut draft = Draft::default();
        let mut skipped = Vec::new();
        for (key, value) in entries {
            let taken = match keys.parse(key) {
                Ok(parsed) => draft.take(parsed, value).map_err(|unreadable| unreadable.to_string()),
                Err(foreign) => Err(foreign.to_string()),
            };
            if let Err(reason) = taken {
                skipped.push(Skipped { key: String::from_utf8_lossy(key).into_owned(), reason });
            }
        }
        (draft.finish(), skipped)
    }
}

/// A view whose readiness is not yet held against its workers.
#[derive(Default)]
struct Draft {
    view: View,
    ready: Vec<((String, String), WorkerId, Ready)>,
}

impl Draft {
    fn take(&mut self, key: Key, value: &[u8]) -> Result<(), Unreadable> {
        match key {
            Key::Worker(id) => {
                let worker = Worker::decode(id.clone(), value)?;
                self.view.workers.insert(id, worker);
            }
            Key::Ready { model, digest, worker } => {
                let checkpoint = (model.to_string(), digest.to_string());
                self.ready.push((checkpoint, worker, record::decode(value)?));
            }
            Key::Alias(model) => {
                self.view.aliases.insert(model.to_string(), record::decode(value)?);
            }
        }
        Ok(())
    }

    fn finish(self) -> View {
        let Self { mut view, ready } = self;
        for (checkpoint, id, ready) in ready {
            // A process that was killed leaves its keys until its lease runs out. Where its successor has
            // registered by then, the successor has not loaded what the predecessor had.
            if view.workers.get(&id).is_some_and(|worker| worker.boot_id == ready.boot_id) {
                view.ready.entry(checkpoint).or_default().insert(id);
            }
        }
        view
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::name::Name;

    pub(crate) fn id(text: &str) -> WorkerId {
        WorkerId::parse(text).unwrap()
    }

    pub(crate) fn worker(text: &str) -> Worker {
        Worker {
            id: id(text),
            address: format!("{text}:7001"),
            boot_id: "boot".into(),
            device: "cpu".into(),
            memory: 1,
            draining: false,
        }
    }

    /// A view of these workers, all ready with `m` at `d`.
    pub(crate) fn view(workers: &[&str]) -> View {
        View {
            workers: workers.iter().map(|text| (id(text), worker(text))).collect(),
            ready: [(("m".to_owned(), "d".to_owned()), workers.iter().map(|text| id(text)).collect())]
                .into_iter()
                .filter(|(_, set): &(_, BTreeSet<_>)| !set.is_empty())
                .collect(),
            aliases: BTreeMap::from([("m".to_owned(), alias("d", 1))]),
        }
    }

    fn alias(digest: &str, epoch: u64) -> Alias {
        Alias { digest: digest.into(), epoch, prev: None }
    }

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
        old.aliases.insert("moved".into(), alias("d", 1));
        old.aliases.insert("gone".into(), alias("d", 1));
        old.aliases.insert("same".into(), alias("d", 1));
        newer.aliases.insert("moved".into(), alias("e", 2));
        newer.aliases.insert("new".into(), alias("e", 1));
        newer.aliases.insert("same".into(), alias("d", 1));
        let moved = |model: &str, alias| Change::AliasMoved { model: model.into(), alias };
        check(
            &old,
            &newer,
            &[
                moved("moved", alias("e", 2)),
                moved("new", alias("e", 1)),
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
            Change::AliasMoved { model, alias } => {
                view.aliases.insert(model, alias);
            }
            Change::AliasGone { model } => {
                view.aliases.remove(&model);
            }
            Change::Unready { model, digest, worker } => {
                let checkpoint = (model, digest);
                let workers = view.ready.get_mut(&checkpoint).unwrap();
                workers.remove(&worker);
                if workers.is_empty() {
                    view.ready.remove(&checkpoint);
                }
            }
            Change::WorkerLeft(id) => {
                view.workers.remove(&id);
            }
        }
    }

    fn any_view() -> impl Strategy<Value = View> {
        let workers = proptest::collection::btree_map("[a-e]", any::<(bool, bool, bool)>(), 0..5);
        let aliases = proptest::collection::btree_map("[m-o]", ("[d-f]", 1..3_u64), 0..3);
        (workers, aliases).prop_map(|(workers, aliases)| {
            let mut view = View::default();
            for (text, (draining, with_d, with_e)) in workers {
                view.workers.insert(id(&text), Worker { draining, ..worker(&text) });
                for digest in [("d", with_d), ("e", with_e)].iter().filter(|(_, has)| *has).map(|(d, _)| *d) {
                    view.ready.entry(("m".into(), digest.into())).or_default().insert(id(&text));
                }
            }
            view.aliases =
                aliases.into_iter().map(|(m, (digest, epoch))| (m, alias(&digest, epoch))).collect();
            view
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

    fn read(entries: &[(&str, &[u8])]) -> (View, Vec<String>) {
        let keys = Keys::new(&Name::parse("c").unwrap());
        let (view, skipped) = View::read(&keys, entries.iter().map(|(key, value)| (key.as_bytes(), *value)));
        (view, skipped.into_iter().map(|entry| entry.key).collect())
    }

    fn ready_value(boot_id: &str) -> Vec<u8> {
        Ready { boot_id: boot_id.into(), load_ms: 1, golden_cosine: None }.encode()
    }

    #[test]
    fn a_view_is_read_from_entries_in_any_order() {
        let (ready, worker, alias) = (ready_value("boot"), worker("a").encode(), alias("d", 1).encode());
        let mut entries = [
            ("/beige/c/ready/m/d/a", ready.as_slice()),
            ("/beige/c/workers/a", worker.as_slice()),
            ("/beige/c/aliases/m", alias.as_slice()),
        ];
        assert_eq!(read(&entries), (view(&["a"]), vec![]));
        entries.reverse();
        assert_eq!(read(&entries), (view(&["a"]), vec![]));
    }

    #[test]
    fn entries_that_cannot_be_read_are_skipped_and_named() {
        let (worker, alias) = (worker("a").encode(), alias("d", 1).encode());
        let (read, skipped) = read(&[
            ("/beige/c/workers/a", &worker),
            ("/beige/c/workers/b", b"{}"),
            ("/beige/c/workers/c", br#"{"v":9}"#),
            ("/beige/c/workers/", &worker),
            ("/beige/c/ready/m/d", b"{}"),
            ("/beige/c/ready/m/d/a", b"not json"),
            ("/beige/c/aliases/m", &alias),
            ("/beige/c/aliases/m@x", &alias),
        ]);
        assert_eq!(read, View { ready: BTreeMap::new(), ..view(&["a"]) });
        assert_eq!(
            skipped,
            [
                "/beige/c/workers/b",
                "/beige/c/workers/c",
                "/beige/c/workers/",
                "/beige/c/ready/m/d",
                "/beige/c/ready/m/d/a",
                "/beige/c/aliases/m@x",
            ]
        );
    }

    #[test]
    fn what_another_process_had_loaded_is_not_ready() {
        let worker = worker("a").encode();
        let (of_another, of_nobody) = (ready_value("an earlier boot"), ready_value("boot"));
        let (read, skipped) = read(&[
            ("/beige/c/workers/a", &worker),
            ("/beige/c/ready/m/d/a", &of_another),
            ("/beige/c/ready/m/d/unregistered", &of_nobody),
        ]);
        assert_eq!(read.ready, BTreeMap::new());
        assert!(skipped.is_empty(), "not worth a warning: {skipped:?}");
    }
}
