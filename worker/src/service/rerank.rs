//! Scores of documents against a query: by a cross-encoder, which reads each pair, or by an embedding model, which
//! reads the query once and each document once.

use std::iter;
use std::sync::Arc;

use model::{Sequence, normalize};
use proto::v1;
use proto::worker::v1::RerankShardResult;
use tokio::time::Instant;
use tracing::Span;

use super::Service;
use crate::engine::Job;
use crate::error::CallError;
use crate::load::Held;
use crate::vectors::sigmoid;
use crate::wire::{Origin, Rerank, Scoring, prompted};

impl Service {
    pub(super) async fn rerank_shard(
        &self,
        shard: Rerank,
        due: Option<Instant>,
    ) -> Result<RerankShardResult, CallError> {
        let Rerank { origin, query, documents, document_prompt, scoring, truncation, class } = shard;
        let served = origin.served.clone();
        Span::current().record("model", &*served.name);
        let texts: Vec<&str> = match scoring {
            Scoring::DotProduct => iter::once(&query).chain(&documents).map(String::as_str).collect(),
            // A pair has the query too; the estimate errs on the small side, and is soon corrected.
            Scoring::Logit | Scoring::Sigmoid => documents.iter().map(String::as_str).collect(),
        };
        let mut held = self.admit(&served, class, due, texts.into_iter())?;
        let field = Fields { first: origin.first, scoring };
        let tokenizer = served.tokenizer.clone();
        let sequences = match scoring {
            Scoring::DotProduct => {
                let documents = documents.into_iter().map(|text| prompted(document_prompt.as_deref(), text));
                let texts = iter::once(query).chain(documents).collect();
                let read = move |text: String| tokenizer.encode(&text, truncation);
                self.tokenisers.map(class, texts, String::len, read).await
            }
            Scoring::Logit | Scoring::Sigmoid => {
                let query: Arc<str> = query.into();
                let pairs = documents.into_iter().map(|document| (query.clone(), document)).collect();
                let bytes = |(query, document): &(Arc<str>, String)| query.len() + document.len();
                let read = move |(query, document): (Arc<str>, String)| {
                    tokenizer.encode_pair(&query, &document, truncation)
                };
                self.tokenisers.map(class, pairs, bytes, read).await
            }
        };
        let sequences = sequences.map_err(|unread| CallError::unread(unread, |at| field.name(at)))?;
        let job = Job {
            model: served.name.clone(),
            digest: served.digest.clone(),
            caller: origin.caller.clone(),
            class,
            deadline: due,
            sequences,
        };
        let (rows, tokens) = self.run_pairs(job, &mut held, field).await?;
        let scores = scores(rows, scoring, served.card.normalize);
        let alias = self.alias(&origin.model);
        Ok(RerankShardResult { alias, ..result(&origin, scoring, scores, tokens) })
    }

    /// Rows of a job, and its tokens.
    async fn run_pairs(
        &self,
        job: Job,
        held: &mut Held,
        field: Fields,
    ) -> Result<(Vec<Vec<f32>>, usize), CallError> {
        let lengths: Vec<usize> = job.sequences.iter().map(Sequence::tokens).collect();
        let tokens = lengths.iter().sum();
        Span::current().record("tokens", tokens);
        held.set(tokens);
        let rows = self.engine.run(job, held).await;
        let rows = rows.map_err(|(at, failure)| CallError::failed(failure, field.name(at), lengths[at]))?;
        Ok((rows, tokens))
    }
}

/// How the caller knows the texts of a shard.
#[derive(Clone, Copy)]
struct Fields {
    first: usize,
    scoring: Scoring,
}

impl Fields {
    fn name(self, at: usize) -> String {
        match (self.scoring, at) {
            (Scoring::DotProduct, 0) => "query".to_owned(),
            (Scoring::DotProduct, at) => format!("documents[{}]", self.first + at - 1),
            (Scoring::Logit | Scoring::Sigmoid, at) => format!("documents[{}]", self.first + at),
        }
    }
}

/// One score per document: `rows` has one per pair, or one for the query and then one per document.
fn scores(mut rows: Vec<Vec<f32>>, scoring: Scoring, normalized: bool) -> Vec<f32> {
    let logit = |row: &Vec<f32>| row.first().copied().unwrap_or(f32::NAN);
    match scoring {
        Scoring::Logit => rows.iter().map(logit).collect(),
        Scoring::Sigmoid => rows.iter().map(|row| sigmoid(logit(row))).collect(),
        Scoring::DotProduct => {
            if normalized {
                for row in &mut rows {
                    normalize(row);
                }
            }
            match rows.split_first() {
                Some((query, documents)) => documents.iter().map(|row| dot(query, row)).collect(),
                None => Vec::new(),
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // Rounding is meant.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn result(origin: &Origin, scoring: Scoring, scores: Vec<f32>, tokens: usize) -> RerankShardResult {
    let (made, form) = match scoring {
        Scoring::Logit => (v1::Scoring::CrossEncoder, v1::ScoreForm::Raw),
        Scoring::Sigmoid => (v1::Scoring::CrossEncoder, v1::ScoreForm::Sigmoid),
        Scoring::DotProduct => (v1::Scoring::Dense, v1::ScoreForm::Raw),
    };
    RerankShardResult {
        provenance: Some(origin.served.provenance(0)),
        scores,
        tokens: tokens as u64,
        scoring: made.into(),
        score_form: form.into(),
        alias: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rows: &[&[f32]], scoring: Scoring, normalized: bool, expected: &[f32]) {
        assert_eq!(scores(rows.iter().map(|row| row.to_vec()).collect(), scoring, normalized), expected);
    }

    #[test]
    fn a_cross_encoders_score_is_its_logit_or_the_sigmoid_of_it() {
        check(&[&[2.0], &[-1.0]], Scoring::Logit, true, &[2.0, -1.0]);
        check(&[&[0.0], &[200.0], &[-200.0]], Scoring::Sigmoid, true, &[0.5, 1.0, 0.0]);
    }

    #[test]
    fn an_embedding_models_score_is_a_dot_product_with_the_query() {
        let rows: [&[f32]; 3] = [&[3.0, 4.0], &[6.0, 8.0], &[-4.0, 3.0]];
        check(&rows, Scoring::DotProduct, false, &[50.0, 0.0]);
        check(&rows, Scoring::DotProduct, true, &[1.0, 0.0]);
    }

    #[test]
    fn texts_are_named_as_the_caller_knows_them() {
        let name = |scoring, at| Fields { first: 40, scoring }.name(at);
        assert_eq!(name(Scoring::DotProduct, 0), "query");
        assert_eq!(name(Scoring::DotProduct, 1), "documents[40]");
        assert_eq!(name(Scoring::Sigmoid, 1), "documents[41]");
    }
}
