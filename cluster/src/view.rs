//! What one part of the cluster knows about the others.

mod diff;

use std::collections::{BTreeMap, BTreeSet};

pub use diff::Change;

use crate::keys::{Key, Keys};
use crate::name::{GatewayId, Name, WorkerId};
use crate::record::{Alias, Gateway, Leader, Nack, Pin, Ready, Seen, Swap, Worker};
use crate::record::{Raw, Record, Revision};

/// A checkpoint of a model: the model's name, and the digest.
type Checkpoint = (String, String);

/// The cluster at one revision of etcd.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// The workers that are registered.
    pub workers: BTreeMap<WorkerId, Worker>,
    /// Who is ready with which checkpoint, by model and digest. Each set is non-empty, its workers are in
    /// [`View::workers`], and it was the process registered now that said so.
    pub ready: BTreeMap<(String, String), BTreeSet<WorkerId>>,
    /// Who cannot run which checkpoint, by model and digest. No set is empty. A process that is gone may have said so.
    pub nacks: BTreeMap<(String, String), BTreeMap<WorkerId, Nack>>,
    /// What each model's name means.
    pub aliases: BTreeMap<String, Alias>,
    /// Each model's last swap.
    pub swaps: BTreeMap<String, Swap>,
    /// Checkpoints that are kept, by model and digest.
    pub pins: BTreeMap<(String, String), Pin>,
    /// The gateways that are registered.
    pub gateways: BTreeMap<GatewayId, Gateway>,
    /// The gateway that carries swaps out, if there is one at present.
    pub leader: Option<Leader>,
    /// Models whose alias here was seen before, with the one that etcd has instead: none, or one that cannot have
    /// followed. etcd was wiped, or restored from a snapshot, and whoever follows it puts these aliases back.
    pub overtaken: BTreeMap<String, Option<Alias>>,
    /// When entries were written: what a change rests on is compared by it. Empty in a view that nobody acts on.
    pub revisions: Revisions,
}

/// When entries of a [`View`] were written, by etcd's count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Revisions {
    of: BTreeMap<Key, Revision>,
}

impl Revisions {
    /// When the entry at `key` was last written; 0 where there is none.
    pub(crate) fn modified(&self, key: &Key) -> i64 {
        self.of.get(key).map_or(0, |revision| revision.modified)
    }

    /// When the last gateway came; 0 where there is none.
    pub(crate) fn last_gateway(&self) -> i64 {
        self.newest(|key, revision| matches!(key, Key::Gateway(_)).then_some(revision.created))
    }

    /// When any gateway last said something of `model`; 0 where none has.
    pub(crate) fn last_word_on(&self, model: &Name) -> i64 {
        let is_of = |key: &Key| matches!(key, Key::Seen { model: of, .. } if of == model);
        self.newest(|key, revision| is_of(key).then_some(revision.modified))
    }

    fn newest(&self, of: impl Fn(&Key, &Revision) -> Option<i64>) -> i64 {
        self.of.iter().filter_map(|(key, revision)| of(key, revision)).max().unwrap_or(0)
    }
}

/// An entry of etcd that no view takes in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) key: String,
    pub(crate) reason: String,
}

impl View {
    /// Reads `entries` as etcd has them, in any order. What cannot be read is skipped and reported beside the view:
    /// one bad entry never hides the others.
    pub(crate) fn read<'a>(keys: &Keys, entries: impl IntoIterator<Item = Raw<'a>>) -> (Self, Vec<Skipped>) {
        let mut skipped = Vec::new();
        let known = entries.into_iter().filter_map(|raw| {
            read_entry(keys, raw)
                .inspect_err(|reason| {
                    let key = String::from_utf8_lossy(raw.key).into_owned();
                    skipped.push(Skipped { key, reason: reason.clone() });
                })
                .ok()
        });
        let view = Self::of(known);
        (view, skipped)
    }

    /// Keeps what `older` knows of names where that overtakes what is here: an epoch that was seen is never unseen,
    /// whatever becomes of etcd. So it is with the swap that led there, unless another was asked for since.
    pub(crate) fn keep_epochs(&mut self, older: &Self) {
        for (model, known) in &older.aliases {
            if self.aliases.get(model).is_none_or(|listed| known.overtakes(listed)) {
                let listed = self.aliases.insert(model.clone(), known.clone());
                self.overtaken.insert(model.clone(), listed);
                let asked = self.swaps.get(model).map(|swap| swap.requested_unix_ms);
                let last = older.swaps.get(model).filter(|swap| asked <= Some(swap.requested_unix_ms));
                self.swaps.extend(last.map(|swap| (model.clone(), swap.clone())));
            }
        }
    }

    /// The view of these entries, in any order.
    pub(crate) fn of(entries: impl IntoIterator<Item = (Key, Record, Revision)>) -> Self {
        let mut draft = Draft::default();
        for (key, record, revision) in entries {
            draft.take(key, record, revision);
        }
        draft.finish()
    }
}

