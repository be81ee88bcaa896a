//! Files of examples, one JSON object a line, read where they lie: a file costs sixteen bytes a line of memory.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use torch_ext::MappedFile;

use crate::error::TrainError;

/// One line of `FlagEmbedding`'s format. Fields that are not known are passed over.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Example {
    /// The query's text.
    pub query: String,
    /// Texts that answer it.
    pub pos: Vec<String>,
    /// Texts that do not.
    #[serde(default)]
    pub neg: Vec<String>,
    /// The teacher's score of each positive.
    #[serde(default)]
    pub pos_scores: Option<Vec<f64>>,
    /// The teacher's score of each negative.
    #[serde(default)]
    pub neg_scores: Option<Vec<f64>>,
    /// In place of an embedder's instruction for queries.
    #[serde(default)]
    pub prompt: Option<String>,
    /// In place of a cross-encoder's instruction for queries.
    #[serde(default)]
    pub query_prompt: Option<String>,
    /// In place of a cross-encoder's instruction for passages.
    #[serde(default)]
    pub passage_prompt: Option<String>,
    /// What kind of task it is of.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Queries a rank and step, where batches are of one file; the first line's counts.
    #[serde(default)]
    pub batch_size: Option<usize>,
    /// Positive and negatives of a query, where batches are of one file; a batch's first line's counts.
    #[serde(default)]
    pub train_group_size: Option<i64>,
}

impl Example {
    /// Positive and negatives of a query in the batch that this example begins, where batches are of one file.
    #[must_use]
    pub fn group_size(&self, usual: usize) -> usize {
        match self.kind.as_deref() {
            Some("only_1neg") => 2,
            Some("symmetric_class") => usual.min(self.neg.len() + 1),
            Some(_) => usual,
            None => self
                .train_group_size
                .and_then(|size| usize::try_from(size).ok())
                .filter(|&size| size > 0)
                .unwrap_or(usual),
        }
    }

    /// A rank's batch of the file that this example begins, where batches are of one file.
    #[must_use]
    pub fn batch(&self, usual: usize) -> usize {
        let batch = match (self.batch_size, self.kind.as_deref()) {
            (Some(size), _) => size,
            (None, Some(kind)) if kind.contains("symmetric") => usual / 2,
            (None, _) => usual,
        };
        batch.max(1)
    }
}

/// Columns of the table that the reference makes of all files, as far as it asks whether they are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // A column each.
pub struct Columns {
    prompt: bool,
    query_prompt: bool,
    passage_prompt: bool,
    kind: bool,
}

impl Columns {
    /// Those that a line names, whatever it holds there.
    fn of(line: &HashMap<String, Value>) -> Self {
        let there = |name| line.contains_key(name);
        Self {
            prompt: there("prompt"),
            query_prompt: there("query_prompt"),
            passage_prompt: there("passage_prompt"),
            kind: there("type"),
        }
    }

    /// The columns of both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            prompt: self.prompt || other.prompt,
            query_prompt: self.query_prompt || other.query_prompt,
            passage_prompt: self.passage_prompt || other.passage_prompt,
            kind: self.kind || other.kind,
        }
    }

    /// An example as a row: a prompt that it lacks is spelled `None`, and where there are types, sizes do not count.
    #[must_use]
    pub fn row(self, example: Example) -> Example {
        let spelled = |there: bool, prompt: Option<String>| prompt.or(there.then(|| "None".to_owned()));
        Example {
            prompt: spelled(self.prompt, example.prompt),
            query_prompt: spelled(self.query_prompt, example.query_prompt),
            passage_prompt: spelled(self.passage_prompt, example.passage_prompt),
            train_group_size: example.train_group_size.filter(|_| !self.kind),
            ..example
        }
    }
}

/// A file of examples.
#[derive(Clone, Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: Option<MappedFile>,
    /// Start of each line that is not blank, and its number from 1.
    lines: Vec<(usize, usize)>,
}

impl JsonLines {
    /// Finds the lines of a file; what they hold is looked at when they are read.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let size = std::fs::metadata(path).map_err(|source| TrainError::io(path, source))?.len();
        // What is empty cannot be mapped.
        let file = if size == 0 { None } else { Some(MappedFile::open(path)) };
        let file = file.transpose().map_err(|source| TrainError::io(path, source))?;
        let bytes = file.as_ref().map_or(&[][..], MappedFile::bytes);
        let mut lines = Vec::new();
        let mut start = 0;
        for (line, number) in bytes.split_inclusive(|&byte| byte == b'\n').zip(1..) {
            if !line.trim_ascii().is_empty() {
                lines.push((start, number));
            }
            start += line.len();
        }
        Ok(Self { path: path.to_owned(), lines, file })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many examples it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Example `index`, from 0.
    ///
    /// # Errors
    /// [`TrainError::Format`] names the line that is not an example.
    pub fn read(&self, index: usize) -> Result<Example, TrainError> {
        self.parse(index)
    }

