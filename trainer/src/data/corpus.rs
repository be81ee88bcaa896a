//! All files of a job, one after the other.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::jsonl::{Columns, Example, JsonLines};
use super::python::Random;
use crate::error::TrainError;

/// A file, and which of its examples take part.
#[derive(Clone, Debug)]
pub struct Part {
    file: JsonLines,
    /// `None` for all, in order.
    chosen: Option<Vec<usize>>,
}

/// Examples by number, over all parts.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    parts: Vec<Part>,
    /// Number of each part's first example, and the end.
    starts: Vec<usize>,
    /// Where examples are read as rows of a table: its columns.
    table: Option<Columns>,
}

impl Part {
    /// A file of which at most `most` examples take part, drawn from `random` where there are more.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn open(path: &Path, most: usize, random: &mut Random) -> Result<Self, TrainError> {
        let file = JsonLines::open(path)?;
        let chosen = (file.len() > most).then(|| random.sample(file.len(), most));
        Ok(Self { file, chosen })
    }

    /// This part without the examples that `is_held` names by their place in the file, and those alone.
    #[must_use]
    pub fn split(self, is_held: impl Fn(usize) -> bool) -> (Self, Self) {
        let all = (0..self.len()).map(|index| self.line(index));
        let (held, rest) = all.partition(|line| is_held(*line));
        let part = |chosen| Self { file: self.file.clone(), chosen: Some(chosen) };
        (part(rest), part(held))
    }

    /// Examples that take part.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or(self.file.len(), Vec::len)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where its file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Example `index` of those that take part.
    ///
    /// # Errors
    /// [`TrainError::Format`] names the line.
    pub fn read(&self, index: usize) -> Result<Example, TrainError> {
        self.file.read(self.line(index))
    }

    fn line(&self, index: usize) -> usize {
        self.chosen.as_ref().map_or(index, |chosen| chosen.get(index).copied().unwrap_or(usize::MAX))
    }
}

impl Corpus {
    /// Parts one after the other.
    #[must_use]
    pub fn new(parts: Vec<Part>) -> Self {
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts.last().copied().unwrap_or(0) + part.len());
        }
        Self { parts, starts, table: None }
    }

    /// The same examples as rows of one table, as the reference reads them: a column that one file has, all have.
    ///
    /// * `columns` - of each file, by its path
    #[must_use]
    pub fn as_table(mut self, columns: &HashMap<PathBuf, Columns>) -> Self {
        let parts = self.parts.iter().filter(|part| !part.is_empty());
        let of_parts = parts.filter_map(|part| columns.get(part.path()).copied());
        self.table = Some(of_parts.fold(Columns::default(), Columns::with));
        self
    }

    /// All examples.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Example `index`, from 0.
    ///
    /// # Errors
    /// [`TrainError::Format`] names the line.
    pub fn read(&self, index: usize) -> Result<Example, TrainError> {
        let (part, index) = self.place(index);
        let example = part.read(index)?;
        Ok(match self.table {
            Some(table) => table.row(example),
            None => example,
        })
    }

    /// What is wrong with example `index`: its file and line.
    #[must_use]
    pub fn fault(&self, index: usize, reason: impl std::fmt::Display) -> TrainError {
        let (part, index) = self.place(index);
        part.file.fault(part.line(index), reason)
    }

    /// # Panics
    /// When there is no part, and thus no example to ask for.
    fn place(&self, index: usize) -> (&Part, usize) {
        let part = self.starts.partition_point(|&start| start <= index).saturating_sub(1);
        let part = part.min(self.parts.len() - 1);
        (&self.parts[part], index - self.starts[part])
    }
}

