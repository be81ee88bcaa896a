//! How far it is, and how fast.

use std::time::Instant;

use crate::meter::Meter;
use crate::print;
use crate::texts::Texts;

use super::calls::Answer;
use super::mark::Mark;

/// Counts what is done and shows it.
pub(crate) struct Progress {
    shown: Meter,
    begun: Instant,
    /// Of this run: what was done before an interruption took other seconds.
    texts: u64,
    tokens: u64,
}

impl Progress {
    /// Of vectors that go to a file; on standard output they show themselves.
    pub(crate) fn new(texts: &Texts, done: Option<&Mark>, to_file: bool) -> Self {
        let shown = if to_file {
            Meter::new(done.map_or(0, |mark| mark.bytes_read), texts.bytes_total())
        } else {
            Meter::Nothing
        };
        if let (Some(mark), true) = (done, to_file) {
            print::note(format_args!("{} done already", print::count(mark.count, "text")));
        }
        Self { shown, begun: Instant::now(), texts: 0, tokens: 0 }
    }

    /// Counts an answer that was written.
    pub(crate) fn advance(&mut self, answer: &Answer) {
        self.texts += answer.batch.texts.len() as u64;
        self.tokens += answer.tokens;
        let line = self.line();
        self.shown.advance(answer.batch.bytes_read, line);
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.shown.finish();
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
