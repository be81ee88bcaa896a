//! Whether to believe a list: stale beats empty.

use crate::name::WorkerId;
use crate::view::View;

/// What to do with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the view from now on.
    Apply,
    /// It is not believed: the last view stays, and somebody should look.
    Refuse {
        /// Workers that answer and are missing from the list.
        missing: usize,
        /// Workers of the last view that answer.
        answering: usize,
    },
}

/// Judges a list by the workers we can reach ourselves: one that has lost more than half of the workers that still
/// answer says more about etcd (wiped, restored from an old snapshot, every lease expired at once) than about them.
///
/// Workers that said they were draining may go, though they answer to the end. What a believed list says of names is
/// judged apart, by the epochs that were seen: [`View::overtaken`].
pub fn accept(old: &View, new: &View, answering: impl Fn(&WorkerId) -> bool) -> Verdict {
    let staying = old.workers.values().filter(|worker| !worker.draining).map(|worker| &worker.id);
    let alive: Vec<&WorkerId> = staying.filter(|id| answering(id)).collect();
    let missing = alive.iter().filter(|id| !new.workers.contains_key(**id)).count();
    if 2 * missing > alive.len() {
        Verdict::Refuse { missing, answering: alive.len() }
    } else {
        Verdict::Apply
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::tests::{id, view};

    #[track_caller]
    fn check(old: &[&str], new: &[&str], answering: &[&str], expected: Verdict) {
        let answering = |worker: &WorkerId| answering.contains(&worker.as_str());
        assert_eq!(accept(&view(old), &view(new), answering), expected);
    }

    #[test]
    fn a_list_is_believed_when_nobody_who_answers_is_missing() {
        check(&[], &[], &[], Verdict::Apply);
        check(&[], &["a"], &[], Verdict::Apply);
        check(&["a", "b"], &["a", "b", "c"], &["a", "b"], Verdict::Apply);
    }

    #[test]
    fn the_dead_may_all_go_at_once() {
        check(&["a", "b", "c"], &[], &[], Verdict::Apply);
        check(&["a", "b", "c"], &["c"], &["c"], Verdict::Apply);
        check(&["a", "b"], &["c", "d"], &[], Verdict::Apply);
    }

    #[test]
    fn half_of_those_who_answer_may_go() {
        check(&["a", "b"], &["a"], &["a", "b"], Verdict::Apply);
        check(&["a", "b", "c", "d"], &["a", "b"], &["a", "b", "c", "d"], Verdict::Apply);
    }

    #[test]
    fn more_than_half_of_those_who_answer_may_not() {
        let refuse = |missing, answering| Verdict::Refuse { missing, answering };
        check(&["a"], &[], &["a"], refuse(1, 1));
        check(&["a", "b", "c"], &["a"], &["a", "b", "c"], refuse(2, 3));
        check(&["a", "b", "c", "d"], &["a", "d"], &["b", "c", "d"], refuse(2, 3));
        check(&["a", "b"], &["c", "d", "e"], &["a", "b"], refuse(2, 2));
    }

    #[test]
    fn who_said_goodbye_may_go() {
        let mut old = view(&["a", "b"]);
        old.workers.get_mut(&id("a")).unwrap().draining = true;
        assert_eq!(accept(&old, &view(&["b"]), |_| true), Verdict::Apply);
        assert_eq!(accept(&old, &view(&[]), |_| true), Verdict::Refuse { missing: 1, answering: 1 });
    }
}
