//! Pairs of texts with scores by people, as in STS-B: how well cosines agree with them.

use std::fs;
use std::path::Path;

use tch::Kind;

use super::{Embed, Role, correlation};
use crate::error::TrainError;

/// Pairs of texts, and how alike they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pairs {
    /// The first of each pair.
    pub first: Vec<String>,
    /// The second.
    pub second: Vec<String>,
    /// How alike they are, on any scale.
    pub scores: Vec<f64>,
}

impl Pairs {
    /// Reads lines of a score and two texts, with tabs between.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Format`] names the line.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let lines = fs::read_to_string(path).map_err(|source| TrainError::io(path, source))?;
        let mut pairs = Self::default();
        for (at, line) in lines.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let fault = |reason: &str| TrainError::format(path, format!("line {}: {reason}", at + 1));
            let parts: Vec<&str> = line.split('\t').collect();
            let [score, first, second] = parts[..] else {
                return Err(fault("a score and two texts are wanted, with tabs between"));
            };
            pairs.scores.push(score.trim().parse().map_err(|_| fault("the score is no number"))?);
            pairs.first.push(first.to_owned());
            pairs.second.push(second.to_owned());
        }
        if pairs.scores.len() < 2 {
            return Err(TrainError::format(path, "there are fewer than two pairs in it"));
        }
        Ok(pairs)
    }

    /// Spearman's correlation of cosines with the scores. Both texts are read as passages: neither asks for the other.
    ///
    /// # Errors
    /// As [`Embed::embed`].
    pub fn measure(&self, embedder: &mut impl Embed) -> Result<f64, TrainError> {
        let first = model::normalized(&embedder.embed(&self.first, Role::Passage)?)?;
        let second = model::normalized(&embedder.embed(&self.second, Role::Passage)?)?;
        let cosines = (first.f_mul(&second)?).f_sum_dim_intlist(1, false, Kind::Double)?;
        Ok(correlation(&Vec::<f64>::try_from(cosines)?, &self.scores))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_score_and_two_texts_are_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "5.0\ta\tb\n\n1\tc\td\n").unwrap();
        let pairs = Pairs::read(file.path()).unwrap();
        assert_eq!(
            (pairs.scores, pairs.first, pairs.second),
            (vec![5.0, 1.0], vec!["a".into(), "c".into()], vec!["b".into(), "d".into()])
        );
        for (text, part) in
            [("5\ta\n", "line 1"), ("5\ta\tb\nx\ta\tb\n", "line 2"), ("5\ta\tb\n", "two pairs")]
        {
            fs::write(file.path(), text).unwrap();
            let error = Pairs::read(file.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
