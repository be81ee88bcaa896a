//! Puts the parts of a call together, in order, and holds them against what was asked.
//!
//! Workers are of our own release, and yet nothing they say is passed on unchecked: a part of another checkpoint, or
//! of another length, would be a wrong answer that looks right.

use std::cmp::Ordering;

use bytes::{Bytes, BytesMut};
use proto::v1;
use proto::worker::v1::{EmbedShardResult, RerankShardResult};

use crate::checkpoint::Digest;
use crate::error::Defect;

/// The vectors of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// One per input, in order.
    pub vectors: v1::Vectors,
    /// Tokens of each input.
    pub input_tokens: Vec<u32>,
}

/// The scores of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// From the best to the worst.
    pub rankings: Vec<v1::Ranking>,
    /// How scores were made.
    pub scoring: v1::Scoring,
    /// What scores are.
    pub score_form: v1::ScoreForm,
    /// Tokens the model read.
    pub tokens: u64,
}

/// Joins the vectors of `parts`, each with its number of inputs, all made by `digest`.
///
/// # Errors
/// [`Defect`] where a part is not what was asked for.
pub fn vectors(digest: &Digest, parts: Vec<(usize, EmbedShardResult)>) -> Result<Embedded, Defect> {
    let mut joined = Vec::with_capacity(parts.len());
    let mut input_tokens = Vec::new();
    for (inputs, part) in parts {
        let EmbedShardResult { provenance, dense, input_tokens: counts, alias: _ } = part;
        made_by(digest, provenance)?;
        let dense = dense.ok_or_else(|| defect("an answer holds no vectors"))?;
        whole(inputs, &dense)?;
        same("token counts", inputs, counts.len())?;
        input_tokens.extend(counts);
        joined.push(dense);
    }
    Ok(Embedded { vectors: join(joined)?, input_tokens })
}

fn join(parts: Vec<v1::Vectors>) -> Result<v1::Vectors, Defect> {
    let first = parts.first().ok_or_else(|| defect("a call has no parts"))?;
    let (encoding, dimensions) = (first.encoding, first.dimensions);
    for part in &parts {
        same("encoding", encoding, part.encoding)?;
        same("dimensions", dimensions, part.dimensions)?;
    }
    let scales = parts.iter().flat_map(|part| part.scales.iter().copied()).collect();
    Ok(v1::Vectors { encoding, dimensions, data: concatenate(parts), scales })
}

/// The bytes of one part are passed on as they are, without a copy.
fn concatenate(mut parts: Vec<v1::Vectors>) -> Bytes {
    if parts.len() == 1 {
        return std::mem::take(&mut parts[0].data);
    }
    let mut data = BytesMut::with_capacity(parts.iter().map(|part| part.data.len()).sum());
    for part in parts {
        data.extend_from_slice(&part.data);
    }
    data.freeze()
}

fn whole(inputs: usize, vectors: &v1::Vectors) -> Result<(), Defect> {
    let dimensions = vectors.dimensions as usize;
    let (row_bytes, scales) = match vectors.encoding() {
        v1::Encoding::F32 => (4 * dimensions, 0),
        v1::Encoding::F16 => (2 * dimensions, 0),
        v1::Encoding::Int8 => (dimensions, inputs),
        v1::Encoding::Binary => (dimensions.div_ceil(8), 0),
        v1::Encoding::Unspecified => return Err(defect("vectors are of no known encoding")),
    };
    same("bytes of vectors", inputs * row_bytes, vectors.data.len())?;
    same("scales", scales, vectors.scales.len())
}

/// Orders the documents of `parts`, each with its number of documents, and keeps the `top_n` best.
///
/// # Errors
/// [`Defect`] where a part is not what was asked for.
pub fn rankings(
    digest: &Digest,
    parts: Vec<(usize, RerankShardResult)>,
    top_n: Option<usize>,
) -> Result<Ranked, Defect> {
    let (_, first) = parts.first().ok_or_else(|| defect("a call has no parts"))?;
    let (scoring, score_form) = (first.scoring, first.score_form);
    let mut scores = Vec::new();
    let mut tokens = 0;
    for (documents, part) in parts {
        made_by(digest, part.provenance)?;
        same("scores", documents, part.scores.len())?;
        same("scoring", scoring, part.scoring)?;
        same("score form", score_form, part.score_form)?;
        scores.extend(part.scores);
        tokens += part.tokens;
    }
    if scores.iter().any(|score| score.is_nan()) {
        return Err(defect("a score is not a number"));
    }
    let scoring = v1::Scoring::try_from(scoring).map_err(|_| defect("scores were made in an unknown way"))?;
    let score_form = match v1::ScoreForm::try_from(score_form) {
        Ok(v1::ScoreForm::Unspecified) | Err(_) => return Err(defect("scores are of no known form")),
        Ok(known) => known,
    };
    Ok(Ranked { rankings: order(&scores, top_n), scoring, score_form, tokens })
}

