//! The texts that calls carry.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Texts, at least one, taken in order and over again.
#[derive(Clone, Debug)]
pub struct Corpus {
    name: String,
    texts: Vec<String>,
}

/// Why there is no corpus.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file is not there or not readable.
    #[error("cannot read the corpus {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what a corpus is made of.
    #[error("line {line} of the corpus {name} is not a JSON object with a \"text\"")]
    Line {
        /// Which corpus.
        name: String,
        /// Counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// There is no text in it.
    #[error("the corpus {0} has no text")]
    Empty(String),
}

/// A line of a corpus; other fields are let be.
#[derive(Deserialize)]
struct Line {
    text: String,
}

/// The fixed corpora: what makes figures of different days and machines comparable.
const FIXED: [(&str, &str); 3] = [
    ("short", include_str!("../corpora/short.jsonl")),
    ("medium", include_str!("../corpora/medium.jsonl")),
    ("long", include_str!("../corpora/long.jsonl")),
];

impl Corpus {
    /// A fixed corpus: `short` (5 to 20 tokens), `medium` (50 to 250) or `long` (512).
    ///
    /// # Errors
    /// Only where the file that was built in is no corpus.
    #[must_use]
    pub fn fixed(name: &str) -> Option<Result<Self, CorpusError>> {
        let (name, lines) = FIXED.iter().find(|(fixed, _)| *fixed == name)?;
        Some(Self::parse(name, lines))
    }

    /// Reads a file of JSON lines, each an object with a `text`; empty lines are skipped.
    ///
    /// # Errors
    /// The file cannot be read, a line is none, or there is no text at all.
    pub fn load(path: &Path) -> Result<Self, CorpusError> {
        let lines =
            fs::read_to_string(path).map_err(|source| CorpusError::Read { path: path.to_owned(), source })?;
        Self::parse(&path.display().to_string(), &lines)
    }

    /// Makes a corpus of JSON lines, as [`Corpus::load`] does.
    ///
    /// # Errors
    /// A line is none, or there is no text at all.
    pub fn parse(name: &str, lines: &str) -> Result<Self, CorpusError> {
        let mut texts = Vec::new();
        for (i, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let Line { text } = serde_json::from_str(line).map_err(|source| CorpusError::Line {
                name: name.to_owned(),
                line: i + 1,
                source,
            })?;
            texts.push(text);
        }
        if texts.is_empty() {
            return Err(CorpusError::Empty(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), texts })
    }

    /// What reports call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The texts of call number `call`, `size` of them; each call goes on where the one before it ended.
    pub(crate) fn batch(&self, call: usize, size: usize) -> Vec<String> {
        let first = call.wrapping_mul(size) % self.texts.len();
        self.texts.iter().cycle().skip(first).take(size).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_go_through_the_texts_in_order_and_over_again() {
        let corpus =
            Corpus::parse("abc", "{\"text\":\"a\"}\n\n{\"text\":\"b\",\"n\":1}\n{\"text\":\"c\"}\n").unwrap();
        assert_eq!(corpus.batch(0, 2), ["a", "b"]);
        assert_eq!(corpus.batch(1, 2), ["c", "a"]);
        assert_eq!(corpus.batch(2, 2), ["b", "c"]);
        assert_eq!(corpus.batch(1, 5), ["c", "a", "b", "c", "a"]);
    }

    #[test]
    fn fixed_corpora_are_built_in() {
        for name in ["short", "medium", "long"] {
            let corpus = Corpus::fixed(name).unwrap().unwrap();
            assert!(corpus.name() == name && corpus.texts.len() >= 100);
        }
        assert!(Corpus::fixed("huge").is_none());
    }

    #[track_caller]
    fn refuses(lines: &str, sentence: &str) {
        assert_eq!(Corpus::parse("x", lines).unwrap_err().to_string(), sentence);
    }

    #[test]
    fn what_is_no_corpus_is_refused_by_line() {
        refuses("", "the corpus x has no text");
        refuses("{\"text\":\"a\"}\nplain", "line 2 of the corpus x is not a JSON object with a \"text\"");
        refuses("{\"text\":1}", "line 1 of the corpus x is not a JSON object with a \"text\"");
    }
}
