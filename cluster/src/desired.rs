//! What a worker is to hold. Pure: a view in, wishes out; the worker looks again at each view.
//!
//! Workers never switch. They hold several checkpoints of a model at once, take up new ones when names, swaps and pins
//! want them, and let go of those that nothing wants any more. Which checkpoint answers is not their business.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{Alias, NackReason, Swap, SwapMode, SwapState, Worker};
use crate::view::View;

/// What a worker is to hold of one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Checkpoints to have loaded, by digest: the first to be loaded first.
    pub load: Vec<Wish>,
    /// Checkpoints that are not worth loading, and stay where they are loaded: calls may be left on them.
    pub keep: BTreeSet<String>,
    /// Nothing is to be loaded while anything is loaded that is not in [`load`](Self::load): both would not fit.
    /// Otherwise what is not to be held is let go at leisure.
    pub make_room: bool,
}

/// A checkpoint that is to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Which one.
    pub digest: String,
    /// For which swap; to be given in a refusal ([`Nack::swap_id`](crate::Nack::swap_id)), which counts for that alone.
    pub swap_id: Option<String>,
}

impl Desired {
    /// Whether a checkpoint that is loaded is to stay so.
    #[must_use]
    pub fn holds(&self, digest: &str) -> bool {
        self.keep.contains(digest) || self.load.iter().any(|wish| wish.digest == digest)
    }
}

/// What `worker` is to hold, by model: every model that the cluster knows and it may serve.
///
/// A model that is missing is not known, which is no reason to let go of it: a worker that brings a checkpoint with it
/// holds that until the name is [claimed](crate::claim_alias), or means something else.
///
/// Wanted is what the name means and meant before, what some callers or calls try, what an open swap leads to, and what
/// is pinned; but not what this process has refused, until the refusal is over. In waves, a worker whose turn it is lets
/// the old checkpoint go.
#[must_use]
pub fn desired(view: &View, worker: &Worker) -> BTreeMap<String, Desired> {
    let models: BTreeSet<&String> = view
        .aliases
        .keys()
        .chain(view.swaps.keys())
        .chain(view.pins.keys().map(|(model, _)| model))
        .collect();
    models
        .into_iter()
        .filter(|model| worker.may_serve(model))
        .map(|model| (model.clone(), Model::of(view, model).desired(worker)))
        .collect()
}

/// What a view says of one model.
struct Model<'a> {
    view: &'a View,
    name: &'a str,
    alias: Option<&'a Alias>,
    swap: Option<&'a Swap>,
}

impl<'a> Model<'a> {
    fn of(view: &'a View, name: &'a str) -> Self {
        Self { view, name, alias: view.aliases.get(name), swap: view.swaps.get(name) }
    }

    fn desired(&self, worker: &Worker) -> Desired {
        let mut desired = Desired { make_room: self.room_is_made_by(worker), ..Desired::default() };
        let wanted = self.wanted();
        for digest in wanted {
            if desired.holds(digest) || self.makes_way(digest, worker) {
                continue;
            }
            let swap_id = self.wanted_for(digest);
            if self.is_refused(digest, swap_id, worker) || self.is_past(digest) {
                desired.keep.insert(digest.to_owned());
            } else {
                let swap_id = swap_id.map(ToOwned::to_owned);
                desired.load.push(Wish { digest: digest.to_owned(), swap_id });
            }
        }
        let leaving = self.alias.into_iter().flat_map(|alias| alias.leaving.iter().cloned());
        let leaving: Vec<String> = leaving.filter(|digest| !desired.holds(digest)).collect();
        desired.keep.extend(leaving);
        desired
    }

