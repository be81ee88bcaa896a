//! The cluster's gateways, as a trainer uses them: to measure what is served, and to hand over what is trained.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cluster::Etcd;
use model::normalized;
use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::models_client::ModelsClient;
use proto::v1::reranking_client::RerankingClient;
use proto::v1::{EmbedRequest, InputType, Priority, RerankRequest, ScoreForm, Truncation};
use publisher::persist;
use tch::Tensor;
use tls::Dialer;
use tokio::runtime::Handle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::error::TrainError;
use crate::evaluate::{Embed, List, Role, Score};

/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// How long gateways that are busy or away are waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(120);
/// Texts of a call.
const TEXTS: usize = 64;
/// Pairs of a call, each of which costs as much as a text of its length.
const PAIRS: usize = 16;
/// Bytes of an answer.
const ANSWER: usize = 64 << 20;

/// The gateways of the cluster.
#[derive(Clone, Debug)]
pub(super) struct Gateways {
    /// Where they are registered.
    pub(super) etcd: Etcd,
    /// How connections are made.
    pub(super) dialer: Dialer,
    /// The file with the API key that they are shown; read for each job, so that it can be changed.
    pub(super) key: Option<Arc<PathBuf>>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Gateway {
    channel: Channel,
    bearer: Option<MetadataValue<Ascii>>,
}

impl Gateways {
    /// A connection to one that answers, waiting for one if need be.
    ///
    /// # Errors
    /// Where none does in time, or the key is of no use.
    pub(super) async fn connect(&self) -> Result<Gateway, Status> {
        let bearer = self.bearer()?;
        let channel = persist(PATIENCE, waiting, async || self.dial().await).await?;
        Ok(Gateway { channel, bearer })
    }

    async fn dial(&self) -> Result<Channel, Status> {
        let found = self.etcd.gateways().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut last = Status::unavailable("no gateway is registered in the cluster");
        for (_, gateway) in found {
            let endpoint = match Endpoint::from_shared(format!("http://{}", gateway.address)) {
                Ok(endpoint) => endpoint.connect_timeout(CONNECT).tcp_nodelay(true),
                Err(error) => {
                    last = Status::unavailable(format!("{}: {error}", gateway.address));
                    continue;
                }
            };
            match self.dialer.connect(&endpoint).await {
                Ok(channel) => return Ok(channel),
                Err(error) => last = Status::unavailable(format!("{}: {error}", gateway.address)),
            }
        }
        Err(last)
    }

    fn bearer(&self) -> Result<Option<MetadataValue<Ascii>>, Status> {
        let Some(path) = &self.key else { return Ok(None) };
        let unusable = |why: String| Status::failed_precondition(format!("{}: {why}", path.display()));
        let key = std::fs::read_to_string(path.as_ref()).map_err(|error| unusable(error.to_string()))?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {}", key.trim())
            .parse()
            .map_err(|_| unusable("it holds no API key".to_owned()))?;
        bearer.set_sensitive(true);
        Ok(Some(bearer))
    }
}

/// Tells in the log why somebody waits.
pub(super) fn waiting(status: &Status) {
    tracing::info!(reason = status.message(), "waiting for a gateway");
}

impl Gateway {
    pub(super) fn models(&self) -> ModelsClient<Channel> {
        ModelsClient::new(self.channel.clone())
    }

    /// A message with all that each call carries, and a deadline.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.unhurried(message);
        request.set_timeout(CALL);
        request
    }

    /// The same without a deadline.
    pub(super) fn unhurried<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        request
    }
}

/// A checkpoint that is served, with its own instructions and its own window. Blocks: not for a thread of the runtime.
#[derive(Debug)]
pub(super) struct Served {
    /// Who serves it.
    pub(super) gateway: Gateway,
    /// `alias@digest`.
    pub(super) model: String,
    /// Where calls are made.
    pub(super) runtime: Handle,
}

impl Served {
    async fn call(&self, texts: &[String], role: Role) -> Result<Tensor, Status> {
        let asked = EmbedRequest {
            model: self.model.clone(),
            inputs: texts.to_vec(),
            input_type: match role {
                Role::Query => InputType::Query,
                Role::Passage => InputType::Document,
            }
            .into(),
            truncation: Truncation::End.into(),
            priority: Priority::Bulk.into(),
            ..EmbedRequest::default()
        };
        let mut client =
            EmbeddingsClient::new(self.gateway.channel.clone()).max_decoding_message_size(ANSWER);
        let call = async || client.embed(self.gateway.request(asked.clone())).await;
        let answer = persist(PATIENCE, waiting, call).await?.into_inner();
        let dense = answer.dense.unwrap_or_default();
        let numbers: Vec<f32> = dense
            .data
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        let wrong = |error: tch::TchError| Status::internal(error.to_string());
        let rows = i64::try_from(texts.len()).unwrap_or(i64::MAX);
        Tensor::f_from_slice(&numbers).and_then(|flat| flat.f_view([rows, -1])).map_err(wrong)
    }

    /// Scores in the order of `passages`, as they are before anything could make them equal.
    async fn rerank(&self, query: &str, passages: &[String]) -> Result<Vec<f32>, Status> {
        let asked = RerankRequest {
            model: self.model.clone(),
            query: said(query),
            documents: passages.iter().map(|passage| said(passage)).collect(),
            score_form: ScoreForm::Raw.into(),
            truncation: Truncation::End.into(),
            priority: Priority::Bulk.into(),
            ..RerankRequest::default()
        };
        let mut client = RerankingClient::new(self.gateway.channel.clone());
        let call = async || client.rerank(self.gateway.request(asked.clone())).await;
        let answer = persist(PATIENCE, waiting, call).await?.into_inner();
        let mut scores = vec![f32::NAN; passages.len()];
        for ranking in answer.rankings {
            let place = usize::try_from(ranking.index).ok().and_then(|at| scores.get_mut(at));
            *place.ok_or_else(|| Status::internal("a score of nothing that was asked"))? = ranking.score;
        }
        Ok(scores)
    }

    fn failed(&self, status: &Status) -> TrainError {
        TrainError::Torch(format!("{}: {}", self.model, status.message()))
    }
}

/// A gateway refuses an empty text; a space is as little.
fn said(text: &str) -> String {
    if text.is_empty() { " ".to_owned() } else { text.to_owned() }
}

impl Embed for Served {
    fn embed(&mut self, texts: &[String], role: Role) -> Result<Tensor, TrainError> {
        let texts: Vec<String> = texts.iter().map(|text| said(text)).collect();
        let rows = texts
            .chunks(TEXTS)
            .map(|part| self.runtime.block_on(self.call(part, role)).map_err(|status| self.failed(&status)))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(normalized(&Tensor::f_cat(&rows, 0)?)?)
    }
}

impl Score for Served {
    fn score(&mut self, lists: &[List]) -> Result<Vec<f32>, TrainError> {
        let mut scores = Vec::new();
        for List { query, passages } in lists {
            for part in passages.chunks(PAIRS) {
                let answer = self.runtime.block_on(self.rerank(query, part));
                scores.extend(answer.map_err(|status| self.failed(&status))?);
            }
        }
        Ok(scores)
    }
}
