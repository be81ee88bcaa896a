//! Where vectors go: a file, programs or people.

use std::io::{self, IsTerminal as _, Write as _};

use crate::failure::Failure;
use crate::print;

use super::calls::Answer;
use super::jsonl;
use super::mark::Mark;
use super::output::Output;

/// A place for vectors.
pub(crate) enum Sink {
    /// A file, resumable.
    File(Box<Output>),
    /// Standard output, one JSON object per text.
    Lines(Mark),
    /// Standard output on a terminal.
    People(Mark),
}

impl Sink {
    /// Standard output: for people where it is a terminal and JSON is not asked for.
    pub(crate) fn stdout(json: bool, mark: Mark) -> Self {
        if !json && io::stdout().is_terminal() { Self::People(mark) } else { Self::Lines(mark) }
    }

    /// How far it has come.
    pub(crate) fn mark(&self) -> &Mark {
        match self {
            Self::File(output) => output.mark(),
            Self::Lines(mark) | Self::People(mark) => mark,
        }
    }

    /// Takes the next answer.
    pub(crate) fn write(&mut self, answer: &Answer) -> Result<(), Failure> {
        match self {
            Self::File(output) => return output.write(answer),
            Self::Lines(mark) => {
                let mut out = io::BufWriter::new(io::stdout().lock());
                jsonl::write(&mut out, answer).and_then(|()| out.flush()).map_err(Failure::stdout)?;
                mark.advance(answer);
            }
            Self::People(mark) => {
                show(answer)?;
                mark.advance(answer);
            }
        }
        Ok(())
    }

    /// Makes what was taken so far safe.
    pub(crate) fn settle(&mut self) -> Result<(), Failure> {
        match self {
            Self::File(output) => output.settle(),
            Self::Lines(_) | Self::People(_) => Ok(()),
        }
    }

    /// Ends it; the mark says what it holds.
    pub(crate) fn finish(self) -> Result<Mark, Failure> {
        match self {
            Self::File(output) => output.finish(),
            Self::Lines(mark) | Self::People(mark) => Ok(mark),
        }
    }
}

fn show(answer: &Answer) -> Result<(), Failure> {
    for (row, text) in answer.rows.iter().zip(&answer.batch.texts) {
        let head: Vec<String> = row.head(4).iter().map(|number| format!("{number:.4}")).collect();
        let more = if row.shape.dimensions > 4 { ", …" } else { "" };
        print::line(format_args!("{text:<40}  [{}{more}]", head.join(", ")))?;
    }
    Ok(())
}
