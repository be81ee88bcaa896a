//! When a call must have been answered, as its `grpc-timeout` header says.
//!
//! tonic reads the header too: it passes over one that it cannot read, and answers CANCELLED where time is up.
//! Here the one is the caller's mistake and is named, and the other is DEADLINE_EXCEEDED.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use crate::wire::{Fault, InvalidRequest};

/// The header, as the gRPC protocol names it.
pub const HEADER: &str = "grpc-timeout";

/// What is longer is as good as for ever, and would only overflow clocks.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The time limits of one call, set when its headers arrived.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// What the caller set; `None` where it set none.
    pub given: Option<Instant>,
    /// How long one answer may take where the caller did not say.
    pub otherwise: Duration,
}

impl Deadline {
    /// When an answer that was asked for at `asked` is due.
    #[must_use]
    pub fn of_answer(&self, asked: Instant) -> Instant {
        self.given.unwrap_or(asked + self.otherwise)
    }
}

/// The timeout in `headers`, if there is one.
///
/// # Errors
/// Where it is not one to eight digits and one of `H`, `M`, `S`, `m`, `u`, `n`.
pub fn parse(headers: &HeaderMap) -> Result<Option<Duration>, InvalidRequest> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    timeout(text).map(Some).ok_or_else(|| InvalidRequest {
        field: HEADER.to_owned(),
        fault: Fault::Malformed("one to eight digits and a unit of H, M, S, m, u or n are wanted".to_owned()),
    })
}

fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    Some(timeout.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_unit() {
        #[track_caller]
        fn check(text: &str, expected: Duration) {
            assert_eq!(timeout(text), Some(expected));
        }
        check("2H", Duration::from_secs(7200));
        check("3M", Duration::from_secs(180));
        check("4S", Duration::from_secs(4));
        check("5m", Duration::from_millis(5));
        check("6u", Duration::from_micros(6));
        check("7n", Duration::from_nanos(7));
        check("0n", Duration::ZERO);
        check("99999999H", LONGEST);
    }

    #[test]
    fn refuses_what_the_protocol_does_not_allow() {
        for text in ["", "S", "5", "5s", "-5S", "+5S", "5 S", "123456789S", "5.5S", "5é", "fiveS"] {
            assert_eq!(timeout(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_header_that_is_not_text_is_named() {
        let mut headers = HeaderMap::new();
        assert_eq!(parse(&headers), Ok(None));
        headers.insert(HEADER, http::HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(parse(&headers).unwrap_err().field, HEADER);
    }
}
