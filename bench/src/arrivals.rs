//! When calls of an open loop fall due: a pure schedule, and the thread that keeps it.

use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::mpsc;

/// How arrivals are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// Independent of each other, as those of many users: exponential gaps.
    Poisson,
    /// Evenly spaced.
    Fixed,
}

/// Offsets from the start at which calls fall due, ascending, without end.
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    /// Mean distance of two arrivals, seconds.
    gap: f64,
    /// The last offset given, seconds.
    at: f64,
    random: StdRng,
}

impl Schedule {
    /// Arrivals at `rate` per second on average; `rate` is above zero. Equal seeds give equal schedules.
    #[must_use]
    pub fn new(arrivals: Arrivals, rate: f64, seed: u64) -> Self {
        Self { arrivals, gap: rate.recip(), at: 0.0, random: StdRng::seed_from_u64(seed) }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let gaps = match self.arrivals {
            // 1 - u lies in (0, 1], so the logarithm is finite.
            Arrivals::Poisson => -(1.0 - self.random.random::<f64>()).ln(),
            Arrivals::Fixed => 1.0,
        };
        self.at += gaps * self.gap;
        Duration::try_from_secs_f64(self.at).ok()
    }
}

/// Sends each moment of `schedule` before `length`, counted from `start`, once it has come.
///
/// A thread and not a timer of the runtime, whose ticks of a millisecond would show in the latencies of
/// short calls. It ends with the schedule or when the receiver is dropped; while the receiver is slow it
/// waits, and the moments it sends late are still the moments that were due.
pub(crate) fn keep(
    schedule: Schedule,
    start: Instant,
    length: Duration,
) -> std::io::Result<mpsc::Receiver<Instant>> {
    let (due, arrivals) = mpsc::channel(64);
    let pace = move || {
        for offset in schedule.take_while(|offset| *offset < length) {
            let moment = start + offset;
            thread::sleep(moment.saturating_duration_since(Instant::now()));
            if due.blocking_send(moment).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("bench-arrivals".to_owned()).spawn(pace)?;
    Ok(arrivals)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(arrivals: Arrivals, rate: f64, count: usize) -> Vec<f64> {
        let offsets: Vec<f64> =
            Schedule::new(arrivals, rate, 7).take(count).map(|offset| offset.as_secs_f64()).collect();
        std::iter::once(offsets[0]).chain(offsets.windows(2).map(|pair| pair[1] - pair[0])).collect()
    }

    #[test]
    fn fixed_arrivals_are_evenly_spaced() {
        assert!(gaps(Arrivals::Fixed, 50.0, 1_000).iter().all(|gap| (gap - 0.02).abs() < 1e-6));
    }

    #[test]
    #[allow(clippy::cast_precision_loss)]
    fn poisson_arrivals_have_the_rate_asked_for_and_exponential_gaps() {
        let gaps = gaps(Arrivals::Poisson, 50.0, 20_000);
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.02).abs() < 0.001, "mean gap {mean}");
        // Of an exponential distribution a share of 1/e lies above the mean.
        let above = gaps.iter().filter(|gap| **gap > 0.02).count() as f64 / gaps.len() as f64;
        assert!((above - (-1.0_f64).exp()).abs() < 0.02, "share above the mean {above}");
    }

    #[test]
    fn equal_seeds_give_equal_schedules() {
        let take = |seed| Schedule::new(Arrivals::Poisson, 9.0, seed).take(100).collect::<Vec<_>>();
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }

    #[test]
    fn a_slow_receiver_still_learns_when_calls_were_due() {
        let start = Instant::now();
        let schedule = Schedule::new(Arrivals::Fixed, 1_000.0, 0);
        let mut arrivals = keep(schedule, start, Duration::from_millis(300)).unwrap();
        thread::sleep(Duration::from_millis(350));
        let mut due = Vec::new();
        while let Some(moment) = arrivals.blocking_recv() {
            due.push(moment - start);
        }
        let wanted: Vec<Duration> = Schedule::new(Arrivals::Fixed, 1_000.0, 0)
            .take_while(|at| *at < Duration::from_millis(300))
            .collect();
        assert_eq!(due, wanted);
    }
}