/// The files of examples that `path` names: itself, or those in the directory, in the order of their names.
///
/// # Errors
/// [`TrainError::Io`] where it cannot be read; [`TrainError::Format`] for a file that is not JSON Lines by its name.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let is_lines = |path: &Path| path.extension().is_some_and(|kind| kind == "jsonl" || kind == "json");
    if !path.is_dir() {
        return if is_lines(path) {
            Ok(vec![path.to_owned()])
        } else {
            Err(TrainError::format(path, "a file of examples ends in .jsonl or .json"))
        };
    }
    let failed = |source| TrainError::io(path, source);
    let entries = std::fs::read_dir(path).map_err(failed)?;
    let mut found = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    found.retain(|path| is_lines(path));
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(lines: usize) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
        let line = |at| format!("{{\"query\":\"{at}\",\"pos\":[\"b\"]}}\n");
        std::fs::write(file.path(), (0..lines).map(line).collect::<String>()).unwrap();
        file
    }

    fn queries(part: &Part) -> Vec<usize> {
        (0..part.len()).map(|at| part.read(at).unwrap().query.parse().unwrap()).collect()
    }

    #[test]
    fn what_is_held_out_is_not_trained_on() {
        let file = file(10);
        let part = Part::open(file.path(), usize::MAX, &mut Random::new(1)).unwrap();
        let (rest, held) = part.split(|line| line % 3 == 0);
        assert_eq!((queries(&rest), queries(&held)), (vec![1, 2, 4, 5, 7, 8], vec![0, 3, 6, 9]));
        // The place in the file counts, and not that among those that take part.
        let (again, more) = rest.split(|line| line == 4);
        assert_eq!((queries(&again), queries(&more)), (vec![1, 2, 5, 7, 8], vec![4]));
    }

    #[test]
    fn a_column_of_one_file_is_one_of_all() {
        let line = |more: &str| format!("{{\"query\":\"q\",\"pos\":[\"p\"]{more}}}\n");
        let open = |text: String| {
            let file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let part = Part::open(file.path(), usize::MAX, &mut Random::new(1)).unwrap();
            (file, part)
        };
        let sized = line(",\"train_group_size\":3");
        let (_a, prompted) = open(line(",\"prompt\":\"own\"") + &line(""));
        let (_b, plain) = open(sized.clone());
        let (_c, typed) = open(line(",\"type\":null"));
        let read = |parts: &[&Part], at: usize| {
            let columns = |part: &&Part| (part.path().to_owned(), part.file.columns().unwrap());
            let columns = parts.iter().map(columns).collect();
            let parts = parts.iter().map(|part| (*part).clone()).collect();
            let table = Corpus::new(parts).as_table(&columns);
            let Example { prompt, query_prompt, kind, train_group_size, .. } = table.read(at).unwrap();
            assert!(query_prompt.is_none() && kind.is_none());
            (prompt, train_group_size)
        };
        let none = Some("None".to_owned());
        assert_eq!(read(&[&prompted, &plain], 0), (Some("own".to_owned()), None));
        assert_eq!(read(&[&prompted, &plain], 1), (none.clone(), None));
        assert_eq!(read(&[&prompted, &plain], 2), (none, Some(3)));
        assert_eq!(read(&[&plain], 0), (None, Some(3)));
        // Types are looked at before sizes, also those that are not there.
        assert_eq!(read(&[&plain, &typed], 0), (None, None));
        assert_eq!(Corpus::new(vec![prompted]).read(1).unwrap().prompt, None);
    }

    #[test]
    fn of_a_long_file_some_examples_take_part() {
        let file = file(50);
        let part = |seed| Part::open(file.path(), 20, &mut Random::new(seed)).unwrap();
        let mut chosen = queries(&part(1));
        assert_ne!(chosen, queries(&part(2)));
        assert_eq!(chosen, queries(&part(1)));
        chosen.sort_unstable();
        chosen.dedup();
        assert!(chosen.len() == 20 && chosen.iter().all(|at| *at < 50), "{chosen:?}");
        let corpus = Corpus::new(vec![part(1), part(2)]);
        assert_eq!((corpus.len(), corpus.read(20).unwrap().query), (40, queries(&part(2))[0].to_string()));
    }
}
