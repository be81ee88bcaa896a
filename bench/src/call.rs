//! Making one call and weighing its answer.

use std::time::{Duration, Instant};

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::reranking_client::RerankingClient;
use proto::v1::{EmbedRequest, EmbedResponse, Provenance, RerankRequest, RerankResponse, Usage};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::tally::{Answer, Outcome};
use crate::{Call, Corpus, Plan};

/// Answers are as large as the caller's own batches make them.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Numbers the calls of a run and makes them.
pub(crate) struct Caller<'a> {
    plan: &'a Plan,
    corpus: &'a Corpus,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(plan: &'a Plan, corpus: &'a Corpus) -> Self {
        Self { plan, corpus }
    }

    /// Makes call number `number`, which was due at `due`.
    pub(crate) async fn call(&self, number: usize, due: Instant) -> Outcome {
        let sent = Instant::now();
        let left = self.plan.timeout.saturating_sub(sent - due);
        let channel = self.plan.connections[number % self.plan.connections.len()].clone();
        let texts = self.corpus.batch(number, self.plan.batch);
        let result = match &self.plan.call {
            Call::Embed(template) => {
                let request = EmbedRequest { inputs: texts, ..template.clone() };
                embed(channel, self.request(request, left)).await
            }
            Call::Rerank(template) => {
                let query = self.corpus.batch(number + 1, 1).swap_remove(0);
                let request = RerankRequest { query, documents: texts, ..template.clone() };
                rerank(channel, self.request(request, left)).await
            }
        };
        Outcome { due, sent, finished: Instant::now(), result }
    }

    fn request<T>(&self, message: T, timeout: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        if let Some(authorization) = &self.plan.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }
}

async fn embed(channel: Channel, request: Request<EmbedRequest>) -> Result<Answer, Status> {
    let texts = request.get_ref().inputs.len();
    let mut client = EmbeddingsClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let EmbedResponse { provenance, usage, dense, input_tokens } = client.embed(request).await?.into_inner();
    let bytes = dense.map_or(0, |dense| dense.data.len());
    if input_tokens.len() != texts || bytes == 0 || bytes % texts != 0 {
        return Err(Status::data_loss("the answer does not hold one vector for each text"));
    }
    answer(texts, provenance, usage)
}

async fn rerank(channel: Channel, request: Request<RerankRequest>) -> Result<Answer, Status> {
    let texts = request.get_ref().documents.len();
    let wanted =
        request.get_ref().top_n.map_or(texts, |top| texts.min(usize::try_from(top).unwrap_or(usize::MAX)));
    let mut client = RerankingClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let answered = client.rerank(request).await?.into_inner();
    let RerankResponse { provenance, usage, rankings, scoring: _, score_form: _ } = answered;
    if rankings.len() != wanted {
        return Err(Status::data_loss("the answer does not hold one score for each document"));
    }
    answer(texts, provenance, usage)
}

fn answer(texts: usize, provenance: Option<Provenance>, usage: Option<Usage>) -> Result<Answer, Status> {
    let provenance = provenance.ok_or_else(|| Status::data_loss("the answer has no provenance"))?;
    Ok(Answer {
        texts: texts as u64,
        tokens: usage.map_or(0, |usage| usage.tokens),
        digest: provenance.digest,
    })
}
