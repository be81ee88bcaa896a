//! Whether a process that died is started again, and when. Pure: exits in, verdicts out.

use std::time::Duration;

/// Exit code of a process whose configuration is at fault: starting it again would change nothing.
const BAD_CONFIGURATION: i32 = 64;
/// Deaths before ever being ready after which a process is given up.
const EARLY_DEATHS: u32 = 3;
/// The first pause; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A process that lived so long has recovered: the next death counts as its first.
const RECOVERED: Duration = Duration::from_secs(60);

/// The deaths of one process so far.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    /// Since it last lived for long.
    deaths: u32,
}

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Death {
    /// Its exit code; nothing where a signal killed it.
    pub(crate) code: Option<i32>,
    pub(crate) lived: Duration,
    /// Whether it was ready once, in this life or an earlier one.
    pub(crate) was_ready: bool,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start it again after a pause.
    Again(Duration),
    /// Do not.
    GiveUp,
}

impl Restarts {
    /// Judges a death.
    pub(crate) fn judge(&mut self, death: Death) -> Verdict {
        if death.lived >= RECOVERED {
            self.deaths = 0;
        }
        self.deaths += 1;
        let hopeless = !death.was_ready && self.deaths >= EARLY_DEATHS;
        if hopeless || death.code == Some(BAD_CONFIGURATION) {
            return Verdict::GiveUp;
        }
        let doublings = (self.deaths - 1).min(16);
        Verdict::Again((FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdicts on a row of deaths, as milliseconds of pause; nothing where the process is given up.
    #[track_caller]
    fn check(deaths: &[(i32, u64, bool)], expected: &[Option<u64>]) {
        let mut restarts = Restarts::default();
        let judge = |(code, lived, was_ready): &(i32, u64, bool)| {
            let death =
                Death { code: Some(*code), lived: Duration::from_secs(*lived), was_ready: *was_ready };
            match restarts.judge(death) {
                Verdict::Again(pause) => u64::try_from(pause.as_millis()).ok(),
                Verdict::GiveUp => None,
            }
        };
        assert_eq!(deaths.iter().map(judge).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn bad_configuration_is_final() {
        check(&[(64, 0, false)], &[None]);
        check(&[(64, 1_000, true)], &[None]);
    }

    #[test]
    fn who_never_gets_ready_has_three_tries() {
        check(&[(1, 0, false); 3], &[Some(250), Some(500), None]);
    }

    #[test]
    fn who_was_ready_once_is_started_again_ever_later() {
        let pauses = [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000].map(Some);
        check(&[(1, 1, true); 8], &pauses);
    }

    #[test]
    fn a_long_life_is_a_recovery() {
        check(&[(1, 1, true), (1, 1, true), (0, 61, true)], &[Some(250), Some(500), Some(250)]);
    }
}
