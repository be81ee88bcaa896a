//! What happened, over schedules. Laws hold easily where nothing happens.

use std::fmt;

use crate::record::{Swap, SwapMode, SwapState};

/// Something that schedules are there to meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Met {
    Commit,
    Abort,
    Rollback,
    Retired,
    Trial,
    /// A commit of a swap whose checkpoints did not fit beside each other.
    Waves,
    Answer,
    /// A call that started again at another epoch.
    StartedAgain,
    /// A call that insisted on a checkpoint that the name did not mean, and was answered.
    Insisted,
    /// Workers without room for both that follow after a commit.
    Straggler,
    /// An election of another gateway than the one before.
    LeaderChange,
    /// Of those, while a swap was open.
    InMidSwap,
    /// A request of anybody's that never arrived.
    LostRequest,
    /// A write of a member's that was carried out, and the member was not told.
    LostAnswer,
    /// A request that arrived twice.
    Doubled,
    /// A call that its caller gave up, and that may be carried out all the same.
    GivenUp,
    /// A renewal that did not arrive, or whose answer did not.
    LostRenewal,
    /// A member that was told that its lease is gone.
    LeaseLost,
    /// A lease that ran out while its holder lived.
    RunsOut,
    /// A lease that was over for a second at least before etcd noticed.
    RunsOutLate,
    /// A member whose write found another of its own there, that came late.
    MemberConflict,
    /// A write of a process that was there no more.
    Posthumous,
    /// A commit that fewer workers were ready for than were counted, and half of them at least.
    FleetShrank,
    /// A refusal that was taken back.
    TakenBack,
    /// A schedule with two models.
    TwoModels,
    /// A checkpoint that was let go while another model was on trial.
    LetGoDuringTrial,
}

/// What it is called, and in how many schedules it happens once at least.
const EXPECTED: [(Met, &str, u64); 26] = [
    (Met::Commit, "commits", 2),
    (Met::Abort, "aborts", 20),
    (Met::Rollback, "rollbacks", 100),
    (Met::Retired, "retired", 10),
    (Met::Trial, "trials", 20),
    (Met::Waves, "waves", 100),
    (Met::Answer, "answers", 1),
    (Met::StartedAgain, "calls that started again", 100),
    (Met::Insisted, "answers by what the name does not mean", 20),
    (Met::Straggler, "workers that follow after a commit", 1_000),
    (Met::LeaderChange, "leader changes", 4),
    (Met::InMidSwap, "leader changes in mid swap", 10),
    (Met::LostRequest, "requests lost", 1),
    (Met::LostAnswer, "writes of members carried out without an answer", 4),
    (Met::Doubled, "requests doubled", 1),
    (Met::GivenUp, "calls given up", 4),
    (Met::LostRenewal, "renewals lost", 2),
    (Met::LeaseLost, "leases found lost", 2),
    (Met::RunsOut, "leases of the living that ran out", 2),
    (Met::RunsOutLate, "leases that ran out late", 10),
    (Met::MemberConflict, "members that met a late write of their own", 10),
    (Met::Posthumous, "writes of the dead", 200),
    (Met::FleetShrank, "commits of a fleet that shrank", 400),
    (Met::TakenBack, "refusals taken back", 50),
    (Met::TwoModels, "schedules with two models", 5),
    (Met::LetGoDuringTrial, "checkpoints let go during a trial of another model", 400),
];

/// Counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally([u64; EXPECTED.len()]);

impl Tally {
    pub(super) fn count(&mut self, what: Met) {
        self.0[what as usize] += 1;
    }

    /// Counts it so many times: once or not at all where that is a yes or a no.
    pub(super) fn count_if(&mut self, times: impl Into<u64>, what: Met) {
        self.0[what as usize] += times.into();
    }

    /// Counts what a swap that was in `old` has come to.
    pub(super) fn count_swap(&mut self, old: Option<SwapState>, new: &Swap) {
        if old == Some(new.state) {
            return;
        }
        match new.state {
            SwapState::Requested | SwapState::Preparing => {}
            SwapState::Trial => self.count(Met::Trial),
            SwapState::Committed => {
                self.count(Met::Commit);
                self.count_if(new.mode == SwapMode::Waves, Met::Waves);
            }
            SwapState::Retired => self.count(Met::Retired),
            SwapState::Aborted => self.count(Met::Abort),
            SwapState::RolledBack => self.count(Met::Rollback),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }

    /// Holds that each thing happened in its share of `schedules`.
    pub(super) fn assert_everything_happens(&self, schedules: u64) {
        for (met, what, one_in) in EXPECTED {
            let count = self.0[met as usize];
            assert!(count * one_in >= schedules, "too few {what}: {count} in {schedules} schedules");
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        EXPECTED.iter().try_for_each(|(met, what, _)| writeln!(f, "{:>10} {what}", self.0[*met as usize]))
    }
}
