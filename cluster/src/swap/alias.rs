//! What a name means after each step. Epochs rise with every change of who is answered by what, and whoever answered
//! somebody is not forgotten: it is before, or leaving.

use crate::record::{Alias, Canary, Shadow, Swap};

impl Alias {
    /// After the commit of `swap`: everybody is answered by the new checkpoint.
    pub(super) fn committed(old: Option<&Self>, swap: &Swap) -> Self {
        let mut new = Self { swap_id: Some(swap.swap_id.clone()), ..Self::of(swap.to.as_str(), 1) };
        if let Some(old) = old {
            new.epoch = old.epoch.saturating_add(1);
            new.prev = Some(old.digest.clone());
            new.leaving = old.everything_but(&[&swap.to, &old.digest]);
        }
        new
    }

    /// While `swap` is on trial: some callers are answered by the new checkpoint, or some calls tried on it.
    pub(super) fn tried(&self, swap: &Swap) -> Self {
        let canary = swap.plan.canary.as_ref().map(|plan| Canary {
            digest: swap.to.clone(),
            per_mille: plan.per_mille,
            salt: swap.swap_id.clone(),
        });
        let per_mille = swap.plan.shadow_per_mille;
        let shadow = (per_mille > 0).then(|| Shadow { digest: swap.to.clone(), per_mille });
        let mut leaving = self.leaving.clone();
        leaving.remove(&swap.to);
        let swap_id = Some(swap.swap_id.clone());
        Self { epoch: self.epoch.saturating_add(1), swap_id, canary, shadow, leaving, ..self.clone() }
    }

    /// After a trial that was ended: nobody is answered by what was tried.
    pub(super) fn untried(&self) -> Self {
        let untried = Self { canary: None, shadow: None, ..self.clone() };
        let leaving = self.everything_but(&untried.lasting());
        Self { epoch: self.epoch.saturating_add(1), leaving, ..untried }
    }

    /// After a rollback: everybody is answered by what answered before. None where there is nothing to go back to.
    pub(super) fn rolled_back(&self) -> Option<Self> {
        let prev = self.prev.as_ref()?;
        let epoch = self.epoch.saturating_add(1);
        Some(Self { leaving: self.everything_but(&[prev]), ..Self::of(prev.as_str(), epoch) })
    }

    /// Without the checkpoint from before, or one that was leaving: no call is left on it.
    pub(super) fn without(&self, digest: &str) -> Self {
        let mut alias = self.clone();
        alias.prev = alias.prev.filter(|prev| prev != digest);
        alias.leaving.remove(digest);
        alias
    }

    /// What the name keeps for as long as nothing is changed: all but what is leaving.
    fn lasting(&self) -> Vec<&str> {
        let prev = self.prev.as_deref();
        std::iter::once(self.digest.as_str()).chain(prev).collect()
    }

    /// All that is kept now, but for `digests`.
    fn everything_but(&self, digests: &[&str]) -> std::collections::BTreeSet<String> {
        self.keeps().into_iter().filter(|digest| !digests.contains(digest)).map(ToOwned::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::record::{CanaryPlan, SwapPlan};

    fn swap() -> Swap {
        let plan = SwapPlan { canary: Some(CanaryPlan::of(50)), shadow_per_mille: 10, ..SwapPlan::default() };
        Swap::requested("s".into(), (Some("d".into()), "e".into()), plan, 0)
    }

    fn set(digests: &[&str]) -> BTreeSet<String> {
        digests.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_new_name_begins_at_epoch_one() {
        let alias = Alias::committed(None, &swap());
        assert_eq!(alias, Alias { swap_id: Some("s".into()), ..Alias::of("e", 1) });
    }

    #[test]
    fn a_commit_keeps_what_answered_before_to_go_back_to() {
        let old = Alias { leaving: set(&["e", "x"]), ..Alias::of("d", 4) };
        let alias = Alias::committed(Some(&old), &swap());
        assert_eq!((alias.digest.as_str(), alias.epoch, alias.prev.as_deref()), ("e", 5, Some("d")));
        assert_eq!(alias.leaving, set(&["x"]));
    }

    #[test]
    fn what_answered_before_that_is_not_forgotten_without_being_let_go() {
        let old = Alias { prev: Some("c".into()), ..Alias::of("d", 4) };
        assert_eq!(Alias::committed(Some(&old), &swap()).leaving, set(&["c"]));
    }

    #[test]
    fn a_trial_begins_and_ends_with_an_epoch_of_its_own() {
        let old = Alias { leaving: set(&["e"]), prev: Some("c".into()), ..Alias::of("d", 4) };
        let tried = old.tried(&swap());
        assert_eq!((tried.digest.as_str(), tried.epoch, tried.prev.as_deref()), ("d", 5, Some("c")));
        assert_eq!(tried.canary, Some(Canary { digest: "e".into(), per_mille: 50, salt: "s".into() }));
        assert_eq!(tried.shadow, Some(Shadow { digest: "e".into(), per_mille: 10 }));
        assert_eq!(tried.leaving, set(&[]));

        let untried = tried.untried();
        assert_eq!((untried.digest.as_str(), untried.epoch, untried.prev.as_deref()), ("d", 6, Some("c")));
        assert_eq!((&untried.canary, &untried.shadow, untried.leaving), (&None, &None, set(&["e"])));
        assert_eq!(Alias::committed(Some(&tried), &swap()).leaving, set(&["c"]), "nothing else was tried");
    }

    #[test]
    fn a_rollback_goes_back_once() {
        let alias = Alias { prev: Some("c".into()), leaving: set(&["c", "x"]), ..Alias::of("d", 4) };
        let back = alias.rolled_back().unwrap();
        assert_eq!((back.digest.as_str(), back.epoch, &back.prev), ("c", 5, &None));
        assert_eq!(back.leaving, set(&["d", "x"]));
        assert_eq!(back.rolled_back(), None);
    }

    #[test]
    fn what_is_let_go_is_gone_and_nobody_is_answered_otherwise() {
        let alias = Alias { prev: Some("c".into()), leaving: set(&["x", "y"]), ..Alias::of("d", 4) };
        let expected = Alias { prev: None, ..alias.clone() };
        assert_eq!(alias.without("c"), expected);
        assert_eq!(alias.without("x").leaving, set(&["y"]));
        assert_eq!(alias.without("d"), alias);
    }
}
