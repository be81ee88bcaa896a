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
    channels: Vec<Channel>,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(plan: &'a Plan, corpus: &'a Corpus, channels: Vec<Channel>) -> Self {
        Self { plan, corpus, channels }
    }

    /// Makes call number `number`, which was due at `due`.
    pub(crate) async fn call(&self, number: usize, due: Instant) -> Outcome {
        let sent = Instant::now();
        let left = self.plan.timeout.saturating_sub(sent - due);
        let channel = self.channels[number % self.channels.len()].clone();
        let texts = self.corpus.batch(number, self.plan.batch);
        let result = match &self.plan.call {
            Call::Embed(template) => embed(channel, left, template, texts).await,
            Call::Rerank(template) => {
                let query = self.corpus.batch(number + 1, 1).swap_remove(0);
                rerank(channel, left, template, (query, texts)).await
            }
        };
        Outcome { due, sent, finished: Instant::now(), result }
    }
}

async fn embed(
    channel: Channel,
    timeout: Duration,
    template: &EmbedRequest,
    inputs: Vec<String>,
) -> Result<Answer, Status> {
    let texts = inputs.len();
    let request = timed(EmbedRequest { inputs, ..template.clone() }, timeout);
    let mut client = EmbeddingsClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let EmbedResponse { provenance, usage, dense, input_tokens } = client.embed(request).await?.into_inner();
    let bytes = dense.map_or(0, |dense| dense.data.len());
    if input_tokens.len() != texts || bytes == 0 || bytes % texts != 0 {
        return Err(Status::data_loss("the answer does not hold one vector for each text"));
    }
    answer(texts, provenance, usage)
}

async fn rerank(
    channel: Channel,
    timeout: Duration,
    template: &RerankRequest,
    (query, documents): (String, Vec<String>),
) -> Result<Answer, Status> {
    let texts = documents.len();
    let wanted = template.top_n.map_or(texts, |top| texts.min(usize::try_from(top).unwrap_or(usize::MAX)));
    let request = timed(RerankRequest { query, documents, ..template.clone() }, timeout);
    let mut client = RerankingClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let answered = client.rerank(request).await?.into_inner();
    let RerankResponse { provenance, usage, rankings, scoring: _, score_form: _ } = answered;
    if rankings.len() != wanted {
        return Err(Status::data_loss("the answer does not hold one score for each document"));
    }
    answer(texts, provenance, usage)
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn answer(texts: usize, provenance: Option<Provenance>, usage: Option<Usage>) -> Result<Answer, Status> {
    let provenance = provenance.ok_or_else(|| Status::data_loss("the answer has no provenance"))?;
    Ok(Answer {
        texts: texts as u64,
        tokens: usage.map_or(0, |usage| usage.tokens),
        digest: provenance.digest,
    })
}
