//! The calls that are recorded, and what comes back of them.

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::reranking_client::RerankingClient;
use proto::v1::{EmbedRequest, EmbedResponse, Provenance, Require, RerankRequest, Truncation};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::record::Digest;
use crate::floats;

/// An answer: the checkpoint and the epoch it names, and a row of numbers for each text or document, in order.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) digest: Digest,
    pub(super) epoch: u64,
    /// A vector each, or a score.
    pub(super) rows: Vec<Vec<f32>>,
}

/// A request for the vectors of `inputs`.
pub(super) fn embedding(model: &str, inputs: Vec<String>, min_epoch: u64) -> EmbedRequest {
    EmbedRequest {
        model: model.to_owned(),
        inputs,
        truncation: Truncation::End.into(),
        require: Some(Require { what: None, min_epoch }),
        ..EmbedRequest::default()
    }
}

/// A request for the scores of `documents`.
pub(super) fn ranking(model: &str, query: String, documents: Vec<String>, min_epoch: u64) -> RerankRequest {
    RerankRequest {
        model: model.to_owned(),
        query,
        documents,
        truncation: Truncation::End.into(),
        require: Some(Require { what: None, min_epoch }),
        ..RerankRequest::default()
    }
}

pub(super) async fn embed(channel: &Channel, request: Request<EmbedRequest>) -> Result<Said, Status> {
    EmbeddingsClient::new(channel.clone()).embed(request).await.map(|answer| vectors(answer.into_inner()))
}

pub(super) async fn rerank(channel: &Channel, request: Request<RerankRequest>) -> Result<Said, Status> {
    let answer = RerankingClient::new(channel.clone()).rerank(request).await?.into_inner();
    let mut rankings = answer.rankings;
    rankings.sort_by_key(|ranking| ranking.index);
    let rows = rankings.iter().map(|ranking| vec![ranking.score]).collect();
    Ok(said(answer.provenance, rows))
}

/// What an answer with vectors says.
pub(super) fn vectors(answer: EmbedResponse) -> Said {
    let dense = answer.dense.unwrap_or_default();
    let numbers = floats(&dense.data);
    let rows = numbers.chunks_exact(dense.dimensions.max(1) as usize).map(<[f32]>::to_vec).collect();
    said(answer.provenance, rows)
}

/// An answer that names no checkpoint names one that nobody knows.
fn said(provenance: Option<Provenance>, rows: Vec<Vec<f32>>) -> Said {
    let provenance = provenance.unwrap_or_default();
    Said { digest: provenance.digest.into(), epoch: provenance.epoch, rows }
}
