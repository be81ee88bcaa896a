//! How far it is, shown on standard error: a bar on a terminal, else a line now and then.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::print;
use crate::texts::Texts;

use super::calls::Answer;
use super::mark::Mark;

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts what is done and shows it.
pub(crate) struct Progress {
    shown: Shown,
    begun: Instant,
    /// Of this run: what was done before an interruption took other seconds.
    texts: u64,
    tokens: u64,
    bytes_total: Option<u64>,
}

enum Shown {
    Bar(ProgressBar),
    Lines { last: Instant },
    Nothing,
}

impl Progress {
    /// Of vectors that go to a file; on standard output they show themselves.
    pub(crate) fn new(texts: &Texts, done: Option<&Mark>, to_file: bool) -> Self {
        let bytes_total = texts.bytes_total();
        let shown = match (to_file, io::stderr().is_terminal()) {
            (false, _) => Shown::Nothing,
            (true, true) => Shown::Bar(bar(bytes_total, done)),
            (true, false) => Shown::Lines { last: Instant::now() },
        };
        if let (Some(mark), true) = (done, to_file) {
            print::note(format_args!("{} done already", print::count(mark.count, "text")));
        }
        Self { shown, begun: Instant::now(), texts: 0, tokens: 0, bytes_total }
    }

    /// Counts an answer that was written.
    pub(crate) fn advance(&mut self, answer: &Answer) {
        self.texts += answer.batch.texts.len() as u64;
        self.tokens += answer.tokens;
        let bytes_read = answer.batch.bytes_read;
        let line = self.line();
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_position(bytes_read);
                bar.set_message(line);
            }
            Shown::Lines { last } if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                match self.bytes_total {
                    Some(total) => print::note(format_args!("{line}, {} %", 100 * bytes_read / total.max(1))),
                    None => print::note(line),
                }
            }
            Shown::Lines { .. } | Shown::Nothing => {}
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }

    #[allow(clippy::cast_precision_loss)] // For people.
    fn line(&self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64().max(1e-3);
        format!(
            "{}, {} texts/s, {} tokens/s",
            print::count(self.texts, "text"),
            print::rate(self.texts as f64 / seconds),
            print::rate(self.tokens as f64 / seconds),
        )
    }
}

fn bar(bytes_total: Option<u64>, done: Option<&Mark>) -> ProgressBar {
    let bar = match bytes_total {
        Some(total) => {
            ProgressBar::new(total).with_style(style("{bar:30} {percent:>3} %  {msg}  {eta} left"))
        }
        None => ProgressBar::no_length().with_style(style("{spinner} {msg}")),
    };
    bar.set_position(done.map_or(0, |mark| mark.bytes_read));
    bar.reset_eta();
    bar
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
