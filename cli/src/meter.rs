//! How far something is, shown on standard error: a bar on a terminal, else a line now and then.

use std::fmt::Display;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::print;

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows how far it is.
pub(crate) enum Meter {
    /// On a terminal.
    Bar(ProgressBar),
    /// Elsewhere.
    Lines {
        /// When the last was written.
        last: Instant,
        /// Where it ends, if that is known.
        total: Option<u64>,
    },
    /// Not at all.
    Nothing,
}

impl Meter {
    /// Of something that goes from `done` to `total`.
    pub(crate) fn new(done: u64, total: Option<u64>) -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines { last: Instant::now(), total };
        }
        let bar = match total {
            Some(total) => {
                ProgressBar::new(total).with_style(style("{bar:30} {percent:>3} %  {msg}  {eta} left"))
            }
            None => ProgressBar::no_length().with_style(style("{spinner} {msg}")),
        };
        bar.set_position(done);
        bar.reset_eta();
        Self::Bar(bar)
    }

    /// It is at `done`, which `line` puts into words.
    pub(crate) fn advance(&mut self, done: u64, line: impl Display) {
        match self {
            Self::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(line.to_string());
            }
            Self::Lines { last, total } if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                match total {
                    Some(total) => print::note(format_args!("{line}, {} %", 100 * done / (*total).max(1))),
                    None => print::note(line),
                }
            }
            Self::Lines { .. } | Self::Nothing => {}
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
