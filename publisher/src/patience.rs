//! Which refusals are waited out, and how long.

use std::error::Error as _;
use std::time::Duration;

use tokio::time::{self, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The shortest wait: a server that says "retry at once" is not hammered.
const SHORTEST: Duration = Duration::from_millis(10);
/// The longest wait between two tries, whatever the server says.
const LONGEST: Duration = Duration::from_secs(30);
/// Tries before someone who waits is told why: about three seconds.
const QUIET_TRIES: u32 = 5;

/// Makes a call until it is answered, refused for good, or `limit` has passed since the first try.
///
/// What is asked twice does no harm, so a call is made again whether or not the server saw it. Whoever waits is `told` why
/// after some seconds.
///
/// # Errors
/// What the server said last.
pub async fn persist<T>(
    limit: Duration,
    told: impl Fn(&Status),
    mut call: impl AsyncFnMut() -> Result<T, Status>,
) -> Result<T, Status> {
    let begun = Instant::now();
    let mut tries = 0;
    loop {
        let status = match call().await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        if tries == QUIET_TRIES && status.code() != Code::ResourceExhausted {
            told(&status);
        }
        match pause(&status, tries) {
            Some(pause) if begun.elapsed() + pause <= limit => time::sleep(pause).await,
            Some(_) | None => return Err(status),
        }
        tries += 1;
    }
}

/// Whether the call broke on its way: a status that the server sent has no source.
#[must_use]
pub fn is_lost(status: &Status) -> bool {
    status.source().is_some() && !timed_out(status)
}

/// The library gives up at a call's deadline with CANCELLED and these words, at either end.
#[must_use]
pub fn timed_out(status: &Status) -> bool {
    status.code() == Code::Cancelled && status.message() == "Timeout expired"
}

/// How long to wait before trying again; nothing where that would not help.
fn pause(status: &Status, tries: u32) -> Option<Duration> {
    if status.code() == Code::ResourceExhausted {
        // Without RetryInfo it is a quota or a limit on size: the same call fails again.
        let delay = status.get_details_retry_info()?.retry_delay?;
        return Some(delay.clamp(SHORTEST, LONGEST));
    }
    let again = status.code() == Code::Unavailable || is_lost(status);
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
    again.then(|| asked.clamp(Duration::from_millis(100 << tries.min(6)), LONGEST))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use tonic_types::ErrorDetails;

    use super::*;

    fn busy(delay: Duration) -> Status {
        let details = ErrorDetails::with_retry_info(Some(delay));
        Status::with_error_details(Code::ResourceExhausted, "busy", details)
    }

    fn broken() -> Status {
        let mut status = Status::unknown("transport error");
        status.set_source(Arc::new(std::io::Error::other("reset")));
        status
    }

    #[track_caller]
    fn check(status: &Status, tries: u32, milliseconds: Option<u64>) {
        assert_eq!(pause(status, tries), milliseconds.map(Duration::from_millis));
    }

    #[test]
    fn a_busy_server_is_given_the_time_it_asks_for() {
        check(&busy(Duration::from_millis(250)), 9, Some(250));
        check(&busy(Duration::ZERO), 0, Some(10));
        check(&busy(Duration::from_secs(3_600)), 0, Some(30_000));
        check(&Status::resource_exhausted("the message is too large"), 0, None);
    }

    #[test]
    fn a_lost_connection_is_tried_again_ever_later() {
        check(&Status::unavailable("no worker is ready"), 0, Some(100));
        check(&broken(), 3, Some(800));
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(1)));
        let later = Status::with_error_details(Code::Unavailable, "no worker is ready", details);
        check(&later, 0, Some(1_000));
        check(&later, 5, Some(3_200));
        check(&broken(), 60, Some(6_400));
        check(&Status::invalid_argument("inputs[0] is empty"), 0, None);
        check(&Status::failed_precondition("another checkpoint"), 0, None);
    }

    /// How many calls are made when each fails with `status`, and the answer when the fourth succeeds.
    async fn tries(limit: Duration, status: fn() -> Status) -> (u32, Option<Code>) {
        let made = Cell::new(0);
        let call = async || {
            made.set(made.get() + 1);
            if made.get() < 4 { Err(status()) } else { Ok(()) }
        };
        let result = persist(limit, |_| (), call).await;
        (made.get(), result.err().map(|status| status.code()))
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_with_an_answer_a_refusal_or_the_limit() {
        let second = Duration::from_secs(1);
        assert_eq!(tries(10 * second, broken).await, (4, None));
        assert_eq!(tries(second / 5, broken).await, (2, Some(Code::Unknown)));
        assert_eq!(tries(second, || Status::not_found("no")).await, (1, Some(Code::NotFound)));
        assert_eq!(tries(Duration::ZERO, || busy(Duration::ZERO)).await, (1, Some(Code::ResourceExhausted)));
    }
}