/// The positions of `scores`, best first, equal ones by position.
fn order(scores: &[f32], top_n: Option<usize>) -> Vec<v1::Ranking> {
    let ranking = |(index, &score): (usize, &f32)| v1::Ranking {
        index: u32::try_from(index).expect("the limit on inputs is far below 2^32"),
        score,
    };
    let mut rankings: Vec<_> = scores.iter().enumerate().map(ranking).collect();
    // Stable, so equal scores stay by position.
    rankings.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal));
    rankings.truncate(top_n.unwrap_or(usize::MAX));
    rankings
}

/// The first law: one call, one checkpoint.
///
/// # Errors
/// [`Defect`] where it is another, or unsaid.
pub fn made_by(digest: &Digest, provenance: Option<v1::Provenance>) -> Result<(), Defect> {
    let made_by = provenance.map(|provenance| provenance.digest).unwrap_or_default();
    same("checkpoint", digest.as_str(), made_by.as_str())
}

/// That a worker's answer says `found` where `wanted` was asked for.
///
/// # Errors
/// [`Defect`] where it does not.
pub fn same<T: Copy + PartialEq + std::fmt::Debug>(what: &str, wanted: T, found: T) -> Result<(), Defect> {
    if wanted == found {
        return Ok(());
    }
    Err(Defect(format!("{what} of a worker's answer: wanted {wanted:?}, found {found:?}")))
}

