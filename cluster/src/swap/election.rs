//! Who leads: the gateway whose lease the leader's key is under. Pure: what is known in, what to do next out.
//!
//! A lead is held as long as nobody says otherwise, and is never proof of anything: each step of a leader compares its
//! [`Fence`] in the transaction itself. So nothing here has to be exact in time, only to end in one leader.

use std::time::Duration;

use super::step::Fence;
use crate::backoff::Backoff;
use crate::lease::LeaseId;

/// Between two tries while somebody else is believed to lead, and after failures.
const RETRY: Backoff = Backoff { first: Duration::from_millis(500), ceiling: Duration::from_secs(5) };

/// What a candidate does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Puts the leader's key under the lease, if there is none.
    Campaign(LeaseId),
    /// Leads.
    Lead(Fence),
    /// Leaves the lead to others.
    Follow,
}

/// What came of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Campaign {
    /// The leader's key is under our lease, put there now or before.
    Won(Fence),
    /// Somebody else leads.
    Lost,
    /// No answer.
    Failed,
}

/// A candidate's standing, as far as it knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Election {
    lead: Option<(LeaseId, Fence)>,
    /// No campaign before this.
    try_at: Duration,
    /// In a row.
    failures: u32,
}

impl Election {
    /// Somebody who does not lead.
    pub(crate) fn new() -> Self {
        Self { lead: None, try_at: Duration::ZERO, failures: 0 }
    }

    /// What to do at `now`, a time since the process began, being registered under `lease`, if at all, and with or
    /// without another leader in view.
    pub(crate) fn next(&mut self, lease: Option<LeaseId>, another_leads: bool, now: Duration) -> Act {
        let Some(lease) = lease else {
            self.lead = None;
            return Act::Follow;
        };
        match self.lead {
            Some((held, fence)) if held == lease => Act::Lead(fence),
            Some(_) | None if now < self.try_at => Act::Follow,
            // Somebody who is in view and whose key is gone is seen to be gone soon: the view is followed.
            Some(_) | None if another_leads && self.failures == 0 => Act::Follow,
            Some(_) | None => Act::Campaign(lease),
        }
    }

    /// Takes in what came of the campaign under `lease` by `now`; `roll` is drawn from `[0, 1)`.
    pub(crate) fn campaigned(&mut self, (lease, campaign): (LeaseId, Campaign), now: Duration, roll: f64) {
        self.lead = None;
        match campaign {
            Campaign::Won(fence) => {
                self.lead = Some((lease, fence));
                self.failures = 0;
            }
            Campaign::Lost => {
                self.failures = 0;
                self.try_at = now + RETRY.delay(0, roll);
            }
            Campaign::Failed => {
                self.try_at = now + RETRY.delay(self.failures, roll);
                self.failures = self.failures.saturating_add(1);
            }
        }
    }

    /// A step was not taken: maybe because somebody else leads by now. The next campaign tells.
    pub(crate) fn doubt(&mut self) {
        self.lead = None;
        self.failures = 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: LeaseId = 7;
    const FENCE: Fence = Fence { created: 3 };
    /// Longer than any wait between tries.
    const LATER: Duration = Duration::from_secs(60);

    fn after(campaign: Campaign) -> Election {
        let mut election = Election::new();
        election.campaigned((LEASE, campaign), Duration::ZERO, 0.5);
        election
    }

    #[test]
    fn who_is_registered_stands_where_nobody_leads() {
        assert_eq!(Election::new().next(None, false, LATER), Act::Follow);
        assert_eq!(Election::new().next(Some(LEASE), true, LATER), Act::Follow);
        assert_eq!(Election::new().next(Some(LEASE), false, Duration::ZERO), Act::Campaign(LEASE));
    }

    #[test]
    fn a_lead_is_held_until_the_lease_is_another() {
        let mut election = after(Campaign::Won(FENCE));
        assert_eq!(election.next(Some(LEASE), false, Duration::ZERO), Act::Lead(FENCE));
        assert_eq!(election.next(Some(LEASE), true, LATER), Act::Lead(FENCE));
        assert_eq!(election.next(Some(LEASE + 1), false, LATER), Act::Campaign(LEASE + 1));
        assert_eq!(election.next(None, false, LATER), Act::Follow);
        assert_eq!(election.next(Some(LEASE), false, LATER), Act::Campaign(LEASE));
    }

    #[test]
    fn who_lost_waits_and_then_stands_unless_another_leads() {
        let mut election = after(Campaign::Lost);
        assert_eq!(election.next(Some(LEASE), false, Duration::ZERO), Act::Follow);
        assert_eq!(election.next(Some(LEASE), true, LATER), Act::Follow);
        assert_eq!(election.next(Some(LEASE), false, LATER), Act::Campaign(LEASE));
    }

    #[test]
    fn who_got_no_answer_asks_again_whoever_is_in_view() {
        let mut election = after(Campaign::Failed);
        assert_eq!(election.next(Some(LEASE), true, Duration::ZERO), Act::Follow);
        assert_eq!(election.next(Some(LEASE), true, LATER), Act::Campaign(LEASE));
        let mut doubting = after(Campaign::Won(FENCE));
        doubting.doubt();
        assert_eq!(doubting.next(Some(LEASE), true, LATER), Act::Campaign(LEASE));
    }
}