/// What `raw` says.
fn read_entry(keys: &Keys, raw: Raw<'_>) -> Result<(Key, Record, Revision), String> {
    let key = keys.parse(raw.key).map_err(|foreign| foreign.to_string())?;
    let record = Record::decode(&key, raw.value).map_err(|unreadable| unreadable.to_string())?;
    Ok((key, record, raw.revision))
}

/// A view whose readiness is not yet held against its workers, nor what was seen against its gateways.
#[derive(Default)]
struct Draft {
    view: View,
    ready: Vec<(Checkpoint, WorkerId, Ready)>,
    seen: Vec<(Name, GatewayId, Seen)>,
}

impl Draft {
    fn take(&mut self, key: Key, record: Record, revision: Revision) {
        let view = &mut self.view;
        match (&key, record) {
            (Key::Worker(id), Record::Worker(worker)) => {
                view.workers.insert(id.clone(), worker);
            }
            (Key::Ready { model, digest, worker }, Record::Ready(ready)) => {
                self.ready.push(((model.to_string(), digest.to_string()), worker.clone(), ready));
            }
            (Key::Nack { model, digest, worker }, Record::Nack(nack)) => {
                let nacks = view.nacks.entry((model.to_string(), digest.to_string())).or_default();
                nacks.insert(worker.clone(), nack);
            }
            (Key::Alias(model), Record::Alias(alias)) => {
                view.aliases.insert(model.to_string(), alias);
                view.revisions.of.insert(key, revision);
            }
            (Key::Swap(model), Record::Swap(swap)) => {
                view.swaps.insert(model.to_string(), *swap);
                view.revisions.of.insert(key, revision);
            }
            (Key::Pin { model, digest }, Record::Pin(pin)) => {
                view.pins.insert((model.to_string(), digest.to_string()), pin);
            }
            (Key::Gateway(id), Record::Gateway(gateway)) => {
                view.gateways.insert(id.clone(), gateway);
                view.revisions.of.insert(key, revision);
            }
            (Key::Seen { model, gateway }, Record::Seen(seen)) => {
                self.seen.push((model.clone(), gateway.clone(), *seen));
                view.revisions.of.insert(key, revision);
            }
            (Key::Leader, Record::Leader(leader)) => {
                view.leader = Some(leader);
                view.revisions.of.insert(key, revision);
            }
            // Versions and owners of jobs are in no view, and no other key has another's record.
            (_, _) => {}
        }
    }

