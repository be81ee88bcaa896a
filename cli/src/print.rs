//! Writing for people and for programs.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::failure::Failure;

/// Writes a line to standard output.
pub(crate) fn line(text: impl Display) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{text}").map_err(Failure::stdout)
}

/// Writes one line of JSON to standard output.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(anyhow::Error::from)?;
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(Failure::stdout)
}

/// Writes a line to standard error. That nobody reads there is no reason to fail.
pub(crate) fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A table without rules. The columns named in `right` hold numbers.
pub(crate) fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Writes a table to standard output, without spaces at the ends of its lines.
pub(crate) fn rows(table: &Table) -> Result<(), Failure> {
    table.lines().try_for_each(|row| line(row.trim_end()))
}

/// At most `width` characters of a text from elsewhere, on one line, safe to show on a terminal.
pub(crate) fn printable(text: &str, width: usize) -> String {
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    let mut characters = text.chars().map(shown);
    let mut out: String = characters.by_ref().take(width).collect();
    if characters.next().is_some() {
        out.pop();
        out.push('…');
    }
    out
}

/// The first 12 digits of a digest: enough to tell checkpoints apart.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// `12,345,678`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = (0..digits.len().div_ceil(3))
        .rev()
        .map(|i| {
            let end = digits.len() - 3 * i;
            &digits[end.saturating_sub(3)..end]
        })
        .collect();
    groups.join(",")
}

/// `1 text`, `2,000 texts`.
pub(crate) fn count(number: u64, what: &str) -> String {
    format!("{} {what}{}", thousands(number), if number == 1 { "" } else { "s" })
}

/// A rate for people: whole, with thousands set apart.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Rates are not negative; `as` saturates.
pub(crate) fn rate(per_second: f64) -> String {
    thousands(per_second.round() as u64)
}

/// A moment, given in milliseconds since 1970, for people: `3 min ago`.
pub(crate) fn ago(unix_ms: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_millis(unix_ms);
    // A clock that is behind the server's is not worth a word.
    let seconds = SystemTime::now().duration_since(then).unwrap_or_default().as_secs();
    since(seconds)
}

fn since(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", thousands(seconds / 86_400)),
    }
}

/// Bytes for people, in binary units.
pub(crate) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes / 1_024),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes / 1_048_576),
        _ => format!("{}.{} GiB", bytes / 1_073_741_824, bytes % 1_073_741_824 * 10 / 1_073_741_824),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_set_in_groups_of_three() {
        let shown: Vec<String> = [0, 7, 999, 1_000, 12_345, 1_234_567].map(thousands).into();
        assert_eq!(shown, ["0", "7", "999", "1,000", "12,345", "1,234,567"]);
    }

    #[test]
    fn one_thing_is_not_many() {
        assert_eq!([0, 1, 2_000].map(|number| count(number, "text")), ["0 texts", "1 text", "2,000 texts"]);
    }

    #[test]
    fn texts_from_elsewhere_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[31m\nb", 20), "a [31m b");
        assert_eq!(printable("abcdef", 6), "abcdef");
        assert_eq!(printable("abcdefg", 6), "abcde…");
        assert_eq!(printable("日本語の文", 3), "日本…");
    }

    #[test]
    fn times_take_the_unit_that_fits() {
        let shown: Vec<String> = [59, 60, 7_199, 172_799, 172_800, 86_400_000].map(since).into();
        assert_eq!(shown, ["59 s ago", "1 min ago", "1 h ago", "47 h ago", "2 days ago", "1,000 days ago"]);
    }

    #[test]
    fn sizes_take_the_unit_that_fits() {
        let shown: Vec<String> = [1_536, 200 << 20, 3 << 29].map(bytes).into();
        assert_eq!(shown, ["1 KiB", "200 MiB", "1.5 GiB"]);
    }
}
