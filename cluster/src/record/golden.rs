//! Golden inputs: a few texts, and what a checkpoint makes of them. A worker is ready with it only when it meets them: a
//! damaged file, a wrong pooling, a processor that calculates otherwise would all show here, before anybody is answered.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::ModelKind;

/// Texts that differ in length, language and kind; the first halves of pairs are questions.
const TEXTS: [(&str, &str); 8] = [
    ("What names a checkpoint?", "The digest of its manifest names a checkpoint."),
    ("hello", "Hello, world!"),
    ("Où sont les vecteurs ?", "Les vecteurs de deux modèles ne se comparent pas."),
    ("Wie alt ist der Baum?", "Die Linde vor dem Haus ist über dreihundert Jahre alt."),
    ("什么是向量检索？", "向量检索按照向量之间的距离查找相似的文本。"),
    ("ما هو البحث الدلالي؟", "البحث الدلالي يجد النصوص المتشابهة في المعنى."),
    ("fn main", "fn main() { let x = [1, 2, 3]; println!(\"{:?}\", x.iter().sum::<i32>()); }"),
    (
        "How is an index moved from one checkpoint to another?",
        "A vector means something only inside its own space. When a model is trained further, the same sentence is put \
         in another place, and an index that was built before does not know the new places. So every document is \
         embedded once more with the new checkpoint, into an index of its own, while questions are still answered from \
         the old one with vectors of the old checkpoint. Only when the new index is whole do questions go to it, and \
         only then may the old checkpoint be let go. Until that day both must be served side by side, each under its \
         own digest, and no answer may ever hold vectors of both. Whoever mixes them gets neighbours by accident, and \
         nothing in the numbers themselves would tell him so.",
    ),
];

/// Inputs, and what the checkpoint makes of them in f32. Each input is read as it is, no prompt in front of it, and cut at
/// the end to the checkpoint's window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Golden {
    /// The inputs; for a cross-encoder each is a query and a document, as [`Golden::pair`] joins them.
    pub texts: Vec<String>,
    /// Base64 of f32, little-endian: `[texts, dimensions]`, or `[texts]` scores of a cross-encoder.
    vectors: String,
    /// Who computed them. Records of releases that did not ask are of a trial.
    #[serde(default)]
    pub from: GoldenSource,
}

/// Who computed golden vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoldenSource {
    /// The worker that tried the checkpoint when it was published: all workers compute what this one did.
    #[default]
    Trial,
    /// Who published it, by an implementation of their own, which that worker agreed with.
    Publisher,
}

/// That recorded vectors are not base64 of whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the golden vectors are not base64 of f32")]
pub struct MalformedGolden;

/// How a checkpoint does not meet its golden inputs.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Unfaithful {
    /// The record holds no numbers.
    #[error(transparent)]
    Malformed(#[from] MalformedGolden),
    /// There are more numbers or fewer than texts ask for.
    #[error("{numbers} numbers are recorded for {texts} texts, and each has {width}")]
    Numbers {
        /// Recorded ones.
        numbers: usize,
        /// How many there are.
        texts: usize,
        /// Numbers of an answer.
        width: usize,
    },
    /// A vector points elsewhere.
    #[error("the cosine of text {at} is {cosine:.5}, and must be {}", Golden::COSINE)]
    Cosine {
        /// Which text, from 0.
        at: usize,
        /// With the vector recorded; no number where either is of zeros or has none.
        cosine: f32,
    },
    /// A score is another.
    #[error("the score of pair {at} is {found:.4}, and was {recorded:.4}")]
    Score {
        /// Which pair, from 0.
        at: usize,
        /// The score now.
        found: f32,
        /// The score recorded.
        recorded: f32,
    },
}

impl Golden {
    /// The cosine that each golden vector must keep with the one recorded.
    pub const COSINE: f32 = 0.999;
    /// What a golden score, between 0 and 1, may differ from the one recorded. A cross-encoder in reduced precision is
    /// held to the same.
    pub const SCORE: f32 = 0.01;
    /// What stands between the two parts of a pair; no query has it.
    pub const BETWEEN: char = '\n';

