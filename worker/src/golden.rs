//! What a checkpoint makes of golden inputs: when it is tried, those of this release and those that its publisher has
//! vectors of; when it is prepared, those of its record, which it has to [meet](Golden::check).

use cluster::{Golden, ModelKind, Unfaithful};
use model::{Card, Kind, Model, RunError, Sequence, Tokenizer, Truncation, normalize};

use crate::vectors::sigmoid;

/// Tokens of one batch, unless a single text has more.
const BATCH_TOKENS: usize = 512;

/// The golden inputs of this release, for a checkpoint of `kind`, and those of `more`.
#[must_use]
pub fn texts(kind: Kind, more: Vec<String>) -> Vec<String> {
    let own = Golden::inputs(kind_of(kind)).map(|(query, text)| Golden::pair(query, text));
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
    let read = |text: &String| match (card.kind, text.split_once(Golden::BETWEEN)) {
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
pub fn check(golden: &Golden, card: &Card, found: &[f32]) -> Result<Option<f32>, Unfaithful> {
    golden.check(kind_of(card.kind), card.dimensions, found)
}

fn kind_of(kind: Kind) -> ModelKind {
    match kind {
        Kind::Embedder => ModelKind::Embedder,
        Kind::CrossEncoder => ModelKind::CrossEncoder,
    }
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

    #[test]
    fn answers_are_as_callers_get_them() {
        assert_eq!(answer(&[3.0, 4.0], &card(Kind::Embedder, true)), [0.6, 0.8]);
        assert_eq!(answer(&[3.0, 4.0], &card(Kind::Embedder, false)), [3.0, 4.0]);
        assert_eq!(answer(&[0.0], &card(Kind::CrossEncoder, false)), [0.5]);
    }

    #[test]
    fn a_publishers_inputs_come_behind_those_of_this_release() {
        for kind in [Kind::Embedder, Kind::CrossEncoder] {
            let texts = texts(kind, vec!["more".to_owned()]);
            assert_eq!((texts.len(), texts.last()), (9, Some(&"more".to_owned())));
        }
    }

    #[test]
    fn batches_are_bounded_and_in_order() {
        let sequences: Vec<_> = [300, 200, 12, 1, 600, 512].map(|n| Sequence::single(vec![1; n])).into();
        let sizes: Vec<Vec<usize>> =
            batches(&sequences).iter().map(|batch| batch.iter().map(|s| s.tokens()).collect()).collect();
        assert_eq!(sizes, [vec![300, 200, 12], vec![1], vec![600], vec![512]]);
    }
}