    fn finish(self) -> View {
        let Self { mut view, ready, seen } = self;
        for (model, id, seen) in seen {
            if let Some(gateway) = view.gateways.get_mut(&id) {
                gateway.take(model.as_str(), seen);
            }
        }
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
    use super::*;
    use crate::name::Name;
    use crate::record::{NackReason, SwapPlan, encode};

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
            serves: None,
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
            aliases: BTreeMap::from([("m".to_owned(), Alias::of("d", 1))]),
            ..View::default()
        }
    }

    /// Reads entries, the first written at revision 1, the next at 2; answers the view without its revisions, and
    /// what was skipped.
    fn read(entries: &[(&str, &[u8])]) -> (View, Vec<String>) {
        let keys = Keys::new(&Name::parse("c").unwrap());
        let raw = (1..).zip(entries).map(|(modified, (key, value))| Raw {
            key: key.as_bytes(),
            value,
            revision: Revision { created: 1, modified },
        });
        let (view, skipped) = View::read(&keys, raw);
        let bare = View { revisions: Revisions::default(), ..view };
        (bare, skipped.into_iter().map(|entry| entry.key).collect())
    }

    fn ready_value(boot_id: &str) -> Vec<u8> {
        encode(&Ready { boot_id: boot_id.into(), load_ms: 1, golden_cosine: None })
    }

    #[test]
    fn a_view_is_read_from_entries_in_any_order() {
        let (ready, worker, alias) = (ready_value("boot"), worker("a").encode(), encode(&Alias::of("d", 1)));
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
    fn everything_that_a_cluster_writes_is_read() {
        let checkpoint = || ("m".to_owned(), "d".to_owned());
        let swap = Swap::requested("s".into(), (None, "d".into()), SwapPlan::default(), 1);
        let nack = Nack {
            reason: NackReason::Disk,
            detail: "full".into(),
            swap_id: None,
            boot_id: "b".into(),
            made_room: false,
        };
        let gateway = Gateway {
            address: "g:1".into(),
            epochs: BTreeMap::from([("m".to_owned(), 4)]),
            busy: BTreeSet::from([checkpoint()]),
            ..Gateway::default()
        };
        let (_, seen) = gateway.seen().next().unwrap();
        let leader = Leader { gateway: GatewayId::parse("g").unwrap(), address: "g:1".into() };
        let pin = Pin { since_unix_ms: 1 };
        let (read, skipped) = read(&[
            ("/beige/c/swaps/m", &encode(&swap)),
            ("/beige/c/nack/m/d/a", &encode(&nack)),
            ("/beige/c/pins/m/d", &encode(&pin)),
            ("/beige/c/seen/m/g", &encode(&seen)),
            ("/beige/c/seen/m/gone", &encode(&seen)),
            ("/beige/c/gateways/g", &encode(&gateway)),
            ("/beige/c/leader", &encode(&leader)),
        ]);
        let expected = View {
            swaps: BTreeMap::from([("m".to_owned(), swap)]),
            nacks: BTreeMap::from([(checkpoint(), BTreeMap::from([(id("a"), nack)]))]),
            pins: BTreeMap::from([(checkpoint(), pin)]),
            gateways: BTreeMap::from([(GatewayId::parse("g").unwrap(), gateway)]),
            leader: Some(leader),
            ..View::default()
        };
        assert_eq!((read, skipped), (expected, vec![]));
    }

    #[test]
    fn a_view_knows_when_what_it_rests_on_was_written() {
        let gateway = Record::Gateway(Gateway::default());
        let alias = Key::Alias(Name::parse("m").unwrap());
        let name = |text: &str| Name::parse(text).unwrap();
        let at = |text, created| {
            let key = Key::Gateway(GatewayId::parse(text).unwrap());
            (key, gateway.clone(), Revision { created, modified: 20 })
        };
        let said = |model, modified| {
            let key = Key::Seen { model: name(model), gateway: GatewayId::parse("g").unwrap() };
            let seen = Seen { epoch: 1, busy: BTreeSet::new(), trial: None };
            (key, Record::Seen(Box::new(seen)), Revision { created: 1, modified })
        };
        let entry = (alias.clone(), Record::Alias(Alias::of("d", 1)), Revision { created: 2, modified: 9 });
        let revisions = View::of([at("g", 5), said("m", 7), entry, said("n", 8), at("h", 3)]).revisions;
        assert_eq!((revisions.modified(&alias), revisions.modified(&Key::Leader)), (9, 0));
        let said = ["m", "n", "o"].map(|model| revisions.last_word_on(&name(model)));
        assert_eq!((revisions.last_gateway(), said), (5, [7, 8, 0]));
    }

    #[test]
    fn a_name_that_was_seen_later_is_kept_with_the_swap_that_led_there() {
        let asked_at = |swap_id: &str, at| {
            let swap = Swap::requested(swap_id.into(), (None, "d".into()), SwapPlan::default(), at);
            BTreeMap::from([("m".to_owned(), swap)])
        };
        let known = |epoch, swaps| View {
            aliases: BTreeMap::from([("m".to_owned(), Alias::of("d", epoch))]),
            swaps,
            ..View::default()
        };
        let seen = known(3, asked_at("seen", 5));
        let kept = |mut listed: View| {
            listed.keep_epochs(&seen);
            (listed.aliases["m"].epoch, listed.swaps.remove("m").map(|swap| swap.swap_id))
        };
        assert_eq!(kept(View::default()), (3, Some("seen".into())));
        assert_eq!(kept(known(2, BTreeMap::new())), (3, Some("seen".into())));
        assert_eq!(kept(known(2, asked_at("before", 4))), (3, Some("seen".into())));
        assert_eq!(kept(known(2, asked_at("since", 6))), (3, Some("since".into())));
        assert_eq!(kept(known(3, BTreeMap::new())), (3, None), "nothing shows that it was forgotten");
    }

    #[test]
    fn entries_that_cannot_be_read_are_skipped_and_named() {
        let (worker, alias) = (worker("a").encode(), encode(&Alias::of("d", 1)));
        let (read, skipped) = read(&[
            ("/beige/c/workers/a", &worker),
            ("/beige/c/workers/b", b"{}"),
            ("/beige/c/workers/c", br#"{"v":9}"#),
            ("/beige/c/workers/", &worker),
            ("/beige/c/ready/m/d", b"{}"),
            ("/beige/c/ready/m/d/a", b"not json"),
            ("/beige/c/aliases/m", &alias),
            ("/beige/c/aliases/m@x", &alias),
            ("/beige/c/leader", b"{}"),
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
                "/beige/c/leader",
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
