//! When a call must have been answered, as its `grpc-timeout` header says.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::wire::{Fault, InvalidRequest};

const HEADER: &str = "grpc-timeout";

/// A longer timeout is cut to this: clocks overflow, and nobody waits for a month.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// The deadline of a call whose headers came at `now`; `None` where it has none.
///
/// # Errors
/// Where the header is not one to eight digits and a unit.
pub(crate) fn parse(metadata: &MetadataMap, now: Instant) -> Result<Option<Instant>, InvalidRequest> {
    let Some(value) = metadata.get(HEADER) else { return Ok(None) };
    match value.to_str().ok().and_then(timeout) {
        Some(timeout) => Ok(Some(now + timeout)),
        None => Err(InvalidRequest { field: HEADER.to_owned(), fault: Fault::Timeout }),
    }
}

fn timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || digits.bytes().any(|byte| !byte.is_ascii_digit()) {
        return None;
    }
    let number: u32 = digits.parse().ok()?;
    let one = match unit {
        'H' => Duration::from_secs(3600),
        'M' => Duration::from_secs(60),
        'S' => Duration::from_secs(1),
        'm' => Duration::from_millis(1),
        'u' => Duration::from_micros(1),
        'n' => Duration::from_nanos(1),
        _ => return None,
    };
    Some((one * number).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<Duration>) {
        assert_eq!(timeout(text), expected);
    }

    #[test]
    fn a_timeout_has_digits_and_a_unit() {
        check("1H", Some(Duration::from_secs(3600)));
        check("90M", Some(Duration::from_secs(5400)));
        check("0S", Some(Duration::ZERO));
        check("250m", Some(Duration::from_millis(250)));
        check("99999999u", Some(Duration::from_micros(99_999_999)));
        check("7n", Some(Duration::from_nanos(7)));
        check("99999999H", Some(LONGEST));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "m", "5", "5s", " 5S", "5 S", "+5S", "-1S", "1.5S", "123456789S", "5Sm", "٣S"] {
            check(text, None);
        }
    }

    #[test]
    fn a_call_without_the_header_has_no_deadline() {
        let now = Instant::now();
        let mut metadata = MetadataMap::new();
        assert_eq!(parse(&metadata, now), Ok(None));
        metadata.insert(HEADER, "2S".parse().unwrap());
        assert_eq!(parse(&metadata, now), Ok(Some(now + Duration::from_secs(2))));
        metadata.insert(HEADER, "soon".parse().unwrap());
        assert_eq!(parse(&metadata, now).unwrap_err().field, HEADER);
    }
}
