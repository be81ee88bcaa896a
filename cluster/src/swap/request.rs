//! What people ask for: promote, roll back, retire. Whichever gateway takes the call writes it down, and the leader
//! carries on from there; a rollback needs no leader.

use super::step::{Standing, Step};
use crate::keys::Key;
use crate::name::{Name, WorkerId};
use crate::record::{Alias, Swap, SwapPlan, SwapState};
use crate::transaction::{Fact, Transaction};

/// Why what was asked for is not done. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Publish it first.
    #[error("the model has no checkpoint {0}")]
    Unpublished(String),
    /// There is nothing to do.
    #[error("the name means {0} already")]
    Meant(String),
    /// Wait for it, or roll it back.
    #[error("a swap to {to} is under way")]
    UnderWay {
        /// Where it leads.
        to: String,
    },
    /// Say that a new index space is meant, or promote another checkpoint.
    #[error(
        "vectors of {to} cannot be compared with those of {from}: existing indexes would have to be made again"
    )]
    OtherSpace {
        /// What the name means.
        from: String,
        /// What it was to mean.
        to: String,
    },
    /// Publish it under another name.
    #[error(
        "{to} embeds texts and {from} scores pairs, or the other way round: whoever calls for the one would be refused"
    )]
    OtherKind {
        /// What the name means.
        from: String,
        /// What it was to mean.
        to: String,
    },
    /// Promote what it is to mean: what it meant before is not known, or no longer loaded.
    #[error("the name meant no other checkpoint before, or that was let go: there is nothing to go back to")]
    NothingBefore,
    /// Promote it once workers are ready with it again.
    #[error("no worker is ready with {0}")]
    NobodyReady(String),
    /// There is nothing to do.
    #[error("the name did not mean {0} before, or that was let go already")]
    NotBefore(String),
    /// Promote something else, unpin it, or wait.
    #[error("{0} is in use")]
    InUse(String),
}

/// What a swap is asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Asked<'a> {
    /// Chosen at random.
    pub(crate) swap_id: &'a str,
    pub(crate) to: &'a Name,
    pub(crate) plan: &'a SwapPlan,
    pub(crate) kinship: Kinship,
}

/// How a checkpoint is to the one whose place it is to take, as far as their versions tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kinship {
    /// What was made with the old one goes on with it.
    SameSpace,
    /// Vectors of the two cannot be compared, or nobody knows.
    OtherSpace,
    /// One embeds texts, the other scores pairs.
    OtherKind,
}

/// What is to be done about something that was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asking {
    /// Nothing: it is under way as it was asked for.
    UnderWay(Box<Swap>),
    /// This; the swap is then what is said here.
    Write(Transaction, Box<Swap>),
}

/// Asks for a swap at `now`, in milliseconds since 1970. Where the very checkpoint is on trial, ends the trial in its
/// favour; where it is being prepared already, there is nothing to do.
pub(crate) fn request(standing: &Standing<'_>, asked: &Asked<'_>, now: u64) -> Result<Asking, Refused> {
    let to = asked.to.as_str();
    let from = standing.alias.map(|alias| alias.digest.clone());
    match standing.swap.filter(|swap| swap.is_under_way()) {
        Some(swap) if swap.to != to => return Err(Refused::UnderWay { to: swap.to.clone() }),
        Some(swap) if swap.state == SwapState::Trial && !swap.commit_requested => {
            let mut swap = Swap { commit_requested: true, ..swap.clone() };
            swap.note(now, "asked for by hand, without waiting for the end of the trial");
            return Ok(standing.asking(None, swap, Vec::new()));
        }
        Some(swap) if swap.state.is_open() => return Ok(Asking::UnderWay(Box::new(swap.clone()))),
        Some(_) | None => {}
    }
    if from.as_deref() == Some(to) {
        return Err(Refused::Meant(to.to_owned()));
    }
    if let Some(from) = &from {
        let (from, to) = (from.clone(), to.to_owned());
        match asked.kinship {
            Kinship::OtherKind => return Err(Refused::OtherKind { from, to }),
            Kinship::OtherSpace if !asked.plan.new_space => return Err(Refused::OtherSpace { from, to }),
            Kinship::OtherSpace | Kinship::SameSpace => {}
        }
    }
    let swap = Swap::requested(asked.swap_id.to_owned(), (from, to.to_owned()), asked.plan.clone(), now);
    let published = Key::Version { model: standing.model.clone(), digest: asked.to.clone() };
    Ok(standing.asking(None, swap, vec![Fact::Present(published)]))
}

