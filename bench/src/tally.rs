//! What came of the calls, counted once and in one place.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tonic::{Code, Status};

/// What an answer was worth.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) texts: u64,
    pub(crate) tokens: u64,
    pub(crate) digest: String,
}

/// One call from beginning to end.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// When the schedule wanted it made.
    pub(crate) due: Instant,
    /// When it was made.
    pub(crate) sent: Instant,
    pub(crate) finished: Instant,
    pub(crate) result: Result<Answer, Status>,
}

/// Sums over a window of time.
///
/// Throughput is of answers that *arrive* within the window, latency and errors are of calls *due* within
/// it: neither counts a call for having been lucky with the window's edges.
#[derive(Debug)]
pub(crate) struct Tally {
    from: Instant,
    until: Instant,
    pub(crate) calls: u64,
    pub(crate) texts: u64,
    pub(crate) tokens: u64,
    /// Microseconds from due to answered.
    pub(crate) latencies: Histogram<u64>,
    /// Microseconds from due to sent: how late the generator itself was.
    pub(crate) lags: Histogram<u64>,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    /// Answers by checkpoint, warm-up included: a swap is worth seeing wherever it falls.
    pub(crate) digests: BTreeMap<String, u64>,
    /// The first call that failed, warm-up included.
    pub(crate) first_failure: Option<Status>,
}

/// From a microsecond to an hour, with three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("the bounds are in order and the digits few")
}

impl Tally {
    /// Counts over `window` from `from`.
    pub(crate) fn new(from: Instant, window: Duration) -> Self {
        Self {
            from,
            until: from + window,
            calls: 0,
            texts: 0,
            tokens: 0,
            latencies: histogram(),
            lags: histogram(),
            errors: BTreeMap::new(),
            digests: BTreeMap::new(),
            first_failure: None,
        }
    }

    pub(crate) fn add(&mut self, outcome: Outcome) {
        let Outcome { due, sent, finished, result } = outcome;
        if self.counts(due) {
            self.lags.saturating_record(micros(sent - due));
        }
        match result {
            Ok(answer) => self.answered(due, finished, answer),
            Err(status) => self.failed(due, error_name(&status), Some(status)),
        }
    }

    /// Counts a call that fell due and could not be made in time.
    pub(crate) fn unsent(&mut self, due: Instant) {
        self.failed(due, "UNSENT", None);
    }

    fn answered(&mut self, due: Instant, finished: Instant, answer: Answer) {
        if self.counts(finished) {
            self.calls += 1;
            self.texts += answer.texts;
            self.tokens += answer.tokens;
        }
        if self.counts(due) {
            self.latencies.saturating_record(micros(finished - due));
        }
        *self.digests.entry(answer.digest).or_default() += 1;
    }

    fn failed(&mut self, due: Instant, name: &'static str, status: Option<Status>) {
        if self.counts(due) {
            *self.errors.entry(name).or_default() += 1;
        }
        if self.first_failure.is_none() {
            self.first_failure = status;
        }
    }

    fn counts(&self, moment: Instant) -> bool {
        (self.from..self.until).contains(&moment)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The code's name, but for calls that the client library itself gave up at their deadline: it calls those
/// cancelled, and nothing here cancels a call.
fn error_name(status: &Status) -> &'static str {
    if status.code() == Code::Cancelled && status.message() == "Timeout expired" {
        return code_name(Code::DeadlineExceeded);
    }
    code_name(status.code())
}

/// The canonical name of a gRPC code, such as `RESOURCE_EXHAUSTED`.
#[must_use]
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn call(start: Instant, due: f64, finished: f64, result: Result<Answer, Status>) -> Outcome {
        let at = |seconds| start + Duration::from_secs_f64(seconds);
        Outcome { due: at(due), sent: at(due), finished: at(finished), result }
    }

    fn answer() -> Answer {
        Answer { texts: 2, tokens: 10, digest: "d".to_owned() }
    }

    #[test]
    fn throughput_goes_by_arrival_and_latency_by_due_time() {
        let start = Instant::now();
        let mut tally = Tally::new(start + SECOND, SECOND);
        tally.add(call(start, 0.2, 0.8, Ok(answer()))); // Warm-up only.
        tally.add(call(start, 0.5, 1.5, Ok(answer()))); // Arrives inside.
        tally.add(call(start, 1.5, 1.9, Ok(answer()))); // All inside.
        tally.add(call(start, 1.9, 3.9, Ok(answer()))); // Due inside.
        assert_eq!((tally.calls, tally.texts, tally.tokens), (2, 4, 20));
        assert_eq!(tally.latencies.len(), 2);
        let longest = tally.latencies.max();
        assert!((1_990_000..=2_010_000).contains(&longest), "{longest}");
        assert_eq!(tally.digests["d"], 4);
    }

    #[test]
    fn errors_are_counted_by_code() {
        let start = Instant::now();
        let mut tally = Tally::new(start, SECOND);
        tally.add(call(start, 0.1, 0.2, Err(Status::cancelled("Timeout expired"))));
        tally.add(call(start, 0.1, 0.2, Err(Status::unavailable("gone"))));
        tally.add(call(start, 0.3, 0.4, Err(Status::unavailable("gone"))));
        tally.add(call(start, 1.3, 1.4, Err(Status::internal("after the window"))));
        tally.unsent(start);
        let errors: Vec<_> = tally.errors.into_iter().collect();
        assert_eq!(errors, [("DEADLINE_EXCEEDED", 1), ("UNAVAILABLE", 2), ("UNSENT", 1)]);
        assert_eq!(tally.first_failure.unwrap().message(), "Timeout expired");
    }
}
