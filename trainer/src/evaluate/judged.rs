//! Questions with judged answers, in the files of BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels.tsv`.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::metrics::Ranked;
use super::{DEPTH, Embed, List, Misread, QUERIES, Role, Score, first};
use crate::error::TrainError;
use crate::job::Kind;

/// Texts that are searched, and what answers each query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// Texts that may answer.
    pub passages: Vec<String>,
    /// Texts that ask; of the files' only those for which something was judged.
    pub queries: Vec<String>,
    /// Of each query, the grades of what was judged for it, by their places: above 0 for an answer, else 0.
    pub grades: Vec<BTreeMap<usize, f64>>,
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
        Self::read_all([corpus, queries, qrels]).map_err(first)
    }

    /// As [`Judged::read`].
    ///
    /// # Errors
    /// As [`Judged::read`], of each file that is wrong, with its field.
    pub(super) fn read_all([corpus, queries, qrels]: [&Path; 3]) -> Result<Self, Vec<Misread>> {
        match (texts(corpus), texts(queries)) {
            (Ok(passages), Ok(asked)) => {
                Self::judge((passages, asked), qrels).map_err(|error| vec![("evaluation.qrels", error)])
            }
            (passages, asked) => {
                let judged = fs::File::open(qrels).map_err(|source| TrainError::io(qrels, source));
                let wrong = [
                    passages.err().map(|error| ("evaluation.corpus", error)),
                    asked.err().map(|error| ("evaluation.queries", error)),
                    judged.err().map(|error| ("evaluation.qrels", error)),
                ];
                Err(wrong.into_iter().flatten().collect())
            }
        }
    }

    fn judge((passages, asked): (Texts, Texts), qrels: &Path) -> Result<Self, TrainError> {
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
            let best = grades.entry(query.to_owned()).or_default().entry(*place).or_default();
            *best = grade.max(*best);
        }
        let mut judged = Self::default();
        for (id, text) in asked {
            if let Some(grades) = grades.remove(&id) {
                judged.queries.push(text);
                judged.grades.push(grades);
            }
        }
        let unknown = grades.iter().filter(|(_, grades)| answers(grades).next().is_some());
        if let Some((unknown, _)) = unknown.min_by_key(|(query, _)| *query) {
            return Err(TrainError::format(qrels, format!("there is no query {unknown}")));
        }
        if judged.grades.iter().all(|grades| answers(grades).next().is_none()) {
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
                let grades = &self.grades[ranked.len()];
                let grade = |place: &i64| usize::try_from(*place).ok().and_then(|place| grades.get(&place));
                let found = places.iter().map(|place| grade(place).copied().unwrap_or(0.0)).collect();
                ranked.push(Ranked { found, answers: answers(grades).collect() });
            }
        }
        Ok(ranked)
    }

    /// Orders for each query what was judged for it. Of equal scores the lower grade comes first: who tells nothing apart
    /// finds nothing.
    ///
    /// # Errors
    /// As [`Score::score`].
    pub fn order(&self, scorer: &mut impl Score) -> Result<Vec<Ranked>, TrainError> {
        let list = |(query, grades): (&String, &BTreeMap<usize, f64>)| List {
            query: query.clone(),
            passages: grades.keys().map(|place| self.passages[*place].clone()).collect(),
        };
        let lists: Vec<List> = self.queries.iter().zip(&self.grades).map(list).collect();
        let mut all = scorer.score(&lists)?.into_iter();
        let mut order = |grades: &BTreeMap<usize, f64>| {
            // What is no number is below all numbers.
            let score = |score: f32| if score.is_nan() { f32::NEG_INFINITY } else { score };
            let mut found: Vec<(f64, f32)> = grades.values().copied().zip(all.by_ref().map(score)).collect();
            found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.total_cmp(&b.0)));
            let found = found.into_iter().map(|(grade, _)| grade).collect();
            Ranked { found, answers: answers(grades).collect() }
        };
        Ok(self.grades.iter().map(&mut order).collect())
    }

    /// Itself, if it tells models of `kind` apart; `field` is where it came from.
    pub(super) fn fit(self, kind: Kind, field: &'static str) -> Result<Self, Vec<Misread>> {
        match kind {
            Kind::Embedder => Ok(self),
            Kind::Reranker => self.to_be_ordered(field).map_err(|error| vec![(field, error)]),
        }
    }

    /// Itself, where there is for each query an answer, and something else to be told from it. `field` is where it came
    /// from.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`] names the first query for which there is not.
    pub fn to_be_ordered(self, field: &str) -> Result<Self, TrainError> {
        for (query, grades) in self.queries.iter().zip(&self.grades) {
            let lack = match answers(grades).count() {
                0 => "has no answer",
                count if count == grades.len() => "has nothing but answers",
                _ => continue,
            };
            let what =
                format!("{field} wants for a reranker an answer and another text a query: {query:?} {lack}");
            return Err(TrainError::Unsupported(what));
        }
        Ok(self)
    }
}