/// Ends the swap under way, or undoes the last one; `ready` are workers that are ready with what the name meant before.
pub(crate) fn roll_back(standing: &Standing<'_>, ready: &[WorkerId], now: u64) -> Result<Asking, Refused> {
    let Some(swap) = standing.swap else { return Err(Refused::NothingBefore) };
    match swap.state {
        SwapState::Requested | SwapState::Preparing => {
            let swap = end(swap, SwapState::Aborted, "called off by hand", now);
            Ok(standing.asking(None, swap, Vec::new()))
        }
        SwapState::Trial => {
            let mut swap = end(swap, SwapState::RolledBack, "called off by hand during the trial", now);
            let alias = standing.alias.map(Alias::untried);
            swap.epoch = alias.as_ref().map_or(swap.epoch, |alias| alias.epoch);
            Ok(standing.asking(alias, swap, Vec::new()))
        }
        SwapState::Committed | SwapState::Retired | SwapState::Aborted | SwapState::RolledBack => {
            go_back(standing, swap, ready, now)
        }
    }
}

/// Makes the name mean what it meant before.
fn go_back(standing: &Standing<'_>, swap: &Swap, ready: &[WorkerId], now: u64) -> Result<Asking, Refused> {
    let back = standing.alias.and_then(Alias::rolled_back).ok_or(Refused::NothingBefore)?;
    let nobody = || Refused::NobodyReady(back.digest.clone());
    let digest = Name::parse(back.digest.as_str()).map_err(|_| nobody())?;
    let worker = ready.first().ok_or_else(nobody)?.clone();
    let rests_on = vec![Fact::Present(Key::Ready { model: standing.model.clone(), digest, worker })];
    let undone = standing.alias.is_some_and(|alias| alias.digest == swap.to);
    let mut swap = if undone {
        end(swap, SwapState::RolledBack, "rolled back by hand", now)
    } else {
        // The last swap came to nothing; it is the one before that is undone.
        let mut swap = swap.clone();
        swap.note(now, "the swap before this one was rolled back by hand");
        swap
    };
    swap.epoch = back.epoch;
    Ok(standing.asking(Some(back), swap, rests_on))
}

/// Asks that what the name meant before be let go: `digest`, or whatever it was.
pub(crate) fn retire(standing: &Standing<'_>, digest: Option<&str>, now: u64) -> Result<Asking, Refused> {
    let before = standing.alias.and_then(|alias| alias.prev.as_deref());
    let (Some(before), Some(swap)) = (before, standing.swap) else { return Err(Refused::NothingBefore) };
    match digest {
        Some(digest) if digest != before => return Err(Refused::NotBefore(digest.to_owned())),
        Some(_) | None => {}
    }
    if swap.state.is_open() && swap.to == before {
        return Err(Refused::InUse(before.to_owned()));
    }
    if swap.retire_requested {
        return Ok(Asking::UnderWay(Box::new(swap.clone())));
    }
    let mut swap = Swap { retire_requested: true, ..swap.clone() };
    swap.note(now, format!("{before} is to be let go"));
    Ok(standing.asking(None, swap, Vec::new()))
}

impl Standing<'_> {
    fn asking(&self, alias: Option<Alias>, swap: Swap, rests_on: Vec<Fact>) -> Asking {
        let step = Step { alias, swap: Some(swap.clone()), rests_on };
        Asking::Write(self.take(step), Box::new(swap))
    }
}

