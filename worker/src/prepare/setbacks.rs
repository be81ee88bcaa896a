//! What could not be made ready, and when to try it again. Pure; time is given.

use std::collections::BTreeMap;
use std::time::Duration;

use cluster::{Backoff, NackReason};
use tokio::time::Instant;

use super::failure::Failure;
use super::plan::{Room, Task};
use crate::catalogue::Id;

/// How long a refusal holds, here and in etcd.
const REFUSED_FOR: Duration = Duration::from_secs(3600);
/// Waits between tries where somebody does not answer.
const RETRY: Backoff = Backoff { first: Duration::from_millis(500), ceiling: Duration::from_secs(20) };
/// Between looks for files that are not to be had.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// So long before its deadline a swap is told that the store does not answer: it should know the reason by then.
const MARGIN: Duration = Duration::from_secs(5);

/// Checkpoints that could not be made ready.
#[derive(Debug, Default)]
pub struct Setbacks(BTreeMap<Id, Setback>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setback {
    /// As whoever asks is told.
    pub reason: NackReason,
    /// What happened, for people.
    pub detail: String,
    /// The task it happened to.
    task: Task,
    /// Tries that nobody answered.
    failures: u32,
    /// When to try the same again.
    again: Instant,
    /// Whether it was refused for good, as far as this task goes.
    refused: bool,
}

impl Setbacks {
    /// Whether a task may be begun now.
    #[must_use]
    pub fn allow(&self, task: &Task, now: Instant) -> bool {
        self.0.get(&task.id).is_none_or(|setback| now >= setback.again || setback.is_mended_by(task))
    }

    /// Takes note of a failure; answers it where the cluster is to be told that this worker cannot. `deadline` is that
    /// of the swap, if there is one, and `roll` is drawn from `[0, 1)`.
    pub fn note(
        &mut self,
        task: &Task,
        failure: Failure,
        (now, deadline): (Instant, Option<Instant>),
        roll: f64,
    ) -> Option<&Setback> {
        let old = self.0.remove(&task.id).filter(|old| old.task.swap_id == task.swap_id);
        let failures = old.map_or(0, |old| old.failures);
        let setback = |reason, detail, again, refused| Setback {
            reason,
            detail,
            task: task.clone(),
            failures: failures + 1,
            again,
            refused,
        };
        let for_good = now + REFUSED_FOR;
        let setback = match failure {
            Failure::Refused { reason, detail } => setback(reason, detail, for_good, true),
            Failure::Absent(detail) if task.swap_id.is_some() => {
                setback(NackReason::Store, detail, for_good, true)
            }
            Failure::Absent(detail) => setback(NackReason::Store, detail, now + LOOK_AGAIN, false),
            Failure::Later(detail) => {
                let again = now + RETRY.delay(failures, roll);
                match deadline {
                    Some(deadline) if again + MARGIN > deadline => {
                        setback(NackReason::Store, detail, for_good, true)
                    }
                    Some(_) | None => setback(NackReason::Store, detail, again, false),
                }
            }
            Failure::Cancelled => return None,
        };
        self.0.insert(task.id.clone(), setback);
        self.of(&task.id).filter(|setback| setback.refused)
    }

    /// Forgets that a checkpoint could not be made ready.
    pub fn forget(&mut self, id: &Id) {
        self.0.remove(id);
    }

    /// Forgets what was refused for want of memory: there is more. Answers which those were.
    pub fn forget_shortages(&mut self) -> Vec<Id> {
        let short = self.0.iter().filter(|(_, setback)| setback.reason == NackReason::Memory);
        let short: Vec<Id> = short.map(|(id, _)| id.clone()).collect();
        self.0.retain(|id, _| !short.contains(id));
        short
    }

    /// What was the matter with a checkpoint the last time.
    #[must_use]
    pub fn of(&self, id: &Id) -> Option<&Setback> {
        self.0.get(id)
    }

    /// What is the matter with a task that may not be begun.
    #[must_use]
    pub fn get(&self, task: &Task) -> Option<&Setback> {
        self.0.get(&task.id).filter(|setback| !setback.is_mended_by(task))
    }

    /// When the next of these tasks may be begun.
    #[must_use]
    pub fn next(&self, tasks: &[Task]) -> Option<Instant> {
        tasks.iter().filter_map(|task| self.get(task)).map(|setback| setback.again).min()
    }
}

impl Setback {
    /// Whether the old checkpoint had been let go before.
    #[must_use]
    pub fn made_room(&self) -> bool {
        self.task.room == Room::Made
    }

    /// Whether `task` is another matter: for another swap, or with more room.
    fn is_mended_by(&self, task: &Task) -> bool {
        let has_room = self.reason == NackReason::Memory && task.room == Room::Made && !self.made_room();
        self.task.swap_id != task.swap_id || has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(swap: Option<&str>, room: Room) -> Task {
        Task { id: Id::new("m", "d"), swap_id: swap.map(ToOwned::to_owned), room }
    }

    fn later() -> Failure {
        Failure::Later("no answer".into())
    }

    #[test]
    fn a_refusal_holds_for_its_swap_and_its_room() {
        let (now, mut setbacks) = (Instant::now(), Setbacks::default());
        let first = task(Some("s"), Room::Beside);
        assert!(setbacks.allow(&first, now));
        let refused = Failure::refused(NackReason::Memory, "too large");
        let told = setbacks.note(&first, refused, (now, None), 0.0).unwrap();
        assert_eq!(
            (told.reason, told.detail.as_str(), told.made_room()),
            (NackReason::Memory, "too large", false)
        );

        assert!(!setbacks.allow(&first, now + Duration::from_secs(600)));
        assert!(setbacks.get(&first).is_some());
        assert!(setbacks.allow(&first, now + REFUSED_FOR));
        assert!(setbacks.allow(&task(Some("t"), Room::Beside), now), "another swap");
        assert!(setbacks.allow(&task(Some("s"), Room::Made), now), "the old one has gone");
        assert!(!setbacks.allow(&task(Some("s"), Room::Awaited), now));
        setbacks.forget(&first.id);
        assert!(setbacks.allow(&first, now));
    }

    #[test]
    fn shortages_end_when_something_is_let_go() {
        let (now, mut setbacks) = (Instant::now(), Setbacks::default());
        let short = task(Some("s"), Room::Beside);
        setbacks.note(&short, Failure::refused(NackReason::Memory, "too large"), (now, None), 0.0);
        let damaged = Task { id: Id::new("m", "damaged"), ..short.clone() };
        setbacks.note(&damaged, Failure::refused(NackReason::Checksum, "damaged"), (now, None), 0.0);
        assert_eq!(setbacks.forget_shortages(), std::slice::from_ref(&short.id));
        assert!(setbacks.allow(&short, now) && !setbacks.allow(&damaged, now));
        assert!(setbacks.of(&damaged.id).is_some() && setbacks.of(&short.id).is_none());
    }

    #[test]
    fn more_room_does_not_mend_a_damaged_file() {
        let (now, mut setbacks) = (Instant::now(), Setbacks::default());
        let refused = Failure::refused(NackReason::Checksum, "damaged");
        setbacks.note(&task(Some("s"), Room::Beside), refused, (now, None), 0.0);
        assert!(!setbacks.allow(&task(Some("s"), Room::Made), now));
    }

    #[test]
    fn a_store_that_does_not_answer_is_asked_again_until_the_deadline_is_near() {
        let (start, mut setbacks) = (Instant::now(), Setbacks::default());
        let (task, deadline) = (task(Some("s"), Room::Beside), Some(start + Duration::from_secs(60)));
        let (mut now, mut waits) = (start, Vec::new());
        let told = loop {
            if let Some(told) = setbacks.note(&task, later(), (now, deadline), 1.0) {
                break told.clone();
            }
            assert!(!setbacks.allow(&task, now));
            let again = setbacks.next(std::slice::from_ref(&task)).unwrap();
            waits.push((again - now).as_millis());
            now = again;
            assert!(setbacks.allow(&task, now));
        };
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 20_000]);
        assert_eq!((told.reason, told.detail.as_str()), (NackReason::Store, "no answer"));
        assert!(!setbacks.allow(&task, now + Duration::from_secs(600)));
    }

    #[test]
    fn without_a_swap_nobody_is_told_that_files_are_not_to_be_had() {
        let (now, mut setbacks) = (Instant::now(), Setbacks::default());
        let absent = || Failure::Absent("not published".into());
        assert!(setbacks.note(&task(None, Room::Beside), absent(), (now, None), 0.0).is_none());
        assert!(!setbacks.allow(&task(None, Room::Beside), now));
        assert!(setbacks.allow(&task(None, Room::Beside), now + LOOK_AGAIN));
        let told = setbacks.note(&task(Some("s"), Room::Beside), absent(), (now, None), 0.0);
        assert_eq!(told.map(|told| told.reason), Some(NackReason::Store));
    }

    #[test]
    fn what_was_given_up_is_no_setback() {
        let (now, mut setbacks) = (Instant::now(), Setbacks::default());
        assert!(setbacks.note(&task(None, Room::Beside), Failure::Cancelled, (now, None), 0.0).is_none());
        assert!(setbacks.allow(&task(None, Room::Beside), now));
    }
}