    /// What `texts` became: `vectors` is `[texts, dimensions]` flat, or `[texts]` scores between 0 and 1.
    #[must_use]
    pub fn new(texts: Vec<String>, vectors: &[f32], from: GoldenSource) -> Self {
        let bytes: Vec<u8> = vectors.iter().flat_map(|number| number.to_le_bytes()).collect();
        Self { texts, vectors: BASE64.encode(bytes), from }
    }

    /// The golden inputs of this release: queries, which embedders have none of, and texts.
    pub fn inputs(kind: ModelKind) -> impl Iterator<Item = (Option<&'static str>, &'static str)> {
        TEXTS.iter().map(move |(query, text)| match kind {
            ModelKind::Embedder => (None, *text),
            ModelKind::CrossEncoder => (Some(*query), *text),
        })
    }

    /// An input as it is recorded.
    #[must_use]
    pub fn pair(query: Option<&str>, text: &str) -> String {
        query.map_or_else(|| text.to_owned(), |query| format!("{query}{}{text}", Self::BETWEEN))
    }

    /// `[texts, dimensions]` flat, or `[texts]` scores. How many numbers there are is not checked against the texts.
    ///
    /// # Errors
    /// [`MalformedGolden`] where the record holds something else.
    pub fn vectors(&self) -> Result<Vec<f32>, MalformedGolden> {
        let bytes = BASE64.decode(&self.vectors).map_err(|_| MalformedGolden)?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(MalformedGolden);
        }
        Ok(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Bytes that it takes of a record.
    #[must_use]
    pub fn bytes(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |text| text.len())
    }