    /// What the name, the swap and pins want, the most urgent first.
    fn wanted(&self) -> Vec<&'a str> {
        let Self { view, name, alias, swap } = *self;
        let current = alias.map(|alias| alias.digest.as_str());
        let tried = alias.into_iter().flat_map(|alias| {
            let canary = alias.canary.iter().map(|canary| canary.digest.as_str());
            canary.chain(alias.shadow.iter().map(|shadow| shadow.digest.as_str()))
        });
        let coming = swap.filter(|swap| match swap.state {
            SwapState::Preparing | SwapState::Trial | SwapState::Committed => true,
            SwapState::Requested | SwapState::Retired | SwapState::Aborted | SwapState::RolledBack => false,
        });
        let coming = coming.map(|swap| swap.to.as_str());
        let before = alias.and_then(|alias| alias.prev.as_deref());
        let pinned = view.pins.keys().filter(|(model, _)| model == name).map(|(_, digest)| digest.as_str());
        current.into_iter().chain(tried).chain(coming).chain(before).chain(pinned).collect()
    }

    /// The swap that made `digest` wanted, if one did.
    fn wanted_for(&self, digest: &str) -> Option<&'a str> {
        match (self.swap, self.alias) {
            (Some(swap), _) if swap.to == digest => Some(&swap.swap_id),
            (_, Some(alias)) if alias.digest == digest => alias.swap_id.as_deref(),
            (_, _) => None,
        }
    }

    /// Whether both checkpoints of the swap would not fit, and `worker` loads one when it has let go of the other.
    fn room_is_made_by(&self, worker: &Worker) -> bool {
        self.swap.is_some_and(|swap| makes_room(swap, self.alias, worker))
    }

    /// Whether `digest` answers still, and `worker` is one of those who let it go nevertheless. What is pinned stays.
    fn makes_way(&self, digest: &str, worker: &Worker) -> bool {
        let pinned = self.view.pins.contains_key(&(self.name.to_owned(), digest.to_owned()));
        let in_wave = self.swap.is_some_and(|swap| {
            let may_answer = swap.state.is_open() || swap.state == SwapState::Committed;
            may_answer && swap.from.as_deref() == Some(digest) && swap.wave.contains(&worker.id)
        });
        in_wave && !pinned
    }

    /// Whether `digest` is what the name meant before, and is to go soon or could not be held beside what it means now.
    fn is_past(&self, digest: &str) -> bool {
        let is_prev = self.alias.is_some_and(|alias| alias.prev.as_deref() == Some(digest));
        // Not at some time to come: workers go by no clock.
        is_prev && self.swap.is_some_and(|swap| swap.lets_go_from(digest) == Some(0))
    }

    fn is_refused(&self, digest: &str, swap_id: Option<&str>, worker: &Worker) -> bool {
        let nacks = self.view.nacks.get(&(self.name.to_owned(), digest.to_owned()));
        let Some(nack) = nacks.and_then(|nacks| nacks.get(&worker.id)) else { return false };
        let mended = nack.reason == NackReason::Memory && !nack.made_room && self.room_is_made_by(worker);
        nack.boot_id == worker.boot_id && nack.swap_id.as_deref() == swap_id && !mended
    }
}

