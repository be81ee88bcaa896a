//! What to do next about the checkpoints of a worker. Pure: what the cluster wants and what there is go in, and steps
//! come out; whoever takes them looks again after each change of either.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{Desired, View};

use crate::catalogue::Id;

/// How far a checkpoint is that was once ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It may be asked for.
    Ready,
    /// It is offered no more, and its last calls may still run.
    Leaving,
    /// It is being taken off the device.
    Going,
}

/// A checkpoint to be made ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Which one.
    pub id: Id,
    /// For which swap.
    pub swap_id: Option<String>,
    /// Where it is to go.
    pub room: Room,
}

/// How there is room for a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It goes beside the others.
    Beside,
    /// It takes the place of others, and they are gone.
    Made,
    /// It takes the place of others, which are not gone yet.
    Awaited,
}

/// What there is.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    /// Checkpoints that were made ready and are not gone.
    pub held: &'a BTreeMap<Id, Phase>,
    /// The one that is being made ready.
    pub running: Option<&'a Id>,
    /// Checkpoints that stay although the cluster does not want them; see [`stand_ins`].
    pub stand_ins: &'a BTreeSet<Id>,
}

/// What to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be offered no more, and then let go.
    pub release: Vec<Id>,
    /// To be offered again: they were leaving, and are wanted after all.
    pub resume: Vec<Id>,
    /// Whether what is being made ready is not wanted any more.
    pub cancel: bool,
    /// What is still to be made ready, the most urgent first. One is done at a time.
    pub tasks: Vec<Task>,
}

/// Plans for `wanted`, by model. Of a model that is not in it nothing is known, and everything stays.
#[must_use]
pub fn plan(wanted: &BTreeMap<String, Desired>, standing: Standing<'_>) -> Plan {
    let desired = |id: &Id| wanted.get(&id.model);
    let to_load = |id: &Id| desired(id).is_some_and(|model| loads(model, &id.digest));
    let is_surplus = |id: &Id| is_surplus(wanted, id, standing.stand_ins);
    let in_phase = |phase| standing.held.iter().filter(move |(_, at)| **at == phase).map(|(id, _)| id);
    let release = in_phase(Phase::Ready).filter(|id| is_surplus(id)).cloned().collect();
    let resume = in_phase(Phase::Leaving).filter(|id| to_load(id)).cloned().collect();
    let cancel = standing.running.is_some_and(|id| desired(id).is_some() && !to_load(id));
    Plan { release, resume, cancel, tasks: tasks(wanted, standing) }
}

/// Whether a checkpoint is not to be held: the cluster knows its model and does not want it.
#[must_use]
pub fn is_surplus(wanted: &BTreeMap<String, Desired>, id: &Id, stand_ins: &BTreeSet<Id>) -> bool {
    wanted.get(&id.model).is_some_and(|model| {
        let stands_in = stand_ins.contains(id) && !model.make_room;
        !model.holds(&id.digest) && !stands_in
    })
}

/// The first wishes of all models come first: what a name means goes before what it meant.
fn tasks(wanted: &BTreeMap<String, Desired>, standing: Standing<'_>) -> Vec<Task> {
    let mut ranked: Vec<(usize, Task)> = Vec::new();
    for (model, desired) in wanted {
        let room = room(model, desired, standing);
        for (rank, wish) in desired.load.iter().enumerate() {
            let id = Id::new(model, &wish.digest);
            if !standing.held.contains_key(&id) && standing.running != Some(&id) {
                ranked.push((rank, Task { id, swap_id: wish.swap_id.clone(), room }));
            }
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, task)| task).collect()
}

fn room(model: &str, desired: &Desired, standing: Standing<'_>) -> Room {
    let in_the_way = |id: &&Id| id.model == model && !loads(desired, &id.digest);
    if !desired.make_room {
        Room::Beside
    } else if standing.held.keys().any(|id| in_the_way(&id)) {
        Room::Awaited
    } else {
        Room::Made
    }
}

fn loads(desired: &Desired, digest: &str) -> bool {
    desired.load.iter().any(|wish| wish.digest == digest)
}

/// Which of the checkpoints that were `brought` along stay for want of a better one: those whose name means another
/// checkpoint that cannot be had here, as far as is known. `obtainable` are the checkpoints that can.
///
/// Such a worker is the last resort of its model: should the last worker with the other checkpoint go, the name is
/// given to this one ([`cluster::claim_alias`]).
#[must_use]
pub fn stand_ins<'a>(
    view: &View,
    brought: impl IntoIterator<Item = &'a Id>,
    obtainable: &BTreeSet<Id>,
) -> BTreeSet<Id> {
    let stands_in = |id: &&Id| {
        view.aliases.get(&id.model).is_some_and(|alias| {
            let meant = Id::new(&id.model, &alias.digest);
            meant != **id && !obtainable.contains(&meant)
        })
    };
    brought.into_iter().filter(stands_in).cloned().collect()
}

#[cfg(test)]
mod tests {
    use cluster::{Alias, Wish};

    use super::*;

    fn desired(load: &[&str], keep: &[&str], make_room: bool) -> BTreeMap<String, Desired> {
        let wish = |digest: &&str| Wish { digest: (*digest).into(), swap_id: Some("s".into()) };
        let keep = keep.iter().map(|digest| (*digest).to_owned()).collect();
        let desired = Desired { load: load.iter().map(wish).collect(), keep, make_room };
        BTreeMap::from([("m".to_owned(), desired)])
    }

    fn held(phases: &[(&str, Phase)]) -> BTreeMap<Id, Phase> {
        phases.iter().map(|(digest, phase)| (Id::new("m", *digest), *phase)).collect()
    }

    fn ids(digests: &[&str]) -> Vec<Id> {
        digests.iter().map(|digest| Id::new("m", *digest)).collect()
    }