    /// Holds `found`, `[texts, dimensions]` flat or `[texts]` scores, against what was recorded; answers the lowest cosine,
    /// or none for a cross-encoder. `dimensions` are an embedder's.
    ///
    /// # Errors
    /// The first text that differs, and by how much.
    pub fn check(
        &self,
        kind: ModelKind,
        dimensions: usize,
        found: &[f32],
    ) -> Result<Option<f32>, Unfaithful> {
        let recorded = self.vectors()?;
        let width = match kind {
            ModelKind::Embedder => dimensions,
            ModelKind::CrossEncoder => 1,
        };
        if recorded.len() != self.texts.len() * width || found.len() != recorded.len() {
            let (texts, numbers) = (self.texts.len(), recorded.len());
            return Err(Unfaithful::Numbers { numbers, texts, width });
        }
        let pairs = recorded.chunks_exact(width.max(1)).zip(found.chunks_exact(width.max(1)));
        let mut lowest = None;
        for (at, (recorded, found)) in pairs.enumerate() {
            match kind {
                ModelKind::Embedder => {
                    let cosine = cosine(recorded, found);
                    // A cosine that is not a number is unfaithful too.
                    if cosine.is_nan() || cosine < Self::COSINE {
                        return Err(Unfaithful::Cosine { at, cosine });
                    }
                    lowest = Some(lowest.map_or(cosine, |lowest: f32| lowest.min(cosine)));
                }
                ModelKind::CrossEncoder => {
                    let (recorded, found) = (recorded[0], found[0]);
                    let difference = (recorded - found).abs();
                    if difference.is_nan() || difference > Self::SCORE {
                        return Err(Unfaithful::Score { at, found, recorded });
                    }
                }
            }
        }
        Ok(lowest)
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    #[allow(clippy::cast_possible_truncation)] // Rounding is meant.
    let cosine = (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32;
    cosine
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(texts: usize, vectors: &[f32]) -> Golden {
        Golden::new(vec![String::new(); texts], vectors, GoldenSource::Trial)
    }

    /// Recorded and found numbers; what is wrong with them, or the lowest cosine.
    #[track_caller]
    fn compare(kind: ModelKind, recorded: &[f32], found: &[f32], expected: Result<Option<f32>, &str>) {
        let texts = recorded.len() / if kind == ModelKind::Embedder { 2 } else { 1 };
        let checked = golden(texts, recorded).check(kind, 2, found).map_err(|error| error.to_string());
        match (checked, expected) {
            (Ok(Some(cosine)), Ok(Some(expected))) => assert!((cosine - expected).abs() < 1e-4, "{cosine}"),
            (Ok(cosine), Ok(expected)) => assert_eq!(cosine, expected),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (checked, _) => panic!("{checked:?}"),
        }
    }

    #[test]
    fn vectors_keep_their_direction() {
        let embedder = ModelKind::Embedder;
        compare(embedder, &[1.0, 0.0, 0.0, 1.0], &[2.0, 0.0, 0.0, 0.1], Ok(Some(1.0)));
        compare(embedder, &[1.0, 0.0], &[1.0, 0.03], Ok(Some(0.99955)));
        compare(
            embedder,
            &[1.0, 0.0, 0.0, 1.0],
            &[1.0, 0.0, 0.1, 1.0],
            Err("text 1 is 0.99504, and must be 0.999"),
        );
        compare(embedder, &[1.0, 0.0], &[f32::NAN, 0.0], Err("text 0 is NaN"));
        compare(embedder, &[1.0, 0.0], &[0.0, 0.0], Err("text 0 is NaN"));
        compare(embedder, &[], &[], Ok(None));
    }

    #[test]
    fn scores_stay_near() {
        let cross = ModelKind::CrossEncoder;
        compare(cross, &[0.5, 1.0], &[0.509, 0.991], Ok(None));
        compare(cross, &[0.5, 1.0], &[0.5, 0.98], Err("pair 1 is 0.9800, and was 1.0000"));
        compare(cross, &[0.5], &[f32::NAN], Err("pair 0"));
    }

    #[test]
    fn a_record_of_another_size_is_not_met() {
        let embedder = ModelKind::Embedder;
        compare(embedder, &[1.0, 0.0], &[1.0, 0.0, 0.0, 1.0], Err("2 numbers are recorded for 1 texts"));
        assert!(golden(2, &[1.0, 0.0]).check(embedder, 2, &[1.0, 0.0]).is_err());
    }

    #[test]
    fn golden_vectors_come_back_to_the_bit() {
        let vectors = [0.1, -0.0, f32::MIN_POSITIVE, f32::MAX];
        assert_eq!(golden(0, &vectors).vectors(), Ok(vectors.to_vec()));
        for text in ["?", "AAA=", "AAAAAAA="] {
            let golden = Golden { vectors: text.into(), ..golden(0, &[]) };
            assert_eq!(golden.vectors(), Err(MalformedGolden), "{text}");
        }
    }

    #[test]
    fn an_old_record_is_of_a_trial() {
        let read = |from: &str| {
            serde_json::from_str::<Golden>(&format!("{{\"texts\":[],\"vectors\":\"\"{from}}}")).unwrap().from
        };
        assert_eq!(read(""), GoldenSource::Trial);
        assert_eq!(read(",\"from\":\"publisher\""), GoldenSource::Publisher);
        let written = Golden::new(Vec::new(), &[], GoldenSource::Publisher);
        assert!(serde_json::to_string(&written).unwrap().contains("\"from\":\"publisher\""));
        assert_eq!(written.bytes(), serde_json::to_string(&written).unwrap().len());
    }

    #[test]
    fn own_inputs_are_texts_or_pairs() {
        let texts = |kind| {
            Golden::inputs(kind).map(|(query, text)| Golden::pair(query, text)).collect::<Vec<String>>()
        };
        assert!(texts(ModelKind::Embedder).iter().all(|text| !text.contains(Golden::BETWEEN)));
        let pairs = texts(ModelKind::CrossEncoder);
        assert!(pairs.len() == 8 && pairs.iter().all(|text| text.matches(Golden::BETWEEN).count() == 1));
    }
}