/// Whether `worker` loads one of the checkpoints of `swap` only when it has let go of the other: when its turn has come;
/// in waves also once the swap is decided and nobody is answered by the other any more.
pub(crate) fn makes_room(swap: &Swap, alias: Option<&Alias>, worker: &Worker) -> bool {
    let (has_turn, in_waves) = (swap.wave.contains(&worker.id), swap.mode == SwapMode::Waves);
    match swap.state {
        SwapState::Requested | SwapState::Preparing | SwapState::Trial => has_turn && in_waves,
        // Whoever came too late to make room before follows now.
        SwapState::Committed => has_turn || (in_waves && alias.is_some_and(|alias| alias.prev.is_none())),
        SwapState::Retired | SwapState::Aborted | SwapState::RolledBack => in_waves,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Canary, Nack, Pin, Shadow, SwapPlan};
    use crate::view::tests::{view, worker};

    fn swap(state: SwapState) -> Swap {
        let swap = Swap::requested("s".into(), (Some("d".into()), "e".into()), SwapPlan::default(), 0);
        Swap { state, ..swap }
    }

    /// `m` means `d`, and a swap from `d` to `e` is in `state`.
    fn swapping(state: SwapState) -> View {
        View { swaps: BTreeMap::from([("m".to_owned(), swap(state))]), ..view(&["a"]) }
    }

    /// Worker `a` refuses `e` for the swap.
    fn refuse(view: &mut View, reason: NackReason, made_room: bool) {
        let (detail, swap_id) = (String::new(), Some("s".to_owned()));
        let nack = Nack { reason, detail, swap_id, boot_id: "boot".into(), made_room };
        let checkpoint = ("m".to_owned(), "e".to_owned());
        view.nacks.insert(checkpoint, BTreeMap::from([(worker("a").id, nack)]));
    }

    fn waves(state: SwapState, wave: &[&str]) -> View {
        let mut view = swapping(state);
        let wave = wave.iter().map(|text| worker(text).id).collect();
        let swap = Swap { mode: SwapMode::Waves, wave, ..swap(state) };
        view.swaps.insert("m".into(), swap);
        view
    }

    fn alias(view: &mut View) -> &mut Alias {
        view.aliases.get_mut("m").unwrap()
    }

    /// What worker `a` is to load and to keep of `m`, and whether it makes room.
    #[track_caller]
    fn check(view: &View, load: &[&str], keep: &[&str], make_room: bool) {
        let desired = &desired(view, &worker("a"))["m"];
        let loaded: Vec<_> = desired.load.iter().map(|wish| wish.digest.as_str()).collect();
        let kept: Vec<_> = desired.keep.iter().map(String::as_str).collect();
        assert_eq!((loaded.as_slice(), kept.as_slice(), desired.make_room), (load, keep, make_room));
    }

    #[test]
    fn what_the_name_means_is_held() {
        check(&view(&["a"]), &["d"], &[], false);
        assert_eq!(desired(&View::default(), &worker("a")), BTreeMap::new());
    }

    #[test]
    fn a_model_that_it_may_not_serve_is_none_of_its_business() {
        let serves = Some(BTreeSet::from(["n".to_owned()]));
        assert_eq!(desired(&view(&["a"]), &Worker { serves, ..worker("a") }), BTreeMap::new());
    }

    #[test]
    fn a_swap_is_held_beside_from_its_preparation_until_it_is_over() {
        check(&swapping(SwapState::Requested), &["d"], &[], false);
        check(&swapping(SwapState::Preparing), &["d", "e"], &[], false);
        check(&swapping(SwapState::Trial), &["d", "e"], &[], false);
        check(&swapping(SwapState::Aborted), &["d"], &[], false);
        check(&swapping(SwapState::RolledBack), &["d"], &[], false);

        let mut committed = swapping(SwapState::Committed);
        *alias(&mut committed) =
            Alias { prev: Some("d".into()), swap_id: Some("s".into()), ..Alias::of("e", 2) };
        check(&committed, &["e", "d"], &[], false);
        let wishes = &desired(&committed, &worker("a"))["m"].load;
        assert_eq!(wishes[0].swap_id.as_deref(), Some("s"));
        assert_eq!(wishes[1].swap_id, None);
    }

    #[test]
    fn all_that_may_have_callers_is_held() {
        let mut view = view(&["a"]);
        let canary = Some(Canary { digest: "c".into(), per_mille: 1, salt: String::new() });
        let shadow = Some(Shadow { digest: "s".into(), per_mille: 1 });
        let leaving = BTreeSet::from(["l".to_owned(), "d".to_owned()]);
        *alias(&mut view) = Alias { prev: Some("p".into()), canary, shadow, leaving, ..Alias::of("d", 1) };
        view.pins.insert(("m".into(), "k".into()), Pin { since_unix_ms: 0 });
        view.pins.insert(("n".into(), "j".into()), Pin { since_unix_ms: 0 });
        check(&view, &["d", "c", "s", "p", "k"], &["l"], false);
        assert_eq!(desired(&view, &worker("a"))["n"].load[0].digest, "j");
    }

    #[test]
    fn what_is_on_its_way_out_is_not_loaded_for_it() {
        let mut view = swapping(SwapState::Requested);
        alias(&mut view).prev = Some("p".into());
        check(&view, &["d"], &["p"], false);
        alias(&mut view).prev = Some("e".into());
        check(&view, &["d", "e"], &[], false);

        let mut retiring = swapping(SwapState::Aborted);
        alias(&mut retiring).prev = Some("c".into());
        check(&retiring, &["d", "c"], &[], false);
        retiring.swaps.get_mut("m").unwrap().retire_requested = true;
        check(&retiring, &["d"], &["c"], false);
    }

    #[test]
    fn in_waves_back_to_what_was_before_it_is_loaded() {
        let mut view = waves(SwapState::Preparing, &["a"]);
        alias(&mut view).prev = Some("e".into());
        check(&view, &["e"], &[], true);
        view.swaps.get_mut("m").unwrap().state = SwapState::Aborted;
        check(&view, &["d"], &["e"], true);
    }

    #[test]
    fn what_it_has_refused_is_not_tried_again_for_that_swap() {
        let mut view = swapping(SwapState::Preparing);
        refuse(&mut view, NackReason::Golden, false);
        check(&view, &["d"], &["e"], false);
        view.swaps.get_mut("m").unwrap().swap_id = "another".into();
        check(&view, &["d", "e"], &[], false);
    }

    #[test]
    fn what_another_process_refused_is_tried() {
        let mut view = swapping(SwapState::Preparing);
        refuse(&mut view, NackReason::Golden, false);
        let restarted = Worker { boot_id: "another".into(), ..worker("a") };
        assert_eq!(desired(&view, &restarted)["m"].load.len(), 2);
    }

    #[test]
    fn in_waves_those_whose_turn_it_is_let_the_old_one_go_first() {
        let (mut waiting, mut turn) =
            (waves(SwapState::Preparing, &["b"]), waves(SwapState::Preparing, &["a", "b"]));
        for view in [&mut waiting, &mut turn] {
            refuse(view, NackReason::Memory, false);
        }
        check(&waiting, &["d"], &["e"], false);
        check(&turn, &["e"], &[], true);
        // Even alone it does not fit.
        refuse(&mut turn, NackReason::Memory, true);
        check(&turn, &[], &["e"], true);
    }

    #[test]
    fn in_waves_what_is_pinned_is_not_let_go() {
        let mut view = waves(SwapState::Preparing, &["a"]);
        view.pins.insert(("m".into(), "d".into()), Pin { since_unix_ms: 0 });
        check(&view, &["d", "e"], &[], true);
    }

    #[test]
    fn after_waves_the_others_follow_once_nobody_needs_the_old_one() {
        let mut view = waves(SwapState::Committed, &["b"]);
        refuse(&mut view, NackReason::Memory, false);
        *alias(&mut view) = Alias { prev: Some("d".into()), swap_id: Some("s".into()), ..Alias::of("e", 2) };
        check(&view, &[], &["d", "e"], false);
        alias(&mut view).prev = None;
        view.swaps.get_mut("m").unwrap().state = SwapState::Retired;
        check(&view, &["e"], &[], true);
    }

    #[test]
    fn who_came_too_late_for_waves_follows_when_it_is_told_to() {
        let mut view = swapping(SwapState::Committed);
        refuse(&mut view, NackReason::Memory, false);
        *alias(&mut view) = Alias { prev: Some("d".into()), swap_id: Some("s".into()), ..Alias::of("e", 2) };
        check(&view, &["d"], &["e"], false);
        view.swaps.get_mut("m").unwrap().wave.insert(worker("a").id);
        check(&view, &["e"], &[], true);
        // And back: nothing is in its way once `e` is let go.
        let mut back = swapping(SwapState::RolledBack);
        back.swaps.get_mut("m").unwrap().wave.insert(worker("a").id);
        alias(&mut back).leaving.insert("e".into());
        check(&back, &["d"], &["e"], false);
    }

    #[test]
    fn after_waves_that_failed_the_old_one_is_loaded_in_place_of_the_new_one() {
        check(&waves(SwapState::Aborted, &["a"]), &["d"], &[], true);
    }
}
