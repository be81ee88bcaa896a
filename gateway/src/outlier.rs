//! Workers that answer their health stream and not their work: they are left out for a while.
//!
//! A worker is sick when its shards fail much more often than those of the others, or take much longer than was
//! foreseen while those of the others do not. Compared with the others, and never alone: texts that no worker can
//! read, or a network that is slow for all of them, are no worker's fault. A sick worker is out for five seconds, and
//! twice as long each time it is found sick again; then it gets one shard at a time until it has answered some. No
//! more than a third of the workers are out at a time (of two, one), and where all that have a checkpoint are out, it
//! is as if none were.

use std::cmp::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, Standing};
use crate::link::Link;
use crate::metrics::Metrics;

/// How often workers are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What was seen this long ago counts half.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// Failures, or answers, that make a case. One that has just come back has no such credit.
const CASE: f64 = 5.0;
/// Answers after which one that came back is in again.
const PROBES: f64 = 3.0;
/// The share of its shards that a worker may fail while others fail none, and times their share otherwise.
const FAILING: f64 = 0.2;
const TIMES_FAILING: f64 = 3.0;
/// Times the others' stretch of a slow worker's, and the seconds it must keep callers waiting for that to matter.
const TIMES_SLOW: f64 = 4.0;
const WAITED: f64 = 0.1;
/// How long a worker is out: the first time, and at most.
const OUT: Duration = Duration::from_secs(5);
const LONGEST_OUT: Duration = Duration::from_secs(300);
/// One that did well for this long has a clean sheet.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// How a worker has done lately. What is past counts less and less.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Vitals {
    /// Shards that were answered, or failed.
    pub tries: f64,
    /// Shards that failed.
    pub failures: f64,
    /// Shards that were answered, or kept waiting for longer than foreseen.
    pub answers: f64,
    /// Seconds that they took, in all.
    pub took: f64,
    /// Seconds that were foreseen for them, in all.
    pub foreseen: f64,
}

impl Vitals {
    /// The same, so much later.
    fn after(self, passed: Duration) -> Self {
        let left = (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        let Self { tries, failures, answers, took, foreseen } = self;
        Self {
            tries: left * tries,
            failures: left * failures,
            answers: left * answers,
            took: left * took,
            foreseen: left * foreseen,
        }
    }

    /// How many times as long as foreseen an answer takes; `None` where nothing is known.
    fn stretch(&self) -> Option<f64> {
        (self.foreseen > 0.0).then(|| self.took / self.foreseen)
    }
}

/// Where a worker is on its way out and back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Course {
    /// It gets work, `since` then; it was out so many `times`.
    In {
        /// How often it was out.
        times: u32,
        /// Since when it is not.
        since: Instant,
    },
    /// It gets none.
    Out {
        /// How often it was out, this time included.
        times: u32,
        /// For how long.
        until: Instant,
    },
    /// It gets one shard at a time.
    Back {
        /// How often it was out.
        times: u32,
    },
}

/// What is the matter with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sickness {
    /// Its shards fail.
    Failing,
    /// Its shards take too long.
    Slow,
}

impl Sickness {
    /// The label of its metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Slow => "slow",
        }
    }
}

/// A worker as it is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Patient {
    /// How it has done.
    pub vitals: Vitals,
    /// Where it is.
    pub course: Course,
}

/// Where each of `patients` is from `now` on, and what is the matter with those that go out.
#[must_use]
pub fn review(patients: &[Patient], now: Instant) -> Vec<(Course, Option<Sickness>)> {
    let mut verdicts: Vec<_> = patients.iter().map(|patient| (patient.course, None)).collect();
    let out = patients.iter().filter(|patient| !matches!(patient.course, Course::In { .. })).count();
    let mut room = most_out(patients.len()).saturating_sub(out);
    for i in worst_first(patients) {
        let sickness = diagnose(patients, i);
        let Patient { vitals, course } = &patients[i];
        verdicts[i] = match (*course, sickness) {
            (Course::In { times, since }, Some(sickness)) if room > 0 => {
                room -= 1;
                let times = if now.saturating_duration_since(since) > FORGOTTEN { 0 } else { times };
                (send_out(times, now), Some(sickness))
            }
            (Course::Out { times, until }, _) if until <= now => (Course::Back { times }, None),
            (Course::Back { times }, Some(sickness)) => (send_out(times, now), Some(sickness)),
            (Course::Back { times }, None) if vitals.answers >= PROBES => {
                (Course::In { times, since: now }, None)
            }
            (course, _) => (course, None),
        };
    }
    verdicts
}

