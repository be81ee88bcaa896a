//! Golden samples: inputs, and what whoever publishes a checkpoint computed of them.

use cluster::{Golden, GoldenSource, ModelKind};
use proto::v1;

use super::super::{Fault, InvalidRequest, Limits, invalid, text};

/// Samples of one checkpoint: every worker that prepares it runs them all.
const SAMPLES: usize = 64;
/// What a text may have, and how many there may be.
const LIMITS: Limits = Limits { inputs: SAMPLES, text_bytes: 16 << 10 };
/// Bytes that they may take of a record: etcd keeps no value above a few times as much.
const RECORD_BYTES: usize = 512 << 10;

/// What a publisher computed, all of one kind and length; whether it is that of the checkpoint is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    /// Of which kind of checkpoint.
    pub kind: ModelKind,
    /// Numbers of an answer.
    pub width: usize,
    /// As it is to be recorded.
    pub golden: Golden,
}

impl Samples {
    /// Takes them apart; `None` where there are none.
    pub(super) fn parse(wire: Vec<v1::GoldenSample>) -> Result<Option<Self>, InvalidRequest> {
        let (got, max) = (wire.len(), SAMPLES);
        if got > max {
            return Err(invalid("begin.golden", Fault::TooMany { got, max }));
        }
        let (mut texts, mut numbers, mut first) = (Vec::with_capacity(got), Vec::new(), None);
        for (i, sample) in wire.into_iter().enumerate() {
            let (kind, input, answer) = one(i, sample)?;
            let &mut (like, width) = first.get_or_insert((kind, answer.len()));
            if (kind, answer.len()) != (like, width) {
                let why = format!(
                    "it has {}, and the first sample {}",
                    told(kind, answer.len()),
                    told(like, width)
                );
                return Err(malformed(&field(i, answer_of(kind)), why));
            }
            texts.push(input);
            numbers.extend(answer);
        }
        let Some((kind, width)) = first else { return Ok(None) };
        let golden = Golden::new(texts, &numbers, GoldenSource::Publisher);
        let (bytes, max) = (golden.bytes(), RECORD_BYTES);
        if bytes > max {
            return Err(invalid("begin.golden", Fault::TooLong { bytes, max }));
        }
        Ok(Some(Self { kind, width, golden }))
    }

    /// Whether they can be of `checkpoint`, as people call it, which is of this kind, and whose vectors have so many
    /// `dimensions`.
    ///
    /// # Errors
    /// Names the first sample's answer.
    pub fn fit(
        &self,
        checkpoint: &str,
        (kind, dimensions): (ModelKind, usize),
    ) -> Result<(), InvalidRequest> {
        let Self { kind: own, width, golden: _ } = *self;
        let wanted = match kind {
            ModelKind::Embedder => dimensions,
            ModelKind::CrossEncoder => 1,
        };
        if (own, width) == (kind, wanted) {
            return Ok(());
        }
        let why = format!("it has {}, and {checkpoint} makes {}", told(own, width), told(kind, wanted));
        Err(malformed(&field(0, answer_of(own)), why))
    }
}

/// Sample `i`: what it is of, its input as it is recorded, and its answer.
fn one(i: usize, wire: v1::GoldenSample) -> Result<(ModelKind, String, Vec<f32>), InvalidRequest> {
    let v1::GoldenSample { text: document, query, embedding, score } = wire;
    text(&field(i, "text"), &document, &LIMITS)?;
    if let Some(query) = &query {
        text(&field(i, "query"), query, &LIMITS)?;
        if query.contains(Golden::BETWEEN) {
            return Err(malformed(&field(i, "query"), "it has a line feed".to_owned()));
        }
    }
    let kind = if query.is_some() { ModelKind::CrossEncoder } else { ModelKind::Embedder };
    let input = Golden::pair(query.as_deref(), &document);
    let answer = match (kind, score) {
        (ModelKind::CrossEncoder, Some(score)) if embedding.is_empty() => vec![score],
        (ModelKind::CrossEncoder, Some(_)) => {
            return Err(malformed(
                &field(i, "embedding"),
                "a query and a text have a score alone".to_owned(),
            ));
        }
        (ModelKind::CrossEncoder, None) => return Err(invalid(&field(i, "score"), Fault::Empty)),
        (ModelKind::Embedder, Some(_)) => return Err(invalid(&field(i, "query"), Fault::Empty)),
        (ModelKind::Embedder, None) => vector(&field(i, "embedding"), &embedding)?,
    };
    let is_score = |score: &f32| (0.0..=1.0).contains(score);
    if kind == ModelKind::CrossEncoder && !answer.iter().all(is_score) {
        return Err(malformed(&field(i, "score"), "it is not from 0 to 1".to_owned()));
    }
    Ok((kind, input, answer))
}

fn vector(field: &str, bytes: &[u8]) -> Result<Vec<f32>, InvalidRequest> {
    let (numbers, rest) = bytes.as_chunks();
    let numbers: Vec<f32> = numbers.iter().map(|&number| f32::from_le_bytes(number)).collect();
    if bytes.is_empty() {
        return Err(invalid(field, Fault::Empty));
    }
    if !rest.is_empty() {
        return Err(malformed(field, format!("{} bytes are no f32s", bytes.len())));
    }
    if !numbers.iter().all(|number| number.is_finite()) {
        return Err(malformed(field, "it has a number that is not finite".to_owned()));
    }
    if numbers.iter().all(|number| *number == 0.0) {
        return Err(malformed(field, "it is of zeros, which point nowhere".to_owned()));
    }
    Ok(numbers)
}

fn field(i: usize, name: &str) -> String {
    format!("begin.golden[{i}].{name}")
}

fn malformed(field: &str, why: String) -> InvalidRequest {
    invalid(field, Fault::Malformed(why))
}