    /// Released, resumed, and begun.
    #[track_caller]
    fn check(
        wanted: &BTreeMap<String, Desired>,
        phases: &[(&str, Phase)],
        [release, resume]: [&[&str]; 2],
        begin: &[(&str, Room)],
    ) {
        let (held, none) = (held(phases), BTreeSet::new());
        let plan = plan(wanted, Standing { held: &held, running: None, stand_ins: &none });
        assert_eq!((plan.release, plan.resume), (ids(release), ids(resume)));
        let found: Vec<_> = plan.tasks.iter().map(|task| (task.id.digest.as_str(), task.room)).collect();
        assert_eq!(found, begin);
    }

    const READY: Phase = Phase::Ready;
    const LEAVING: Phase = Phase::Leaving;

    #[test]
    fn what_is_wanted_is_made_ready_beside_the_others() {
        check(&desired(&["d"], &[], false), &[], [&[], &[]], &[("d", Room::Beside)]);
        check(&desired(&["d"], &[], false), &[("d", READY)], [&[], &[]], &[]);
        let swap = desired(&["d", "e"], &[], false);
        check(&swap, &[("d", READY)], [&[], &[]], &[("e", Room::Beside)]);
        check(&swap, &[], [&[], &[]], &[("d", Room::Beside), ("e", Room::Beside)]);
    }

    #[test]
    fn what_nobody_wants_is_let_go_and_what_may_have_calls_is_kept() {
        check(
            &desired(&["e"], &["k"], false),
            &[("d", READY), ("e", READY), ("k", READY)],
            [&["d"], &[]],
            &[],
        );
        check(&desired(&["e"], &[], false), &[("d", LEAVING), ("e", READY)], [&[], &[]], &[]);
    }

    #[test]
    fn of_a_model_that_is_not_known_everything_stays() {
        check(&BTreeMap::new(), &[("d", READY), ("e", LEAVING)], [&[], &[]], &[]);
    }

    #[test]
    fn what_leaves_and_is_wanted_again_is_kept_where_it_still_can_be() {
        check(&desired(&["d"], &[], false), &[("d", LEAVING)], [&[], &["d"]], &[]);
        check(&desired(&[], &["d"], false), &[("d", LEAVING)], [&[], &[]], &[]);
        check(&desired(&["d"], &[], false), &[("d", Phase::Going)], [&[], &[]], &[]);
    }

    #[test]
    fn where_both_do_not_fit_the_old_one_goes_first() {
        let wave = desired(&["e"], &[], true);
        check(&wave, &[("d", READY)], [&["d"], &[]], &[("e", Room::Awaited)]);
        check(&wave, &[("d", LEAVING)], [&[], &[]], &[("e", Room::Awaited)]);
        check(&wave, &[("d", Phase::Going)], [&[], &[]], &[("e", Room::Awaited)]);
        check(&wave, &[], [&[], &[]], &[("e", Room::Made)]);
        // Calls may be left on it; it falls out of the wishes when they are over.
        check(&desired(&["e"], &["d"], true), &[("d", READY)], [&[], &[]], &[("e", Room::Awaited)]);
    }

    #[test]
    fn what_is_being_made_ready_is_given_up_when_it_is_not_wanted() {
        let (held, none, running) = (BTreeMap::new(), BTreeSet::new(), Id::new("m", "e"));
        let standing = Standing { held: &held, running: Some(&running), stand_ins: &none };
        assert!(!plan(&desired(&["d", "e"], &[], false), standing).cancel);
        assert!(plan(&desired(&["d"], &[], false), standing).cancel);
        assert!(plan(&desired(&["d"], &["e"], false), standing).cancel);
        assert!(!plan(&BTreeMap::new(), standing).cancel, "nothing is known of it");
        assert_eq!(plan(&desired(&["e"], &[], false), standing).tasks, []);
    }

    #[test]
    fn the_first_wishes_of_all_models_come_first() {
        let mut wanted = desired(&["d", "e"], &[], false);
        wanted.insert("n".into(), desired(&["f"], &[], false)["m"].clone());
        let none = BTreeSet::new();
        let plan = plan(&wanted, Standing { held: &BTreeMap::new(), running: None, stand_ins: &none });
        let order: Vec<_> = plan.tasks.iter().map(|task| task.id.digest.as_str()).collect();
        assert_eq!(order, ["d", "f", "e"]);
        assert_eq!(plan.tasks[0].swap_id.as_deref(), Some("s"));
    }

    #[test]
    fn what_was_brought_along_stays_until_something_better_can_be_had() {
        let brought = BTreeSet::from([Id::new("m", "mine"), Id::new("n", "other")]);
        let mut view = View::default();
        assert!(
            stand_ins(&view, &brought, &BTreeSet::new()).is_empty(),
            "it is not known what the names mean"
        );
        view.aliases.insert("m".into(), Alias::of("d", 1));
        let stand_ins_now = stand_ins(&view, &brought, &BTreeSet::new());
        assert_eq!(stand_ins_now, BTreeSet::from([Id::new("m", "mine")]));
        assert!(stand_ins(&view, &brought, &BTreeSet::from([Id::new("m", "d")])).is_empty());

        let held = held(&[("mine", READY)]);
        let standing = Standing { held: &held, running: None, stand_ins: &stand_ins_now };
        assert_eq!(plan(&desired(&["d"], &[], false), standing).release, []);
        assert_eq!(
            plan(&desired(&["d"], &[], true), standing).release,
            ids(&["mine"]),
            "it would be in the way"
        );
        view.aliases.insert("m".into(), Alias::of("mine", 2));
        assert!(stand_ins(&view, &brought, &BTreeSet::new()).is_empty(), "it is what the name means");
    }
}
