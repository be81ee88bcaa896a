//! How alike two answers to one request are, one of the old checkpoint and one of the new.

use half::f16;
use proto::v1;

/// Two answers held against each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Likeness {
    /// Of each text, the cosine of its two vectors. Empty where they are not to be compared.
    pub cosines: Vec<f64>,
    /// Spearman's rank correlation of the two orders of the documents; `None` where there are no two documents.
    pub rank_correlation: Option<f64>,
}

/// Cosines of the vectors in two answers of one encoding, text by text. None where the answers are of different
/// texts, encodings or lengths, and none of a vector of zeros.
#[must_use]
pub fn cosines(old: &v1::Vectors, new: &v1::Vectors) -> Vec<f64> {
    if (old.encoding, old.dimensions, old.data.len()) != (new.encoding, new.dimensions, new.data.len()) {
        return Vec::new();
    }
    let (old, new) = (rows(old), rows(new));
    old.iter().zip(&new).map(|(old, new)| cosine(old, new)).filter(|cosine| cosine.is_finite()).collect()
}

/// The vectors of an answer, each up to a positive factor.
fn rows(vectors: &v1::Vectors) -> Vec<Vec<f64>> {
    let dimensions = vectors.dimensions as usize;
    let row_bytes = match vectors.encoding() {
        v1::Encoding::F32 | v1::Encoding::Unspecified => 4 * dimensions,
        v1::Encoding::F16 => 2 * dimensions,
        v1::Encoding::Int8 => dimensions,
        v1::Encoding::Binary => dimensions.div_ceil(8),
    };
    let row = |bytes: &[u8]| match vectors.encoding() {
        v1::Encoding::F32 | v1::Encoding::Unspecified => {
            bytes.as_chunks().0.iter().map(|&number| f32::from_le_bytes(number).into()).collect()
        }
        v1::Encoding::F16 => {
            bytes.as_chunks().0.iter().map(|&number| f16::from_le_bytes(number).into()).collect()
        }
        v1::Encoding::Int8 => bytes.iter().map(|&number| number.cast_signed().into()).collect(),
        v1::Encoding::Binary => (0..dimensions).map(|i| sign(bytes[i / 8], i % 8)).collect(),
    };
    vectors.data.chunks_exact(row_bytes.max(1)).map(row).collect()
}

/// 1 where the bit at `place`, counted from the highest, is set.
fn sign(byte: u8, place: usize) -> f64 {
    if byte & (0x80 >> place) == 0 { -1.0 } else { 1.0 }
}

/// The cosine of two vectors of one length; no number where one of them is of zeros.
#[must_use]
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Spearman's rank correlation of two scorings of the same documents: Pearson's over the ranks, equal scores sharing
/// the mean of theirs. `None` of less than two documents, and where one scoring tells none apart.
#[must_use]
pub fn rank_correlation(old: &[v1::Ranking], new: &[v1::Ranking]) -> Option<f64> {
    let mut pairs = Vec::with_capacity(old.len());
    for ranking in old {
        let same = new.iter().find(|other| other.index == ranking.index)?;
        pairs.push((ranking.score, same.score));
    }
    let (old, new): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let (old, new) = (centred(ranks(&old)), centred(ranks(&new)));
    Some(cosine(&old, &new)).filter(|correlation| correlation.is_finite())
}

/// The rank of each number, from 1.
#[allow(clippy::cast_precision_loss, reason = "documents of one call are few")]
fn ranks(numbers: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by(|&a, &b| numbers[a].total_cmp(&numbers[b]));
    let mut ranks = vec![0.0; numbers.len()];
    let mut first = 0;
    for tied in order.chunk_by(|&a, &b| numbers[a].total_cmp(&numbers[b]).is_eq()) {
        let mean = (2 * first + tied.len() + 1) as f64 / 2.0;
        for &i in tied {
            ranks[i] = mean;
        }
        first += tied.len();
    }
    ranks
}