/// A third, and at least one where another one stays.
fn most_out(workers: usize) -> usize {
    (workers / 3).max(1).min(workers.saturating_sub(1))
}

fn worst_first(patients: &[Patient]) -> Vec<usize> {
    let badness = |i: usize| (patients[i].vitals.failures, patients[i].vitals.stretch());
    let mut order: Vec<_> = (0..patients.len()).collect();
    order.sort_by(|&a, &b| badness(b).partial_cmp(&badness(a)).unwrap_or(Ordering::Equal));
    order
}

fn send_out(times: u32, now: Instant) -> Course {
    let pause = OUT.saturating_mul(2_u32.saturating_pow(times)).min(LONGEST_OUT);
    Course::Out { times: times.saturating_add(1), until: now + pause }
}

/// What is the matter with one of `patients`, compared with the others that get work.
fn diagnose(patients: &[Patient], i: usize) -> Option<Sickness> {
    let Patient { vitals, course } = &patients[i];
    let case = match course {
        Course::Out { .. } => return None,
        Course::In { .. } => CASE,
        Course::Back { .. } => 1.0,
    };
    let others = || {
        let all = patients.iter().enumerate().filter(move |(other, _)| *other != i);
        all.map(|(_, patient)| patient).filter(|other| matches!(other.course, Course::In { .. }))
    };
    let tries: f64 = others().map(|other| other.vitals.tries).sum();
    let failures: f64 = others().map(|other| other.vitals.failures).sum();
    let usual = if tries > 0.0 { failures / tries } else { return None };
    if vitals.failures >= case && vitals.failures > (FAILING + TIMES_FAILING * usual) * vitals.tries {
        return Some(Sickness::Failing);
    }
    let usual = median(others().filter_map(|other| other.vitals.stretch()).collect())?;
    let late = vitals.took > TIMES_SLOW * usual * vitals.foreseen;
    let waited = vitals.took - usual * vitals.foreseen > WAITED * vitals.answers;
    (vitals.answers >= case && late && waited).then_some(Sickness::Slow)
}

/// The lower one of the two in the middle.
fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len().saturating_sub(1) / 2).copied()
}

/// What is kept of one worker.
#[derive(Debug)]
pub struct Record(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    patient: Patient,
    /// As of when its vitals are.
    at: Instant,
}

impl Default for Record {
    fn default() -> Self {
        let now = Instant::now();
        let patient = Patient { vitals: Vitals::default(), course: Course::In { times: 0, since: now } };
        Self(Mutex::new(Kept { patient, at: now }))
    }
}

impl Record {
    /// Notes an answer that took so long; `foreseen` is how long it was expected to take.
    pub fn answered(&self, took: Duration, foreseen: Option<Duration>) {
        let mut kept = self.now();
        kept.patient.vitals.tries += 1.0;
        if let Some(foreseen) = foreseen {
            kept.time(took, foreseen);
        }
    }

    /// Notes that there is no answer after so long, where that is longer than foreseen.
    pub fn waited(&self, took: Duration, foreseen: Duration) {
        if took > foreseen {
            self.now().time(took, foreseen);
        }
    }

    /// Notes a failure that is the worker's.
    pub fn failed(&self) {
        let mut kept = self.now();
        kept.patient.vitals.tries += 1.0;
        kept.patient.vitals.failures += 1.0;
    }

    /// Whether it gets work, while it has this many tokens of ours.
    #[must_use]
    pub fn takes(&self, outstanding: u64) -> bool {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match kept.patient.course {
            Course::In { .. } => true,
            Course::Out { .. } => false,
            Course::Back { .. } => outstanding == 0,
        }
    }

    /// Forgets everything: another process has its place.
    pub fn forget(&self) {
        *self.now() = Self::default().0.into_inner().unwrap_or_else(PoisonError::into_inner);
    }

    fn patient(&self) -> Patient {
        self.now().patient
    }

    /// Puts it on `course`; one that comes back starts afresh.
    fn send(&self, course: Course) {
        let mut kept = self.now();
        if let Course::Back { .. } = course
            && kept.patient.course != course
        {
            kept.patient.vitals = Vitals::default();
        }
        kept.patient.course = course;
    }