/// `swap`, over.
pub(super) fn end(swap: &Swap, state: SwapState, reason: impl Into<String>, now: u64) -> Swap {
    let reason = reason.into();
    let mut swap = Swap { state, reason: Some(reason.clone()), ..swap.clone() };
    swap.note(now, reason);
    swap
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Record, SwapMode};
    use crate::transaction::Write;

    fn name(text: &str) -> Name {
        Name::parse(text).unwrap()
    }

    /// A swap from `d` to `e`.
    fn swap(state: SwapState) -> Swap {
        let swap = Swap::requested("s".into(), (Some("d".into()), "e".into()), SwapPlan::default(), 0);
        Swap { state, ..swap }
    }

    fn standing<'a>(alias: &'a Alias, swap: Option<&'a Swap>) -> Standing<'a> {
        let swap_modified = if swap.is_some() { 8 } else { 0 };
        Standing { model: name("m"), alias: Some(alias), alias_modified: 7, swap, swap_modified }
    }

    /// What comes of asking for `to`: a refusal, or the state of the swap and whether it is written.
    #[track_caller]
    fn ask(alias: &Alias, swap: Option<&Swap>, to: &str) -> Result<(SwapState, bool), Refused> {
        let (to, plan) = (name(to), SwapPlan::default());
        let asked = Asked { swap_id: "t", to: &to, plan: &plan, kinship: Kinship::SameSpace };
        request(&standing(alias, swap), &asked, 1).map(|asking| match asking {
            Asking::UnderWay(swap) => (swap.state, false),
            Asking::Write(_, swap) => (swap.state, true),
        })
    }

    #[test]
    fn one_swap_at_a_time() {
        let d = Alias::of("d", 1);
        let under_way = || Err(Refused::UnderWay { to: "e".into() });
        assert_eq!(ask(&d, None, "e"), Ok((SwapState::Requested, true)));
        for state in [SwapState::Requested, SwapState::Preparing, SwapState::Trial] {
            assert_eq!(ask(&d, Some(&swap(state)), "f"), under_way());
        }
        assert_eq!(ask(&d, Some(&swap(SwapState::Preparing)), "e"), Ok((SwapState::Preparing, false)));
        assert_eq!(ask(&d, Some(&swap(SwapState::Aborted)), "e"), Ok((SwapState::Requested, true)));
        assert_eq!(ask(&d, None, "d"), Err(Refused::Meant("d".into())));
    }

    #[test]
    fn the_checkpoint_on_trial_is_taken_at_its_word_once() {
        let (d, trial) = (Alias::of("d", 2), swap(SwapState::Trial));
        assert_eq!(ask(&d, Some(&trial), "e"), Ok((SwapState::Trial, true)));
        let hurried = Swap { commit_requested: true, ..trial };
        assert_eq!(ask(&d, Some(&hurried), "e"), Ok((SwapState::Trial, false)));
    }

    #[test]
    fn waves_are_over_when_everybody_has_followed() {
        let e = Alias { prev: Some("d".into()), ..Alias::of("e", 2) };
        let waves = Swap { mode: SwapMode::Waves, ..swap(SwapState::Committed) };
        assert_eq!(ask(&e, Some(&swap(SwapState::Committed)), "f"), Ok((SwapState::Requested, true)));
        assert_eq!(ask(&e, Some(&waves), "f"), Err(Refused::UnderWay { to: "e".into() }));
        assert_eq!(ask(&e, Some(&waves), "e"), Err(Refused::Meant("e".into())));
        let followed = Swap { state: SwapState::Retired, ..waves };
        assert_eq!(ask(&e, Some(&followed), "f"), Ok((SwapState::Requested, true)));
    }

    #[test]
    fn another_index_space_is_asked_for_by_name() {
        let (d, to) = (Alias::of("d", 1), name("e"));
        for (new_space, refused) in [(false, true), (true, false)] {
            let plan = SwapPlan { new_space, ..SwapPlan::default() };
            let asked = Asked { swap_id: "t", to: &to, plan: &plan, kinship: Kinship::OtherSpace };
            let found = request(&standing(&d, None), &asked, 1);
            assert_eq!(matches!(found, Err(Refused::OtherSpace { .. })), refused, "{found:?}");
        }
    }

    #[test]
    fn a_name_goes_on_doing_what_it_does() {
        let (d, to) = (Alias::of("d", 1), name("e"));
        let plan = SwapPlan { new_space: true, ..SwapPlan::default() };
        let asked = Asked { swap_id: "t", to: &to, plan: &plan, kinship: Kinship::OtherKind };
        let found = request(&standing(&d, None), &asked, 1);
        assert_eq!(found, Err(Refused::OtherKind { from: "d".into(), to: "e".into() }));
    }

    /// What a rollback leaves of the swap, and the alias that is written, if one is.
    fn back(alias: &Alias, swap: &Swap, ready: &[&str]) -> Result<(SwapState, Option<Alias>), Refused> {
        let ready: Vec<WorkerId> = ready.iter().map(|text| WorkerId::parse(*text).unwrap()).collect();
        roll_back(&standing(alias, Some(swap)), &ready, 1).map(|asking| match asking {
            Asking::UnderWay(swap) => (swap.state, None),
            Asking::Write(transaction, swap) => {
                let alias = transaction.then.into_iter().find_map(|write| {
                    if let Write::Put(_, Record::Alias(alias)) = write { Some(alias) } else { None }
                });
                (swap.state, alias)
            }
        })
    }

    #[test]
    fn a_rollback_ends_a_swap_or_undoes_it() {
        let d = Alias::of("d", 1);
        assert_eq!(back(&d, &swap(SwapState::Preparing), &[]), Ok((SwapState::Aborted, None)));
        let e = Alias { prev: Some("d".into()), ..Alias::of("e", 2) };
        let committed = swap(SwapState::Committed);
        assert_eq!(back(&e, &committed, &[]), Err(Refused::NobodyReady("d".into())));
        let (state, alias) = back(&e, &committed, &["w"]).unwrap();
        let expected = Alias { leaving: ["e".to_owned()].into(), ..Alias::of("d", 3) };
        assert_eq!((state, alias), (SwapState::RolledBack, Some(expected)));
        assert_eq!(back(&d, &committed, &["w"]), Err(Refused::NothingBefore));
    }

    #[test]
    fn what_was_before_is_retired_when_somebody_asks() {
        let (d, e) = (Alias::of("d", 1), Alias { prev: Some("d".into()), ..Alias::of("e", 2) });
        let committed = swap(SwapState::Committed);
        let asked = |alias: &Alias, digest| retire(&standing(alias, Some(&committed)), digest, 1);
        assert!(matches!(asked(&e, None), Ok(Asking::Write(_, swap)) if swap.retire_requested));
        assert_eq!(asked(&e, Some("x")), Err(Refused::NotBefore("x".into())));
        assert_eq!(asked(&d, None), Err(Refused::NothingBefore));
        let back = Swap { to: "d".into(), ..swap(SwapState::Preparing) };
        assert_eq!(retire(&standing(&e, Some(&back)), None, 1), Err(Refused::InUse("d".into())));
    }
}