fn answer_of(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::Embedder => "embedding",
        ModelKind::CrossEncoder => "score",
    }
}

fn told(kind: ModelKind, width: usize) -> String {
    match kind {
        ModelKind::Embedder => format!("a vector of {width}"),
        ModelKind::CrossEncoder => "a score".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(text: &str, numbers: &[f32]) -> v1::GoldenSample {
        let embedding = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        v1::GoldenSample { text: text.into(), embedding, ..v1::GoldenSample::default() }
    }

    fn pair(query: &str, score: f32) -> v1::GoldenSample {
        v1::GoldenSample {
            query: Some(query.into()),
            score: Some(score),
            ..text_of("a document\nof two lines", &[])
        }
    }

    #[test]
    fn samples_are_understood_as_they_will_be_recorded() {
        assert_eq!(Samples::parse(Vec::new()), Ok(None));
        let wire = vec![text_of("a", &[0.6, 0.8]), text_of("b\nc", &[1.0, 0.0])];
        let golden =
            Golden::new(vec!["a".into(), "b\nc".into()], &[0.6, 0.8, 1.0, 0.0], GoldenSource::Publisher);
        let expected = Samples { kind: ModelKind::Embedder, width: 2, golden };
        assert_eq!(Samples::parse(wire), Ok(Some(expected)));
        let found = Samples::parse(vec![pair("q", 1.0), pair("r", 0.0)]).unwrap().unwrap();
        assert_eq!((found.kind, found.width), (ModelKind::CrossEncoder, 1));
        assert_eq!(found.golden.texts[0], "q\na document\nof two lines");
        assert_eq!(found.golden.vectors(), Ok(vec![1.0, 0.0]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        #[track_caller]
        fn check(sample: v1::GoldenSample, field: &str, part: &str) {
            let wire = vec![text_of("a text", &[0.6, 0.8]), sample];
            let invalid = Samples::parse(wire).unwrap_err();
            assert_eq!(invalid.field, field);
            assert!(invalid.to_string().contains(part), "{invalid}");
        }
        let good = || text_of("a text", &[0.6, 0.8]);
        check(text_of("", &[0.6, 0.8]), "begin.golden[1].text", "required");
        check(text_of(" \n", &[0.6, 0.8]), "begin.golden[1].text", "white space");
        check(text_of(&"x".repeat((16 << 10) + 1), &[0.6, 0.8]), "begin.golden[1].text", "16385 bytes");
        check(text_of("b", &[]), "begin.golden[1].embedding", "required");
        check(text_of("b", &[0.6, f32::NAN]), "begin.golden[1].embedding", "not finite");
        check(text_of("b", &[f32::INFINITY, 0.0]), "begin.golden[1].embedding", "not finite");
        check(text_of("b", &[0.0, 0.0]), "begin.golden[1].embedding", "zeros");
        check(
            text_of("b", &[0.6]),
            "begin.golden[1].embedding",
            "a vector of 1, and the first sample a vector of 2",
        );
        check(v1::GoldenSample { embedding: vec![0; 7], ..good() }, "begin.golden[1].embedding", "7 bytes");
        check(v1::GoldenSample { score: Some(0.5), ..good() }, "begin.golden[1].query", "required");
        check(
            v1::GoldenSample { score: Some(0.5), query: Some("q".into()), ..good() },
            "begin.golden[1].embedding",
            "alone",
        );
        check(v1::GoldenSample { query: Some("q".into()), ..good() }, "begin.golden[1].score", "required");
        check(v1::GoldenSample { query: Some(" ".into()), ..good() }, "begin.golden[1].query", "white space");
        check(pair("q\nr", 0.5), "begin.golden[1].query", "line feed");
        check(pair("q", 1.5), "begin.golden[1].score", "from 0 to 1");
        check(pair("q", f32::NAN), "begin.golden[1].score", "from 0 to 1");
        check(pair("q", 0.5), "begin.golden[1].score", "a score, and the first sample a vector of 2");
    }

    #[test]
    fn they_are_bounded_together() {
        let many = |count: usize, text: &str, width: usize| {
            Samples::parse(vec![text_of(text, &vec![0.5; width]); count]).map_err(|invalid| {
                assert_eq!(invalid.field, "begin.golden");
                invalid.to_string()
            })
        };
        assert!(many(64, "a", 1024).is_ok());
        assert!(many(65, "a", 2).unwrap_err().contains("65 entries"));
        assert!(many(64, "a", 4096).unwrap_err().contains("limit of 524288"));
        assert!(many(64, &"x".repeat(16 << 10), 2).unwrap_err().contains("limit of 524288"));
    }

    #[test]
    fn they_are_held_against_the_checkpoint() {
        let of = |sample| Samples::parse(vec![sample]).unwrap().unwrap();
        let (vectors, scores) = (of(text_of("a", &[0.6, 0.8])), of(pair("q", 0.5)));
        assert_eq!(vectors.fit("it", (ModelKind::Embedder, 2)), Ok(()));
        assert_eq!(scores.fit("it", (ModelKind::CrossEncoder, 0)), Ok(()));
        let unfit = |samples: &Samples, kind, dimensions| {
            let invalid = samples.fit("the checkpoint", (kind, dimensions)).unwrap_err();
            (invalid.field.clone(), invalid.to_string())
        };
        let (field, why) = unfit(&vectors, ModelKind::Embedder, 3);
        assert_eq!(field, "begin.golden[0].embedding");
        assert!(why.contains("a vector of 2, and the checkpoint makes a vector of 3"), "{why}");
        assert!(unfit(&vectors, ModelKind::CrossEncoder, 0).1.contains("makes a score"));
        assert_eq!(unfit(&scores, ModelKind::Embedder, 1).0, "begin.golden[0].score");
    }
}
