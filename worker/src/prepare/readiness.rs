//! Whether a worker serves what it should, for operators.

use telemetry::admin::Readiness;

use super::plan::Task;
use super::setbacks::Setbacks;

/// What to tell of a worker that has `seen` what the cluster wants, or not, and `offers` something, or nothing.
/// `tasks` is what is still to be made ready.
///
/// It is ready when nothing is left to be done but what it cannot do. Where it offers nothing because of that, it is
/// not.
pub(super) fn readiness<'a>(
    (seen, offers): (bool, bool),
    tasks: impl IntoIterator<Item = &'a Task>,
    setbacks: &Setbacks,
) -> Readiness {
    if !seen {
        let waits = || Readiness::NotReady("the cluster does not answer yet".to_owned());
        return if offers { Readiness::Ready } else { waits() };
    }
    let mut failed = None;
    for task in tasks {
        match setbacks.get(task) {
            None => return Readiness::NotReady(format!("preparing {}", task.id)),
            Some(setback) => failed = failed.or(Some(format!("{}: {}", task.id, setback.detail))),
        }
    }
    match failed {
        Some(reason) if !offers => Readiness::NotReady(reason),
        Some(_) | None => Readiness::Ready,
    }
}

#[cfg(test)]
mod tests {
    use cluster::NackReason;
    use tokio::time::Instant;

    use super::*;
    use crate::catalogue::Id;
    use crate::prepare::failure::Failure;
    use crate::prepare::plan::Room;

    fn task(digest: &str) -> Task {
        Task { id: Id::new("m", digest), swap_id: None, room: Room::Beside }
    }

    /// With `failed` refused.
    #[track_caller]
    fn check((seen, offers): (bool, bool), tasks: &[&str], expected: Result<(), &str>) {
        let mut setbacks = Setbacks::default();
        let refused = Failure::refused(NackReason::Golden, "cosine 0.5");
        setbacks.note(&task("failed"), refused, (Instant::now(), None), 0.0);
        let tasks: Vec<Task> = tasks.iter().map(|digest| task(digest)).collect();
        match (readiness((seen, offers), &tasks, &setbacks), expected) {
            (Readiness::Ready, Ok(())) => {}
            (Readiness::NotReady(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (told, _) => panic!("{told:?}"),
        }
    }

    #[test]
    fn a_worker_is_ready_when_nothing_is_left_to_do() {
        check((true, false), &[], Ok(()));
        check((true, true), &["d"], Err("preparing m@d"));
        check((true, false), &["failed", "d"], Err("preparing m@d"));
    }

    #[test]
    fn what_it_cannot_do_keeps_it_only_where_it_does_nothing_else() {
        check((true, true), &["failed"], Ok(()));
        check((true, false), &["failed"], Err("m@failed: cosine 0.5"));
    }

    #[test]
    fn what_was_brought_along_needs_no_cluster() {
        check((false, true), &[], Ok(()));
        check((false, false), &[], Err("does not answer"));
    }
}
