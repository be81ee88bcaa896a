//! The services of `beige.v1` over [`State`].

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use proto::v1::cluster_server::Cluster;
use proto::v1::embeddings_server::Embeddings;
use proto::v1::require::What;
use proto::v1::reranking_server::Reranking;
use proto::v1::tokens_server::Tokens;
use proto::v1::{
    CountRequest, CountResponse, EmbedRequest, EmbedResponse, Encoding, ListWorkersRequest,
    ListWorkersResponse, LoadedModel, Provenance, Ranking, Require, RerankRequest, RerankResponse, ScoreForm,
    Scoring, Token, TokenSequence, TokenizeRequest, TokenizeResponse, Usage, Worker, WorkerState,
};
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::State;
use super::answers::{DIMENSIONS, encode, tokens, vector};

pub(crate) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) state: Arc<Mutex<State>>,
}

impl Services {
    /// What comes before any work: the delay, the refusals, the checkpoint.
    async fn admit<T>(
        &self,
        request: &Request<T>,
        model: &str,
        require: Option<&Require>,
    ) -> Result<Provenance, Status> {
        let delay = self.state.lock().unwrap().delay;
        tokio::time::sleep(delay).await;
        let mut state = self.state.lock().unwrap();
        let seen = |name| request.metadata().get(name).map(|value| value.to_str().unwrap().to_owned());
        state.traceparent = seen("traceparent");
        state.authorization = seen("authorization");
        if state.refusals > 0 {
            state.refusals -= 1;
            let retry = ErrorDetails::with_retry_info(Some(std::time::Duration::from_millis(20)));
            return Err(Status::with_error_details(Code::ResourceExhausted, "the cluster is busy", retry));
        }
        let (alias, pinned) = model.split_once('@').map_or((model, None), |(alias, pin)| (alias, Some(pin)));
        let known = state.models.iter().find(|(name, _)| name == alias);
        let Some((_, digest)) = known else {
            return Err(Status::not_found(format!("there is no model {model}")));
        };
        let required = match require.and_then(|require| require.what.as_ref()) {
            Some(What::Digest(digest)) => Some(digest.as_str()),
            Some(What::IndexSpace(_)) | None => None,
        };
        if [pinned, required].into_iter().flatten().any(|wanted| wanted != digest) {
            return Err(Status::failed_precondition("the required checkpoint is not served"));
        }
        Ok(Provenance {
            model: alias.to_owned(),
            digest: digest.clone(),
            epoch: 1,
            index_space: digest.clone(),
            dimensions: 0,
        })
    }
}

/// Refuses a text that says so, naming the field as the gateway does.
fn check(field: &str, texts: &[String]) -> Result<(), Status> {
    match texts.iter().position(|text| text.is_empty() || text == "poison") {
        None => Ok(()),
        Some(i) => {
            let details =
                ErrorDetails::with_bad_request_violation(format!("{field}[{i}]"), "is not to be had");
            Err(Status::with_error_details(
                Code::InvalidArgument,
                format!("{field}[{i}] is not to be had"),
                details,
            ))
        }
    }
}

#[tonic::async_trait]
impl Embeddings for Services {
    type EmbedStreamStream = Answers<EmbedResponse>;

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let asked = request.get_ref();
        let digest = asked.require.as_ref().and_then(|require| require.what.as_ref());
        let required = match digest {
            Some(What::Digest(digest)) => digest.clone(),
            Some(What::IndexSpace(_)) | None => String::new(),
        };
        self.state.lock().unwrap().required.push(required);
        let mut provenance = self.admit(&request, &asked.model, asked.require.as_ref()).await?;
        check("inputs", &asked.inputs)?;
        let dimensions = asked.dimensions.map_or(DIMENSIONS, |wanted| usize::try_from(wanted).unwrap());
        provenance.dimensions = u32::try_from(dimensions).unwrap();
        let prefix = asked.instruction.clone().unwrap_or_default();
        let row = |text: &String| vector(&provenance.digest, &format!("{prefix}{text}"), dimensions);
        let rows: Vec<_> = asked.inputs.iter().map(row).collect();
        let input_tokens: Vec<u32> = asked.inputs.iter().map(|text| tokens(text)).collect();
        self.state.lock().unwrap().embedded(rows.len());
        Ok(Response::new(EmbedResponse {
            dense: Some(encode(&rows, Encoding::try_from(asked.encoding).unwrap())),
            usage: Some(Usage { tokens: input_tokens.iter().copied().map(u64::from).sum() }),
            provenance: Some(provenance),
            input_tokens,
        }))
    }

    async fn embed_stream(
        &self,
        _: Request<Streaming<EmbedRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        Err(Status::unimplemented("the fake has no streams"))
    }
}