fn answers(grades: &BTreeMap<usize, f64>) -> impl Iterator<Item = f64> {
    grades.values().copied().filter(|grade| *grade > 0.0)
}

/// Names of texts, and they.
type Texts = Vec<(String, String)>;

fn texts(path: &Path) -> Result<Texts, TrainError> {
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
            (judged.queries.as_slice(), &judged.grades[0]),
            (["3".to_owned()].as_slice(), &[(0, 0.0), (1, 2.0)].into())
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
            grades: vec![[(3, 1.0), (1, 0.0)].into(), [(0, 2.0)].into()],
        };
        let ranked = judged.rank(&mut ByNumber).unwrap();
        assert_eq!(ranked[0], Ranked { found: vec![0.0, 1.0, 0.0, 0.0], answers: vec![1.0] });
        assert_eq!(ranked[1].found, [2.0, 0.0, 0.0, 0.0]);
    }

    /// Scores by the passage's length, none where it is too long.
    struct ByLength;

    impl Score for ByLength {
        fn score(&mut self, lists: &[List]) -> Result<Vec<f32>, TrainError> {
            let score =
                |text: &String| [f32::NAN, 1.0, 2.0, 3.0].get(text.len()).copied().unwrap_or(f32::NAN);
            Ok(lists.iter().flat_map(|list| list.passages.iter().map(score)).collect())
        }
    }

    #[test]
    fn what_was_judged_is_ordered_and_equal_scores_are_no_merit() {
        let judged = Judged {
            passages: ["ccc", "aa", "bb", "a", "much too long"].map(str::to_owned).to_vec(),
            queries: vec!["q".to_owned(), "r".to_owned(), "s".to_owned()],
            // The first place is judged for the second query alone.
            grades: vec![
                [(1, 1.0), (2, 0.0), (3, 2.0)].into(),
                [(0, 3.0), (1, 0.0)].into(),
                [(3, 0.0), (4, 1.0)].into(),
            ],
        };
        let ordered = judged.order(&mut ByLength).unwrap();
        assert_eq!(ordered[0], Ranked { found: vec![0.0, 1.0, 2.0], answers: vec![1.0, 2.0] });
        assert_eq!(ordered[1], Ranked { found: vec![3.0, 0.0], answers: vec![3.0] });
        assert_eq!(ordered[2], Ranked { found: vec![0.0, 1.0], answers: vec![1.0] });
    }

    #[test]
    fn each_query_has_something_to_be_told_apart() {
        for (qrels, part) in [
            ("q\ta\t0\nq\tb\t1\n", None),
            ("q\ta\t0\nq\tb\t1\nr\ta\t1\nr\tb\t2\n", Some("\"4\" has nothing but answers")),
            ("q\ta\t0\nr\ta\t0\nr\tb\t2\n", Some("\"3\" has no answer")),
        ] {
            let refused = files(qrels).1.unwrap().to_be_ordered("evaluation.qrels").err();
            let sentence = refused.map(|error| error.to_string());
            assert_eq!(sentence.is_some(), part.is_some(), "{sentence:?}");
            let sentence = sentence.unwrap_or_default();
            assert!(sentence.contains(part.unwrap_or_default()), "{sentence}");
        }
    }
}
