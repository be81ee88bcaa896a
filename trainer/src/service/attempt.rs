//! One attempt at a job: its ranks, from their start to the end of the last.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::Duration;

use cluster::LeaseId;
use tokio::sync::watch;
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::devices::Share;
use super::journal::{Journal, Lost};
use super::ranks::{Heard, Plan, Ranks, TRY_AGAIN};

/// How often the record is written, and wishes are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How long other ranks may take to end by themselves once one has failed: their last words may say more.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The model is there.
    Trained,
    /// Something died, or hung; another attempt goes on from the newest checkpoint.
    Died(String),
    /// It cannot be done.
    Failed(String),
    /// It is wanted no more.
    Cancelled,
    /// This trainer leaves.
    Leaving,
    /// Somebody else owns the job.
    Lost,
}

/// What an attempt runs under.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    /// The lease that the job is owned under.
    pub(super) lease: LeaseId,
    /// The trainer's lease.
    pub(super) leases: watch::Receiver<Option<LeaseId>>,
    /// What its ranks run on; given back when they have ended for good.
    pub(super) share: Option<Share>,
    /// Ends the attempt.
    pub(super) stop: &'a CancellationToken,
    /// Where tasks belong.
    pub(super) tasks: &'a TaskTracker,
}

impl Watch<'_> {
    /// Waits until the job may be somebody else's. Cancel safe.
    pub(super) async fn lost(&mut self) {
        let own = self.lease;
        // An error means that the trainer has given its place up, and all jobs with it.
        let _ = self.leases.wait_for(|now| *now != Some(own)).await;
    }
}

/// Runs the ranks of `plan`. They are gone when this returns.
pub(super) async fn run(plan: &Plan, journal: &mut Journal, watch: &mut Watch<'_>) -> End {
    let mut ranks = match Ranks::start(plan, watch.tasks) {
        Ok(ranks) => ranks,
        Err(error) => return End::Died(format!("ranks cannot be started: {error}")),
    };
    let end = attend(&mut ranks, plan, journal, watch).await;
    // Ends those that are left, and waits for that: nobody may write into the job's directory after this.
    let Ranks { mut heard, end: leash } = ranks;
    drop(leash);
    while heard.recv().await.is_some() {}
    end
}

async fn attend(ranks: &mut Ranks, plan: &Plan, journal: &mut Journal, watch: &mut Watch<'_>) -> End {
    let silence = Duration::from_secs(plan.timeout_seconds);
    let (mut tick, mut heard_at) = (time::interval(TICK), Instant::now());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = Failures::default();
    let (mut is_trained, stop) = (false, watch.stop.clone());
    loop {
        // Cancel safe, all of them.
        tokio::select! {
            heard = ranks.next() => match heard {
                Some(Heard::Told(told)) => {
                    heard_at = Instant::now();
                    is_trained |= matches!(told, crate::rank::Told::Finished { .. });
                    journal.told(told);
                }
                Some(Heard::Log { rank, line }) => {
                    journal.log(format!("rank {rank}: {line}"));
                    failures.last_words.insert(rank, line);
                }
                Some(Heard::Ended { rank, status }) => failures.ended(rank, status),
                None => return failures.conclude(is_trained),
            },
            _ = tick.tick() => {
                // An etcd that does not answer must not keep ranks alive whose job is somebody else's.
                let cancelled = tokio::select! {
                    cancelled = look(journal) => cancelled,
                    () = watch.lost() => Err(Lost),
                };
                match cancelled {
                    Ok(false) => {}
                    Ok(true) => return End::Cancelled,
                    Err(Lost) => return End::Lost,
                }
                if failures.since.is_some_and(|since| since.elapsed() > LAST_WORDS) {
                    return failures.conclude(false);
                }
                // Without a word: what ranks wait for is bounded by the same time, and told by the one that waits.
                if heard_at.elapsed() > silence + 2 * LAST_WORDS {
                    return End::Died(format!("no step for {} s: a rank hangs", silence.as_secs()));
                }
            }
            () = watch.lost() => return End::Lost,
            () = stop.cancelled() => return End::Leaving,
        }
    }
}

/// Writes what is due, and answers whether the job is wanted no more.
async fn look(journal: &mut Journal) -> Result<bool, Lost> {
    journal.write().await?;
    Ok(journal.is_cancelled().await)
}

/// Ranks that ended otherwise than they should.
#[derive(Debug, Default)]
struct Failures {
    since: Option<Instant>,
    /// What another attempt may do better.
    died: Option<String>,
    /// What it may not.
    failed: Option<String>,
    /// The last line of each.
    last_words: BTreeMap<usize, String>,
}

impl Failures {
    fn ended(&mut self, rank: usize, status: ExitStatus) {
        if status.success() {
            return;
        }
        self.since.get_or_insert_with(Instant::now);
        let said = self.last_words.get(&rank).map(|words| format!("rank {rank}: {words}"));
        match status.code() {
            Some(code) if code != i32::from(TRY_AGAIN) => {
                let why = said.unwrap_or_else(|| format!("rank {rank} ended with code {code}"));
                self.failed.get_or_insert(why);
            }
            Some(_) => {
                let why = said.unwrap_or_else(|| format!("rank {rank} gave up"));
                self.died.get_or_insert(why);
            }
            None => {
                // A rank that was killed is why others gave up.
                self.died = Some(format!("rank {rank} was killed ({status})"));
            }
        }
    }

    fn conclude(self, is_trained: bool) -> End {
        match (self.failed, self.died) {
            (Some(why), _) => End::Failed(why),
            (None, Some(why)) => End::Died(why),
            (None, None) if is_trained => End::Trained,
            (None, None) => End::Died("ranks ended before the model was there".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn code(code: i32) -> ExitStatus {
        ExitStatus::from_raw(code << 8)
    }

    #[test]
    fn what_another_attempt_may_mend_is_tried_again() {
        let mut failures = Failures::default();
        failures.last_words.insert(1, "the others are gone".to_owned());
        failures.ended(1, code(75));
        failures.ended(0, ExitStatus::from_raw(9));
        assert!(matches!(failures.conclude(false), End::Died(why) if why.contains("rank 0 was killed")));
        let mut failures = Failures::default();
        failures.last_words.insert(1, "no space left".to_owned());
        failures.ended(0, code(75));
        failures.ended(1, code(74));
        assert_eq!(failures.conclude(false), End::Failed("rank 1: no space left".to_owned()));
        let mut fine = Failures::default();
        fine.ended(0, code(0));
        assert_eq!(fine.conclude(true), End::Trained);
    }
}