    /// What is kept, as of now.
    fn now(&self) -> MutexGuard<'_, Kept> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        kept.patient.vitals = kept.patient.vitals.after(now.saturating_duration_since(kept.at));
        kept.at = now;
        kept
    }
}

impl Kept {
    fn time(&mut self, took: Duration, foreseen: Duration) {
        self.patient.vitals.answers += 1.0;
        self.patient.vitals.took += took.as_secs_f64();
        self.patient.vitals.foreseen += foreseen.as_secs_f64();
    }
}

/// Looks at the workers of `fleet` again and again, until `stop`.
pub async fn watch(fleet: watch::Receiver<Arc<Fleet>>, metrics: Metrics, stop: CancellationToken) {
    let watching = async {
        let mut looks = time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let fleet = fleet.borrow().clone();
            let serving = fleet.members().iter().filter(|member| member.standing == Standing::Serving);
            look(&serving.map(|member| &*member.link).collect::<Vec<_>>(), &metrics);
        }
    };
    stop.run_until_cancelled(watching).await;
}

fn look(links: &[&Link], metrics: &Metrics) {
    let patients: Vec<_> = links.iter().map(|link| link.record.patient()).collect();
    for ((link, patient), (course, sickness)) in
        links.iter().zip(&patients).zip(review(&patients, Instant::now()))
    {
        if course == patient.course {
            continue;
        }
        if let Some(sickness) = sickness {
            metrics.ejected(sickness);
            tracing::warn!(worker = %link.seat, reason = sickness.label(), ?course, "a worker is left out");
        } else {
            tracing::info!(worker = %link.seat, ?course, "a worker comes back");
        }
        link.record.send(course);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn answering(answers: f64, stretch: f64) -> Vitals {
        Vitals { tries: answers, failures: 0.0, answers, took: stretch * answers, foreseen: answers }
    }

    fn failing(tries: f64, failures: f64) -> Vitals {
        Vitals { tries, failures, ..answering(tries - failures, 1.0) }
    }

    fn patients(vitals: &[Vitals], course: Course) -> Vec<Patient> {
        vitals.iter().map(|&vitals| Patient { vitals, course }).collect()
    }

    /// `expected` are those that go out, of workers that are all in.
    #[track_caller]
    fn check(vitals: &[Vitals], expected: &[(usize, Sickness)]) {
        let now = Instant::now();
        let verdicts = review(&patients(vitals, Course::In { times: 0, since: now }), now);
        let out = verdicts.iter().enumerate().filter_map(|(i, (_, sickness))| Some((i, (*sickness)?)));
        assert_eq!(out.collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn one_that_fails_while_others_do_not_goes_out() {
        let well = failing(100.0, 0.0);
        check(&[well, failing(10.0, 10.0)], &[(1, Sickness::Failing)]);
        check(&[failing(100.0, 30.0), well, well], &[(0, Sickness::Failing)]);
        check(&[well, failing(4.0, 4.0)], &[]);
        check(&[well, failing(100.0, 15.0)], &[]);
    }

    #[tokio::test]
    async fn what_all_of_them_fail_is_no_ones_fault() {
        check(&[failing(100.0, 60.0), failing(100.0, 50.0), failing(100.0, 40.0)], &[]);
        check(&[failing(100.0, 100.0)], &[]);
        check(&[failing(100.0, 100.0), Vitals::default()], &[]);
        check(&[], &[]);
    }

    #[tokio::test]
    async fn one_that_is_much_slower_than_foreseen_goes_out_unless_all_are() {
        let usual = answering(50.0, 1.2);
        check(&[usual, usual, answering(10.0, 6.0)], &[(2, Sickness::Slow)]);
        check(&[usual, usual, answering(10.0, 4.0)], &[]);
        check(&[usual, usual, answering(4.0, 60.0)], &[]);
        check(&[answering(50.0, 6.0), answering(50.0, 7.0), answering(50.0, 8.0)], &[]);
        let quick = |stretch: f64| Vitals { took: 0.02 * stretch, foreseen: 0.02, ..answering(50.0, 1.0) };
        check(&[quick(1.0), quick(9.0)], &[]);
    }

    #[tokio::test]
    async fn no_more_than_a_third_are_out_and_the_worst_go_first() {
        let (well, sick) = (failing(100.0, 0.0), |failures| failing(100.0, failures));
        check(&[sick(50.0), sick(90.0), well, well, well], &[(1, Sickness::Failing)]);
        let nine = [vec![sick(95.0); 4], vec![well; 12]].concat();
        let worst =
            [(0, Sickness::Failing), (1, Sickness::Failing), (2, Sickness::Failing), (3, Sickness::Failing)];
        check(&nine, &worst);
        check(&nine[..7], &[]);
        for (workers, most) in [(0, 0), (1, 0), (2, 1), (3, 1), (5, 1), (6, 2), (9, 3)] {
            assert_eq!(most_out(workers), most, "{workers}");
        }
    }

    #[tokio::test]
    async fn who_is_out_comes_back_on_trial_and_in_or_out_for_longer() {
        let now = Instant::now();
        let well = Patient { vitals: answering(50.0, 1.0), course: Course::In { times: 0, since: now } };
        let next = |vitals, course, at| review(&[well, Patient { vitals, course }], at)[1];
        let sick = failing(10.0, 10.0);
        let (out, sickness) = next(sick, Course::In { times: 0, since: now }, now);
        assert_eq!((out, sickness), (Course::Out { times: 1, until: now + OUT }, Some(Sickness::Failing)));
        assert_eq!(next(sick, out, now + 4 * SECOND), (out, None));
        let back = Course::Back { times: 1 };
        assert_eq!(next(sick, out, now + OUT), (back, None));
        assert_eq!(next(answering(2.0, 1.0), back, now), (back, None));
        assert_eq!(next(answering(3.0, 1.0), back, now), (Course::In { times: 1, since: now }, None));
        let again = Course::Out { times: 2, until: now + 2 * OUT };
        assert_eq!(next(failing(1.0, 1.0), back, now), (again, Some(Sickness::Failing)));
        assert_eq!(next(answering(1.0, 60.0), back, now), (again, Some(Sickness::Slow)));
    }

    #[tokio::test]
    async fn each_time_is_longer_up_to_a_bound_and_forgotten_in_the_end() {
        let now = Instant::now();
        let pause = |times| match send_out(times, now) {
            Course::Out { until, .. } => until - now,
            Course::In { .. } | Course::Back { .. } => unreachable!(),
        };
        assert_eq!([0, 1, 2, 5, 6, 60].map(pause), [5, 10, 20, 160, 300, 300].map(Duration::from_secs));
        let well = Patient { vitals: answering(50.0, 1.0), course: Course::In { times: 0, since: now } };
        let sick = Patient { vitals: failing(10.0, 10.0), course: Course::In { times: 4, since: now } };
        let later = now + FORGOTTEN + SECOND;
        assert_eq!(review(&[well, sick], later)[1].0, Course::Out { times: 1, until: later + OUT });
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_past_counts_less_and_another_process_starts_afresh() {
        let record = Record::default();
        for _ in 0..8 {
            record.failed();
        }
        time::advance(HALF_LIFE).await;
        record.answered(SECOND, Some(2 * SECOND));
        record.waited(3 * SECOND, 2 * SECOND);
        record.waited(SECOND, 2 * SECOND);
        let vitals = record.patient().vitals;
        let expected = Vitals { tries: 5.0, failures: 4.0, answers: 2.0, took: 4.0, foreseen: 4.0 };
        assert_eq!(vitals, expected);
        record.send(Course::Out { times: 1, until: Instant::now() });
        assert!(!record.takes(0));
        record.send(Course::Back { times: 1 });
        assert_eq!(
            (record.takes(0), record.takes(1), record.patient().vitals),
            (true, false, Vitals::default())
        );
        record.forget();
        assert!(record.takes(1));
    }

    proptest! {
        #[test]
        fn however_they_do_most_stay(
            seen in proptest::collection::vec((0.0_f64..100.0, 0.0_f64..1.0, 0.0_f64..50.0), 0..12),
        ) {
            let now = Instant::now();
            let vitals = |&(tries, share, stretch): &(f64, f64, f64)| {
                let (failures, answers) = (tries * share, tries * (1.0 - share));
                Vitals { tries, failures, answers, took: stretch * answers, foreseen: answers }
            };
            let course = Course::In { times: 0, since: now };
            let mut all: Vec<_> = seen.iter().map(|seen| Patient { vitals: vitals(seen), course }).collect();
            for _ in 0..5 {
                let verdicts = review(&all, now);
                all.iter_mut().zip(verdicts).for_each(|(patient, (course, _))| patient.course = course);
                let out = all.iter().filter(|patient| !matches!(patient.course, Course::In { .. })).count();
                prop_assert!(out <= most_out(all.len()));
            }
        }
    }
}