    fn parse<T: DeserializeOwned>(&self, index: usize) -> Result<T, TrainError> {
        let Some(&(start, _)) = self.lines.get(index) else {
            return Err(TrainError::format(&self.path, format!("there is no example {index}")));
        };
        let bytes = self.file.as_ref().map_or(&[][..], MappedFile::bytes);
        let line = bytes[start..].split(|&byte| byte == b'\n').next().unwrap_or_default();
        serde_json::from_slice(line).map_err(|error| self.fault(index, error))
    }

    /// Its columns: what any of its lines has.
    ///
    /// # Errors
    /// [`TrainError::Format`] names the line that is no object.
    pub fn columns(&self) -> Result<Columns, TrainError> {
        let of_line = |index| self.parse(index).map(|line| Columns::of(&line));
        (0..self.len()).try_fold(Columns::default(), |columns, index| Ok(columns.with(of_line(index)?)))
    }

    /// What is wrong with example `index`.
    #[must_use]
    pub fn fault(&self, index: usize, reason: impl fmt::Display) -> TrainError {
        let number = self.lines.get(index).map_or(0, |&(_, number)| number);
        TrainError::format(&self.path, format!("line {number}: {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::NamedTempFile, JsonLines) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let lines = JsonLines::open(file.path()).unwrap();
        (file, lines)
    }

    #[test]
    fn blank_lines_do_not_count_and_the_last_needs_no_end() {
        let (_file, lines) = file(
            "{\"query\":\"a\",\"pos\":[\"b\"]}\n\n  \n{\"query\":\"c\",\"pos\":[\"d\"],\"neg\":[\"e\"],\"id\":7}",
        );
        assert_eq!(lines.len(), 2);
        assert_eq!(lines.read(0).unwrap().query, "a");
        let second = lines.read(1).unwrap();
        assert_eq!((second.pos, second.neg), (vec!["d".to_owned()], vec!["e".to_owned()]));
        assert!(file("").1.is_empty());
    }

    #[test]
    fn a_fault_names_the_file_and_the_line() {
        let (file, lines) = file("{\"query\":\"a\",\"pos\":[\"b\"]}\n\n{\"query\":5}\nnothing\n");
        for (index, line) in [(1, "line 3"), (2, "line 4")] {
            let sentence = lines.read(index).unwrap_err().to_string();
            let path = file.path().display().to_string();
            assert!(sentence.contains(line) && sentence.contains(&path), "{sentence}");
        }
        lines.read(3).unwrap_err();
    }

    #[test]
    fn groups_and_batches_are_as_large_as_their_kind_says() {
        let example = |kind: Option<&str>, negatives: usize, size: Option<i64>| Example {
            kind: kind.map(str::to_owned),
            neg: vec![String::new(); negatives],
            train_group_size: size,
            ..Example::default()
        };
        for (kind, negatives, size, expected) in [
            (None, 3, None, 8),
            (None, 3, Some(5), 5),
            (None, 3, Some(-5), 8),
            (Some("only_1neg"), 3, Some(5), 2),
            (Some("symmetric_class"), 3, Some(5), 4),
            (Some("symmetric_class"), 20, None, 8),
            (Some("symmetric_sts"), 3, Some(5), 8),
            (Some("retrieval"), 3, Some(5), 8),
        ] {
            let found = example(kind, negatives, size).group_size(8);
            assert_eq!(found, expected, "{kind:?}, {negatives} negatives, {size:?}");
        }
        let batch = |kind, own| Example { batch_size: own, ..example(kind, 1, None) }.batch(16);
        assert_eq!((batch(None, None), batch(None, Some(5)), batch(Some("retrieval"), None)), (16, 5, 16));
        assert_eq!((batch(Some("symmetric_sts"), None), batch(Some("symmetric_sts"), Some(5))), (8, 5));
        // Half of one query is one, and so is what is no batch.
        let least = [example(Some("symmetric_sts"), 1, None).batch(1), batch(None, Some(0))];
        assert_eq!(least, [1, 1]);
    }
}