#[allow(clippy::cast_precision_loss, reason = "documents of one call are few")]
fn centred(numbers: Vec<f64>) -> Vec<f64> {
    let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
    numbers.into_iter().map(|number| number - mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(encoding: v1::Encoding, dimensions: u32, data: Vec<u8>) -> v1::Vectors {
        v1::Vectors { encoding: encoding.into(), dimensions, data: data.into(), scales: Vec::new() }
    }

    fn f32s(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn f16s(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect()
    }

    #[track_caller]
    fn assert_near(found: &[f64], expected: &[f64]) {
        let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(found.len() == expected.len() && near, "{found:?} is not {expected:?}");
    }

    #[test]
    fn each_text_has_its_cosine_in_every_encoding() {
        #[track_caller]
        fn check(encoding: v1::Encoding, old: Vec<u8>, new: Vec<u8>, expected: &[f64]) {
            assert_near(&cosines(&vectors(encoding, 2, old), &vectors(encoding, 2, new)), expected);
        }
        let (old, new) = ([3.0, 4.0, 1.0, 0.0], [4.0, 3.0, 0.0, 2.0]);
        check(v1::Encoding::F32, f32s(&old), f32s(&new), &[0.96, 0.0]);
        check(v1::Encoding::F16, f16s(&old), f16s(&new), &[0.96, 0.0]);
        check(v1::Encoding::Int8, vec![3, 4, 0x80, 0], vec![4, 3, 0x7f, 0], &[0.96, -1.0]);
        check(v1::Encoding::Binary, vec![0b1100_0000, 0], vec![0b1000_0000, 0], &[0.0, 1.0]);
    }

    #[test]
    fn what_cannot_be_compared_is_not() {
        let one = vectors(v1::Encoding::F32, 2, f32s(&[1.0, 0.0]));
        let zero = vectors(v1::Encoding::F32, 2, f32s(&[0.0, 0.0]));
        let wider = vectors(v1::Encoding::F32, 1, f32s(&[1.0, 0.0]));
        let none = vectors(v1::Encoding::F32, 0, Vec::new());
        for (old, new) in [(&one, &zero), (&one, &wider), (&one, &none), (&none, &none)] {
            assert_near(&cosines(old, new), &[]);
        }
    }

    fn rankings(scores: &[(u32, f32)]) -> Vec<v1::Ranking> {
        scores.iter().map(|&(index, score)| v1::Ranking { index, score }).collect()
    }

    #[track_caller]
    fn check(old: &[(u32, f32)], new: &[(u32, f32)], expected: Option<f64>) {
        match (rank_correlation(&rankings(old), &rankings(new)), expected) {
            (Some(found), Some(expected)) => assert_near(&[found], &[expected]),
            (found, expected) => assert_eq!(found, expected),
        }
    }

    #[test]
    fn orders_are_compared_by_ranks() {
        check(&[(2, 9.0), (0, 5.0), (1, 1.0)], &[(2, 0.3), (0, 0.2), (1, 0.1)], Some(1.0));
        check(&[(2, 9.0), (0, 5.0), (1, 1.0)], &[(1, 0.3), (0, 0.2), (2, 0.1)], Some(-1.0));
        // By scipy.stats.spearmanr.
        let old = [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0), (4, 5.0)];
        check(&old, &[(0, 5.0), (1, 6.0), (2, 7.0), (3, 8.0), (4, 7.0)], Some(0.820_782_681_668_123_3));
    }

    #[test]
    fn the_best_of_all_are_compared_by_those_that_are_known() {
        check(&[(2, 9.0), (0, 5.0)], &[(0, 0.2), (1, 0.15), (2, 0.1)], Some(-1.0));
        check(&[(0, 1.0), (1, 2.0)], &[(0, 1.0)], None);
        check(&[(0, 1.0)], &[(0, 1.0)], None);
        check(&[], &[], None);
        check(&[(0, 1.0), (1, 1.0)], &[(0, 1.0), (1, 2.0)], None);
    }
}