fn defect(what: &str) -> Defect {
    Defect(what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest() -> Digest {
        Digest::from("d")
    }

    fn provenance() -> v1::Provenance {
        v1::Provenance { digest: "d".into(), ..v1::Provenance::default() }
    }

    fn shard(encoding: v1::Encoding, dimensions: u32, data: &[u8], scales: &[f32]) -> EmbedShardResult {
        let dense = v1::Vectors {
            encoding: encoding.into(),
            dimensions,
            data: Bytes::copy_from_slice(data),
            scales: scales.to_vec(),
        };
        EmbedShardResult {
            provenance: Some(provenance()),
            dense: Some(dense),
            input_tokens: vec![3; 2],
            alias: None,
        }
    }

    fn scored(scores: &[f32]) -> (usize, RerankShardResult) {
        let part = RerankShardResult {
            provenance: Some(provenance()),
            scores: scores.to_vec(),
            tokens: 10,
            scoring: v1::Scoring::Dense.into(),
            score_form: v1::ScoreForm::Raw.into(),
            alias: None,
        };
        (scores.len(), part)
    }

    #[test]
    fn vectors_are_joined_in_order_with_their_scales() {
        let parts = vec![
            (2, shard(v1::Encoding::Int8, 2, &[1, 2, 3, 4], &[0.1, 0.2])),
            (2, shard(v1::Encoding::Int8, 2, &[5, 6, 7, 8], &[0.3, 0.4])),
        ];
        let Embedded { vectors, input_tokens } = vectors(&digest(), parts).unwrap();
        assert_eq!(vectors.data.as_ref(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(vectors.scales, [0.1, 0.2, 0.3, 0.4]);
        assert_eq!((vectors.encoding(), vectors.dimensions), (v1::Encoding::Int8, 2));
        assert_eq!(input_tokens, [3; 4]);
    }

    #[test]
    fn the_length_of_each_encoding_is_known() {
        #[track_caller]
        fn check(encoding: v1::Encoding, bytes: usize, scales: &[f32]) {
            let part = |bytes: usize| vec![(2, shard(encoding, 12, &vec![0; bytes], scales))];
            assert!(vectors(&digest(), part(bytes)).is_ok());
            assert!(vectors(&digest(), part(bytes - 1)).is_err());
        }
        check(v1::Encoding::F32, 96, &[]);
        check(v1::Encoding::F16, 48, &[]);
        check(v1::Encoding::Int8, 24, &[1.0, 1.0]);
        check(v1::Encoding::Binary, 4, &[]);
    }

    #[test]
    fn a_part_that_was_not_asked_for_is_a_defect() {
        #[track_caller]
        fn check(parts: Vec<(usize, EmbedShardResult)>, expected: &str) {
            let error = vectors(&digest(), parts).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let good = || (2, shard(v1::Encoding::Binary, 8, &[0, 0], &[]));
        let (_, mut other) = good();
        other.provenance = Some(v1::Provenance { digest: "e".into(), ..provenance() });
        check(vec![good(), (2, other)], "checkpoint");
        check(vec![good(), (2, EmbedShardResult { provenance: None, ..good().1 })], "checkpoint");
        check(vec![(2, EmbedShardResult { dense: None, ..good().1 })], "no vectors");
        check(vec![(3, good().1)], "bytes");
        check(vec![(2, EmbedShardResult { input_tokens: vec![1], ..good().1 })], "token counts");
        check(vec![good(), (2, shard(v1::Encoding::Binary, 16, &[0; 4], &[]))], "dimensions");
        check(vec![good(), (2, shard(v1::Encoding::Int8, 8, &[0; 16], &[1.0; 2]))], "encoding");
        check(vec![(2, shard(v1::Encoding::Unspecified, 8, &[0, 0], &[]))], "encoding");
        check(Vec::new(), "no parts");
    }

    #[test]
    fn documents_are_ranked_over_all_parts() {
        let parts = vec![scored(&[0.1, 0.9]), scored(&[0.9, -0.5, 0.2])];
        let ranked = rankings(&digest(), parts.clone(), None).unwrap();
        let indices: Vec<_> = ranked.rankings.iter().map(|ranking| ranking.index).collect();
        assert_eq!(indices, [1, 2, 4, 0, 3]);
        assert_eq!(
            (ranked.tokens, ranked.scoring, ranked.score_form),
            (20, v1::Scoring::Dense, v1::ScoreForm::Raw)
        );
        assert_eq!(rankings(&digest(), parts.clone(), Some(2)).unwrap().rankings, ranked.rankings[..2]);
        assert_eq!(rankings(&digest(), parts, Some(99)).unwrap().rankings, ranked.rankings);
    }

    #[test]
    fn scores_that_cannot_be_ordered_are_a_defect() {
        let check = |parts, expected: &str| {
            let error = rankings(&digest(), parts, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(vec![scored(&[0.5, f32::NAN])], "not a number");
        check(vec![(2, scored(&[0.5]).1)], "scores");
        let (documents, part) = scored(&[1.0]);
        check(vec![(documents, RerankShardResult { score_form: 0, ..part.clone() })], "form");
        check(vec![scored(&[1.0]), (1, RerankShardResult { score_form: 2, ..part })], "form");
        check(Vec::new(), "no parts");
    }

    proptest! {
        #[test]
        fn a_ranking_is_all_documents_best_first(scores in proptest::collection::vec(-4_i8..4, 1..50)) {
            let scores: Vec<f32> = scores.into_iter().map(f32::from).collect();
            let ranked = order(&scores, None);
            let mut indices: Vec<_> = ranked.iter().map(|ranking| ranking.index as usize).collect();
            for pair in ranked.windows(2) {
                let worse = pair[0].score < pair[1].score;
                let better = pair[0].score > pair[1].score;
                prop_assert!(!worse && (better || pair[0].index < pair[1].index));
            }
            for ranking in &ranked {
                prop_assert_eq!(ranking.score.to_bits(), scores[ranking.index as usize].to_bits());
            }
            indices.sort_unstable();
            prop_assert!(indices.into_iter().eq(0..scores.len()));
        }

        #[test]
        fn joined_vectors_lose_nothing(rows in proptest::collection::vec(1_usize..5, 1..20)) {
            let mut next = 0_u8;
            let mut expected: Vec<u8> = Vec::new();
            let parts = rows.iter().map(|&rows| {
                let data: Vec<u8> = (0..rows).map(|_| { next = next.wrapping_add(1); next }).collect();
                expected.extend(&data);
                let mut part = shard(v1::Encoding::Binary, 8, &data, &[]);
                part.input_tokens = vec![1; rows];
                (rows, part)
            }).collect();
            let joined = vectors(&digest(), parts).unwrap().vectors;
            prop_assert_eq!(joined.data.as_ref(), expected);
        }
    }
}
