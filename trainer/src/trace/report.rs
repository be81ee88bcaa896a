//! The worst differences of a replay, as a table.

use std::fmt;

/// One kind of number.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is compared.
    pub what: &'static str,
    /// How many numbers were.
    pub compared: usize,
    /// The worst difference.
    pub worst: f64,
    /// What it may be; `None` where the row is only for the reader.
    pub tolerance: Option<f64>,
    /// Where the worst one is.
    pub place: String,
}

impl Row {
    /// A row over nothing yet.
    pub(super) fn new(what: &'static str, tolerance: Option<f64>) -> Self {
        Self { what, compared: 0, worst: 0.0, tolerance, place: String::new() }
    }

    /// Takes a difference in. One that is not a number is the worst.
    pub(super) fn take(&mut self, difference: f64, place: impl FnOnce() -> String) {
        self.compared += 1;
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        if difference > self.worst || self.place.is_empty() {
            self.worst = difference;
            self.place = place();
        }
    }

    /// Counts one thing that is the same, or is not.
    pub(super) fn count(&mut self, same: bool, place: impl FnOnce() -> String) {
        self.compared += 1;
        if !same {
            self.worst += 1.0;
            if self.place.is_empty() {
                self.place = place();
            }
        }
    }

    /// Whether it is within its tolerance.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.tolerance.is_none_or(|tolerance| self.worst <= tolerance)
    }
}

/// What a replay found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which they are printed.
    pub rows: Vec<Row>,
    /// What was not compared, and why.
    pub notes: Vec<String>,
}

impl Report {
    /// Whether every row is within its tolerance.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.rows.iter().all(Row::holds)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<28} {:>8} {:>10} {:>10}       at", "", "compared", "worst", "allowed")?;
        for row in &self.rows {
            let allowed = row.tolerance.map_or_else(|| "-".to_owned(), |allowed| format!("{allowed:.0e}"));
            let verdict = if row.holds() { "ok  " } else { "FAIL" };
            let Row { what, compared, worst, place, .. } = row;
            writeln!(f, "{what:<28} {compared:>8} {worst:>10.1e} {allowed:>10}  {verdict} {place}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_kept_and_no_number_never_holds() {
        let mut row = Row::new("losses", Some(0.5));
        row.take(0.1, || "a".to_owned());
        row.take(0.3, || "b".to_owned());
        row.take(0.2, || "c".to_owned());
        assert_eq!((row.compared, row.place.as_str(), row.holds()), (3, "b", true));
        row.take(f64::NAN, || "d".to_owned());
        assert_eq!((row.place.as_str(), row.holds()), ("d", false));
        assert!(Report { rows: vec![row], notes: vec![] }.to_string().contains("FAIL d"));
    }
}
