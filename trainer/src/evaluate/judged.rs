//! Questions with judged answers, in the files of BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels.tsv`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::metrics::Ranked;
use super::{DEPTH, Embed, QUERIES, Role};
use crate::error::TrainError;

/// Texts that are searched, and what answers each query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// Texts that may answer.
    pub passages: Vec<String>,
    /// Texts that ask; of the files' only those with an answer.
    pub queries: Vec<String>,
    /// Of each query, its answers by their places, with grades above 0.
    pub answers: Vec<BTreeMap<usize, f64>>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(alias = "_id")]
    id: String,
    #[serde(default)]
    title: String,
    text: String,
}

impl Judged {
    /// Reads the three files. Lines of `corpus` and `queries` are `{"id", "text"}`, with a `title` in front of the text if
    /// there is one; lines of `qrels` are query, document and grade, with tabs between, and may begin with a heading.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Format`] names the line.
    pub fn read(corpus: &Path, queries: &Path, qrels: &Path) -> Result<Self, TrainError> {
        let (passages, asked) = (texts(corpus)?, texts(queries)?);
        let places: HashMap<&str, usize> =
            passages.iter().enumerate().map(|(at, (id, _))| (id.as_str(), at)).collect();
        let mut grades: HashMap<String, BTreeMap<usize, f64>> = HashMap::new();
        let judgements = fs::read_to_string(qrels).map_err(|source| TrainError::io(qrels, source))?;
        for (at, line) in judgements.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fault = |reason: String| TrainError::format(qrels, format!("line {}: {reason}", at + 1));
            let parts: Vec<&str> = line.split('\t').collect();
            let [query, document, grade] = parts[..] else {
                return Err(fault(
                    "a query, a document and a grade are wanted, with tabs between".to_owned(),
                ));
            };
            let Ok(grade) = grade.trim().parse::<f64>() else {
                if at == 0 {
                    continue;
                }
                return Err(fault(format!("{grade:?} is no grade")));
            };
            let place =
                places.get(document).ok_or_else(|| fault(format!("there is no document {document}")))?;
            if grade > 0.0 {
                grades.entry(query.to_owned()).or_default().insert(*place, grade);
            }
        }
        let mut judged = Self::default();
        for (id, text) in asked {
            if let Some(answers) = grades.remove(&id) {
                judged.queries.push(text);
                judged.answers.push(answers);
            }
        }
        if let Some(unknown) = grades.keys().min() {
            return Err(TrainError::format(qrels, format!("there is no query {unknown}")));
        }
        if judged.queries.is_empty() {
            return Err(TrainError::format(qrels, "no query has an answer"));
        }
        judged.passages = passages.into_iter().map(|(_, text)| text).collect();
        Ok(judged)
    }

    /// Ranks all passages for each query.
    ///
    /// # Errors
    /// As [`Embed::embed`].
    pub fn rank(&self, embedder: &mut impl Embed) -> Result<Vec<Ranked>, TrainError> {
        let passages = embedder.embed(&self.passages, Role::Passage)?.f_tr()?;
        let queries = embedder.embed(&self.queries, Role::Query)?;
        let depth = i64::try_from(DEPTH.min(self.passages.len())).unwrap_or(i64::MAX);
        let mut ranked = Vec::with_capacity(self.queries.len());
        for rows in queries.f_split(QUERIES, 0)? {
            // Equal scores in the order of the corpus, wherever it is run.
            let scores = rows.f_matmul(&passages)?; // [queries, passages]
            let order = scores.f_sort_stable(true, -1, true)?.1.f_narrow(1, 0, depth)?.f_contiguous()?;
            let order = Vec::<i64>::try_from(order.f_view([-1])?)?;
            for places in order.chunks_exact(usize::try_from(depth).unwrap_or(1)) {
                let answers = &self.answers[ranked.len()];
                let grade = |place: &i64| usize::try_from(*place).ok().and_then(|place| answers.get(&place));
                let found = places.iter().map(|place| grade(place).copied().unwrap_or(0.0)).collect();
                ranked.push(Ranked { found, answers: answers.values().copied().collect() });
            }
        }
        Ok(ranked)
    }
}

fn texts(path: &Path) -> Result<Vec<(String, String)>, TrainError> {
    let lines = fs::read_to_string(path).map_err(|source| TrainError::io(path, source))?;
    let lines = lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let read = |(at, line): (usize, &str)| {
        let line: Line = serde_json::from_str(line)
            .map_err(|error| TrainError::format(path, format!("line {}: {error}", at + 1)))?;
        let Line { id, title, text } = line;
        Ok((id, if title.is_empty() { text } else { format!("{title} {text}") }))
    };
    let texts = lines.map(read).collect::<Result<Vec<_>, TrainError>>()?;
    if texts.is_empty() { Err(TrainError::format(path, "there is no text in it")) } else { Ok(texts) }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    /// Texts are numbers; a text is like another by their product.
    struct ByNumber;

    impl Embed for ByNumber {
        fn embed(&mut self, texts: &[String], _role: Role) -> Result<Tensor, TrainError> {
            let rows: Vec<f32> = texts.iter().flat_map(|text| [text.parse::<f32>().unwrap(), 1.0]).collect();
            Ok(Tensor::from_slice(&rows).view([-1, 2]))
        }
    }

    fn files(qrels: &str) -> (tempfile::TempDir, Result<Judged, TrainError>) {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let corpus =
            "{\"_id\": \"a\", \"text\": \"1\"}\n\n{\"id\": \"b\", \"title\": \"2\", \"text\": \"two\"}\n";
        fs::write(path("corpus.jsonl"), corpus).unwrap();
        let queries = "{\"id\": \"q\", \"text\": \"3\"}\n{\"id\": \"r\", \"text\": \"4\"}\n";
        fs::write(path("queries.jsonl"), queries).unwrap();
        fs::write(path("qrels.tsv"), qrels).unwrap();
        let read = Judged::read(&path("corpus.jsonl"), &path("queries.jsonl"), &path("qrels.tsv"));
        (dir, read)
    }

    #[test]
    fn the_files_of_a_data_set_are_read() {
        let (_dir, judged) = files("query-id\tcorpus-id\tscore\nq\tb\t2\nq\ta\t0\n");
        let judged = judged.unwrap();
        assert_eq!(judged.passages, ["1", "2 two"]);
        assert_eq!(
            (judged.queries.as_slice(), &judged.answers[0]),
            (["3".to_owned()].as_slice(), &[(1, 2.0)].into())
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        for (qrels, part) in [
            ("q\tb\n", "line 1: a query, a document and a grade"),
            ("q\tb\t1\nq\tc\t1\n", "line 2: there is no document c"),
            ("q\tb\t1\nq\tb\tx\n", "line 2: \"x\" is no grade"),
            ("s\tb\t1\n", "there is no query s"),
            ("q\tb\t0\n", "no query has an answer"),
        ] {
            let error = files(qrels).1.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn passages_are_ranked_and_equal_ones_keep_their_order() {
        let judged = Judged {
            passages: ["1", "5", "3", "5"].map(str::to_owned).to_vec(),
            queries: vec!["1".to_owned(), "-1".to_owned()],
            answers: vec![[(3, 1.0)].into(), [(0, 2.0)].into()],
        };
        let ranked = judged.rank(&mut ByNumber).unwrap();
        assert_eq!(ranked[0], Ranked { found: vec![0.0, 1.0, 0.0, 0.0], answers: vec![1.0] });
        assert_eq!(ranked[1].found, [2.0, 0.0, 0.0, 0.0]);
    }
}
