//! Texts to batches of tokens.

use model::{Sequence, TokenizeError, Tokenizer, Truncation};

use crate::error::TrainError;
use crate::objective::Side;

/// How long texts may be, and to what they are padded.
#[derive(Clone, Debug)]
pub struct Collator {
    /// The model's.
    pub tokenizer: Tokenizer,
    /// Tokens of a query, special ones included.
    pub query_max_len: usize,
    /// Tokens of a passage, special ones included.
    pub passage_max_len: usize,
    /// What a width is rounded up to.
    pub pad_to_multiple_of: Option<usize>,
}

impl Collator {
    /// Queries.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`] for a text that the tokenizer fails on.
    pub fn queries(&self, texts: &[String]) -> Result<Side, TrainError> {
        self.texts(texts, self.query_max_len)
    }

    /// Passages.
    ///
    /// # Errors
    /// As [`Collator::queries`].
    pub fn passages(&self, texts: &[String]) -> Result<Side, TrainError> {
        self.texts(texts, self.passage_max_len)
    }

    fn texts(&self, texts: &[String], max: usize) -> Result<Side, TrainError> {
        let encode = |text: &String| self.tokenizer.encode_within(text, max, Truncation::End);
        let sequences = texts.iter().map(encode).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        Ok(self.side(sequences))
    }

    /// A query with each of its passages, as the reference pairs them: both are cut, spelled out again, and read
    /// together; then only the passage is cut. With nothing left of the passage the query stands alone.
    ///
    /// # Errors
    /// As [`Collator::queries`].
    pub fn pairs(&self, query: &str, passages: &[String]) -> Result<Vec<Sequence>, TrainError> {
        let (query_max, passage_max) = (self.query_max_len, self.passage_max_len);
        let shortened = |text: &str, max| self.tokenizer.shortened(text, max).map_err(failed);
        let query = shortened(query, query_max + passage_max / 4)?;
        let pair = |passage: &String| {
            let passage = shortened(passage, passage_max + query_max / 2)?;
            let most = query_max + passage_max;
            let read = if passage.is_empty() {
                self.tokenizer.encode_within(&query, most, Truncation::End)
            } else {
                self.tokenizer.encode_pair_within(&query, &passage, most, Truncation::End)
            };
            read.map_err(failed)
        };
        passages.iter().map(pair).collect()
    }

    /// Sequences, padded to the longest.
    #[must_use]
    pub fn side(&self, sequences: Vec<Sequence>) -> Side {
        let mut side = Side::new(sequences);
        if let Some(multiple) = self.pad_to_multiple_of.filter(|&multiple| multiple > 0) {
            side.width = side.width.next_multiple_of(multiple);
        }
        side
    }
}

#[allow(clippy::needless_pass_by_value)] // `map_err` hands errors over by value.
fn failed(error: TokenizeError) -> TrainError {
    TrainError::Unsupported(format!("a text is not tokenised: {error}"))
}
