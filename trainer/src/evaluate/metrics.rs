//! Metrics of a ranking and of scores, as `trec_eval` and `scipy` define them. Pure.

use super::{DEPTH, Metrics};

/// A query's answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// Grades of what was found, the best match first; 0 for what is not an answer.
    pub found: Vec<f64>,
    /// Grades of all its answers, in any order; above 0.
    pub answers: Vec<f64>,
}

/// Means over queries that have an answer: `ndcg_at_10`, `mrr_at_10`, `recall_at_10`, `recall_at_100`, `map_at_100`.
///
/// nDCG takes the grade itself as gain and divides by the binary logarithm of the rank plus one (Järvelin and
/// Kekäläinen 2002, as `trec_eval` computes it); MAP divides by the number of answers, found or not.
#[must_use]
pub fn retrieval(queries: &[Ranked]) -> Metrics {
    let judged: Vec<&Ranked> = queries.iter().filter(|query| !query.answers.is_empty()).collect();
    let mean = |metric: &dyn Fn(&Ranked) -> f64| {
        let sum: f64 = judged.iter().map(|query| metric(query)).sum();
        sum / count(judged.len().max(1))
    };
    [
        ("ndcg_at_10", mean(&|query| ndcg(query, 10))),
        ("mrr_at_10", mean(&|query| reciprocal_rank(query, 10))),
        ("recall_at_10", mean(&|query| recall(query, 10))),
        ("recall_at_100", mean(&|query| recall(query, 100))),
        ("map_at_100", mean(&|query| average_precision(query, DEPTH))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[allow(clippy::cast_precision_loss, reason = "texts of a data set")]
fn count(number: usize) -> f64 {
    number as f64
}

fn gain(grades: impl Iterator<Item = f64>) -> f64 {
    grades.enumerate().map(|(at, grade)| grade / (count(at) + 2.0).log2()).sum()
}

fn ndcg(query: &Ranked, depth: usize) -> f64 {
    let mut best = query.answers.clone();
    best.sort_by(|a, b| b.total_cmp(a));
    gain(query.found.iter().copied().take(depth)) / gain(best.into_iter().take(depth))
}

fn reciprocal_rank(query: &Ranked, depth: usize) -> f64 {
    let first = query.found.iter().take(depth).position(|grade| *grade > 0.0);
    first.map_or(0.0, |at| 1.0 / (count(at) + 1.0))
}

fn recall(query: &Ranked, depth: usize) -> f64 {
    let found = query.found.iter().take(depth).filter(|grade| **grade > 0.0).count();
    count(found) / count(query.answers.len())
}

fn average_precision(query: &Ranked, depth: usize) -> f64 {
    let (mut found, mut sum) = (0.0, 0.0);
    for (at, _) in query.found.iter().take(depth).enumerate().filter(|(_, grade)| **grade > 0.0) {
        found += 1.0;
        sum += found / (count(at) + 1.0);
    }
    sum / count(query.answers.len())
}

/// Spearman's rank correlation of `a` and `b`, from -1 to 1; equal values share the mean of their ranks. 0 where either is
/// all the same.
#[must_use]
pub fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = f64::midpoint(count(a.len()), 1.0);
    let product =
        |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum() };
    let spread = (product(&a, &a) * product(&b, &b)).sqrt();
    if spread > 0.0 { product(&a, &b) / spread } else { 0.0 }
}

/// Ranks from 1.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let is_equal = |at: &&usize| values[**at].total_cmp(&values[order[start]]).is_eq();
        let end = start + order[start..].iter().take_while(is_equal).count();
        let mean = (count(start) + 1.0 + count(end)) / 2.0;
        for &at in &order[start..end] {
            ranks[at] = mean;
        }
        start = end;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    fn ranked(found: &[f64], answers: &[f64]) -> Ranked {
        Ranked { found: found.to_vec(), answers: answers.to_vec() }
    }

    #[test]
    fn a_ranking_is_measured_as_one_would_by_hand() {
        // Answers of grades 1 and 2 at ranks 2 and 4, and one that was not found.
        let query = ranked(&[0.0, 1.0, 0.0, 2.0], &[2.0, 1.0, 1.0]);
        let log = f64::log2;
        let ideal = 2.0 / log(2.0) + 1.0 / log(3.0) + 1.0 / log(4.0);
        close(ndcg(&query, 10), (1.0 / log(3.0) + 2.0 / log(5.0)) / ideal);
        close(ndcg(&query, 3), (1.0 / log(3.0)) / ideal);
        close(reciprocal_rank(&query, 10), 0.5);
        close(reciprocal_rank(&query, 1), 0.0);
        close(recall(&query, 10), 2.0 / 3.0);
        close(average_precision(&query, 100), (0.5 + 0.5) / 3.0);
    }

    #[test]
    fn metrics_are_means_over_queries_with_answers() {
        let queries = [ranked(&[1.0], &[1.0]), ranked(&[0.0, 0.0], &[1.0]), ranked(&[0.0], &[])];
        let metrics = retrieval(&queries);
        assert_eq!(metrics.len(), 5);
        for (name, value) in metrics {
            close(value, 0.5);
            assert!(name.contains("_at_"));
        }
        assert!(retrieval(&[]).values().all(|value| *value == 0.0));
    }

    #[test]
    fn equal_values_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        close(correlation(&[1.0, 2.0, 3.0], &[10.0, 20.0, 30.0]), 1.0);
        close(correlation(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        // By scipy.stats.spearmanr.
        close(correlation(&[1.0, 2.0, 2.0, 4.0], &[1.0, 3.0, 2.0, 4.0]), 0.948_683_298_050_513_8);
        close(correlation(&[1.0, 1.0], &[1.0, 2.0]), 0.0);
    }
}