#[tonic::async_trait]
impl Reranking for Services {
    type RerankStreamStream = Answers<RerankResponse>;

    /// A document's score is the number of its words that the query has too.
    async fn rerank(&self, request: Request<RerankRequest>) -> Result<Response<RerankResponse>, Status> {
        let asked = request.get_ref();
        let provenance = self.admit(&request, &asked.model, asked.require.as_ref()).await?;
        check("documents", &asked.documents)?;
        let query: Vec<&str> = asked.query.split_whitespace().collect();
        let shared = |text: &str| text.split_whitespace().filter(|word| query.contains(word)).count();
        let ranking = |(i, text): (usize, &String)| Ranking {
            index: u32::try_from(i).unwrap(),
            score: f32::from(u16::try_from(shared(text)).unwrap()),
        };
        let mut rankings: Vec<_> = asked.documents.iter().enumerate().map(ranking).collect();
        rankings.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
        rankings.truncate(asked.top_n.map_or(usize::MAX, |top| usize::try_from(top).unwrap()));
        let pairs = asked.documents.iter().map(|text| u64::from(tokens(text)) + query.len() as u64);
        Ok(Response::new(RerankResponse {
            provenance: Some(provenance),
            usage: Some(Usage { tokens: pairs.sum() }),
            rankings,
            scoring: Scoring::CrossEncoder.into(),
            score_form: if asked.score_form == 0 { ScoreForm::Sigmoid.into() } else { asked.score_form },
        }))
    }

    async fn rerank_stream(
        &self,
        _: Request<Streaming<RerankRequest>>,
    ) -> Result<Response<Self::RerankStreamStream>, Status> {
        Err(Status::unimplemented("the fake has no streams"))
    }
}

#[tonic::async_trait]
impl Tokens for Services {
    /// Words, numbered by their place.
    async fn tokenize(
        &self,
        request: Request<TokenizeRequest>,
    ) -> Result<Response<TokenizeResponse>, Status> {
        let asked = request.get_ref();
        let provenance = self.admit(&request, &asked.model, None).await?;
        let sequence = |text: &String| TokenSequence {
            tokens: (0..)
                .zip(text.split_whitespace())
                .map(|(id, word)| Token { id, text: word.to_owned(), special: false, start: 0, end: 0 })
                .collect(),
        };
        let sequences = asked.inputs.iter().map(sequence).collect();
        Ok(Response::new(TokenizeResponse { provenance: Some(provenance), sequences }))
    }

    async fn count(&self, request: Request<CountRequest>) -> Result<Response<CountResponse>, Status> {
        let asked = request.get_ref();
        let provenance = self.admit(&request, &asked.model, None).await?;
        let counts = asked.inputs.iter().map(|text| tokens(text)).collect();
        Ok(Response::new(CountResponse { provenance: Some(provenance), counts }))
    }
}

#[tonic::async_trait]
impl Cluster for Services {
    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let loaded = |(name, digest): &(String, String)| LoadedModel {
            name: name.clone(),
            digest: digest.clone(),
            dtype: "f32".to_owned(),
        };
        let models: Vec<_> = self.state.lock().unwrap().models.iter().map(loaded).collect();
        let worker = |i: u16| Worker {
            id: format!("worker-{i}"),
            address: format!("127.0.0.1:{}", 7000 + i),
            state: WorkerState::Serving.into(),
            device: "cpu (fake)".to_owned(),
            queued_tokens: 12,
            tokens_per_second: 3456.7,
            total_tokens: 89_012,
            memory_bytes: 200 << 20,
            models: models.clone(),
        };
        Ok(Response::new(ListWorkersResponse { workers: (0..2).map(worker).collect() }))
    }
}
