//! Golden inputs: a few texts, and what a checkpoint makes of them. Whoever publishes a checkpoint records them, and a
//! worker is ready with it only when it meets them: a damaged file, a wrong pooling, a processor that calculates
//! otherwise would all show here, before anybody is answered.

use cluster::Golden;
use model::{Card, Kind, Model, RunError, Sequence, Tokenizer, Truncation, normalize};

use crate::vectors::sigmoid;

/// The cosine that each golden vector must keep with the one recorded.
const COSINE: f32 = 0.999;
/// What a golden score, between 0 and 1, may differ from the one recorded. A cross-encoder in reduced precision is held
/// to the same.
const SCORE: f32 = 0.01;
/// Tokens of one batch, unless a single text has more.
const BATCH_TOKENS: usize = 512;

/// What stands between the two parts of a pair.
const BETWEEN: char = '\n';

/// Texts that differ in length, language and kind; the first halves of pairs are questions.
const OWN: [(&str, &str); 8] = [
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

/// The golden inputs of this release, for a checkpoint of `kind`, and those of `more`.
#[must_use]
pub fn texts(kind: Kind, more: Vec<String>) -> Vec<String> {
    let own = OWN.iter().map(|(question, text)| match kind {
        Kind::Embedder => (*text).to_owned(),
        Kind::CrossEncoder => format!("{question}{BETWEEN}{text}"),
    });
    own.chain(more).collect()
}

/// What `model` makes of `texts`: `[texts, dimensions]`, normalised where it normalises by itself, or `[texts]` scores
/// between 0 and 1. Texts are cut to its window.
///
/// # Errors
/// Why it does not read or run one of them.
pub fn answers(
    model: &Model,
    tokenizer: &Tokenizer,
    card: &Card,
    texts: &[String],
) -> Result<Vec<f32>, String> {
    let read = |text: &String| match (card.kind, text.split_once(BETWEEN)) {
        (Kind::CrossEncoder, Some((query, document))) => {
            tokenizer.encode_pair(query, document, Truncation::End)
        }
        (Kind::Embedder | Kind::CrossEncoder, _) => tokenizer.encode(text, Truncation::End),
    };
    let sequences = texts.iter().map(read).collect::<Result<Vec<_>, _>>();
    let sequences = sequences.map_err(|error| error.to_string())?;
    let mut numbers = Vec::new();
    for batch in batches(&sequences) {
        let rows = model.run(&batch).map_err(|error| match error {
            RunError::OutOfMemory(reason) | RunError::Failed(reason) => reason,
        })?;
        for row in &rows {
            numbers.extend(answer(row, card));
        }
    }
    Ok(numbers)
}

/// The part of an answer that one row is.
fn answer(row: &[f32], card: &Card) -> Vec<f32> {
    let mut row = row.to_vec();
    match card.kind {
        Kind::CrossEncoder => row.iter_mut().for_each(|logit| *logit = sigmoid(*logit)),
        Kind::Embedder if card.normalize => normalize(&mut row),
        Kind::Embedder => {}
    }
    row
}

/// Runs of sequences, in order, each within the bound.
fn batches(sequences: &[Sequence]) -> Vec<Vec<&Sequence>> {
    let mut batches: Vec<Vec<&Sequence>> = Vec::new();
    let mut room = 0;
    for sequence in sequences {
        let tokens = sequence.tokens();
        match batches.last_mut() {
            Some(batch) if tokens <= room => batch.push(sequence),
            Some(_) | None => {
                batches.push(vec![sequence]);
                room = BATCH_TOKENS;
            }
        }
        room = room.saturating_sub(tokens);
    }
    batches
}

/// Holds `found` against what was recorded; answers the lowest cosine, or none for a cross-encoder, which has scores.
///
/// # Errors
/// Which text differs, and by how much.
pub fn check(golden: &Golden, card: &Card, found: &[f32]) -> Result<Option<f32>, String> {
    let recorded = golden.vectors().map_err(|malformed| malformed.to_string())?;
    let width = match card.kind {
        Kind::Embedder => card.dimensions,
        Kind::CrossEncoder => 1,
    };
    if recorded.len() != golden.texts.len() * width || found.len() != recorded.len() {
        let (texts, numbers) = (golden.texts.len(), recorded.len());
        return Err(format!("{numbers} numbers are recorded for {texts} texts, and each has {width}"));
    }
    let pairs = recorded.chunks_exact(width.max(1)).zip(found.chunks_exact(width.max(1)));
    match card.kind {
        Kind::Embedder => {
            let mut lowest = f32::INFINITY;
            for (at, (recorded, found)) in pairs.enumerate() {
                let cosine = cosine(recorded, found);
                // A cosine that is not a number is unfaithful too.
                if cosine.is_nan() || cosine < COSINE {
                    return Err(format!("the cosine of text {at} is {cosine:.5}, and must be {COSINE}"));
                }
                lowest = lowest.min(cosine);
            }
            Ok(lowest.is_finite().then_some(lowest))
        }
        Kind::CrossEncoder => {
            let differs = |(_, (recorded, found)): &(usize, (&[f32], &[f32]))| {
                let difference = (recorded[0] - found[0]).abs();
                difference.is_nan() || difference > SCORE
            };
            match pairs.enumerate().find(differs) {
                Some((at, (recorded, found))) => {
                    let (recorded, found) = (recorded[0], found[0]);
                    Err(format!("the score of pair {at} is {found:.4}, and was {recorded:.4}"))
                }
                None => Ok(None),
            }
        }
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

    fn card(kind: Kind, normalize: bool) -> Card {
        Card {
            kind,
            architecture: "BertModel".into(),
            dimensions: if kind == Kind::Embedder { 2 } else { 0 },
            max_tokens: 16,
            pooling: None,
            normalize,
            query_prompt: None,
            document_prompt: None,
        }
    }

    /// Recorded and found numbers; what is wrong with them, or the lowest cosine.
    #[track_caller]
    fn compare(kind: Kind, recorded: &[f32], found: &[f32], expected: Result<Option<f32>, &str>) {
        let texts = vec![String::new(); recorded.len() / if kind == Kind::Embedder { 2 } else { 1 }];
        let checked = check(&Golden::new(texts, recorded), &card(kind, true), found);
        match (checked, expected) {
            (Ok(Some(cosine)), Ok(Some(expected))) => assert!((cosine - expected).abs() < 1e-4, "{cosine}"),
            (Ok(cosine), Ok(expected)) => assert_eq!(cosine, expected),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (checked, _) => panic!("{checked:?}"),
        }
    }

    #[test]
    fn vectors_keep_their_direction() {
        compare(Kind::Embedder, &[1.0, 0.0, 0.0, 1.0], &[2.0, 0.0, 0.0, 0.1], Ok(Some(1.0)));
        compare(Kind::Embedder, &[1.0, 0.0], &[1.0, 0.03], Ok(Some(0.99955)));
        compare(Kind::Embedder, &[1.0, 0.0, 0.0, 1.0], &[1.0, 0.0, 0.1, 1.0], Err("text 1 is 0.99504"));
        compare(Kind::Embedder, &[1.0, 0.0], &[f32::NAN, 0.0], Err("text 0 is NaN"));
        compare(Kind::Embedder, &[1.0, 0.0], &[0.0, 0.0], Err("text 0 is NaN"));
        compare(Kind::Embedder, &[], &[], Ok(None));
    }

    #[test]
    fn scores_stay_near() {
        compare(Kind::CrossEncoder, &[0.5, 1.0], &[0.509, 0.991], Ok(None));
        compare(Kind::CrossEncoder, &[0.5, 1.0], &[0.5, 0.98], Err("pair 1 is 0.9800, and was 1.0000"));
        compare(Kind::CrossEncoder, &[0.5], &[f32::NAN], Err("pair 0"));
    }

    #[test]
    fn a_record_of_another_size_is_not_met() {
        compare(
            Kind::Embedder,
            &[1.0, 0.0],
            &[1.0, 0.0, 0.0, 1.0],
            Err("2 numbers are recorded for 1 texts"),
        );
        let golden = Golden::new(vec!["a".into(), "b".into()], &[1.0, 0.0]);
        assert!(check(&golden, &card(Kind::Embedder, true), &[1.0, 0.0]).is_err());
    }

    #[test]
    fn answers_are_as_callers_get_them() {
        assert_eq!(answer(&[3.0, 4.0], &card(Kind::Embedder, true)), [0.6, 0.8]);
        assert_eq!(answer(&[3.0, 4.0], &card(Kind::Embedder, false)), [3.0, 4.0]);
        assert_eq!(answer(&[0.0], &card(Kind::CrossEncoder, false)), [0.5]);
    }

    #[test]
    fn own_inputs_are_texts_or_pairs() {
        let more = vec!["more".to_owned()];
        let embedder = texts(Kind::Embedder, more.clone());
        assert_eq!((embedder.len(), embedder.last()), (9, Some(&"more".to_owned())));
        assert!(embedder.iter().all(|text| !text.contains(BETWEEN)));
        let pairs = texts(Kind::CrossEncoder, more);
        assert!(pairs[..8].iter().all(|text| text.matches(BETWEEN).count() == 1));
    }

    #[test]
    fn batches_are_bounded_and_in_order() {
        let sequences: Vec<_> = [300, 200, 12, 1, 600, 512].map(|n| Sequence::single(vec![1; n])).into();
        let sizes: Vec<Vec<usize>> =
            batches(&sequences).iter().map(|batch| batch.iter().map(|s| s.tokens()).collect()).collect();
        assert_eq!(sizes, [vec![300, 200, 12], vec![1], vec![600], vec![512]]);
    }
}
