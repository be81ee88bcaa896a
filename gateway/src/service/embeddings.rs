//! `Embeddings`: texts to vectors.

use std::ops::Range;

use proto::v1;
use proto::v1::embeddings_server::Embeddings;
use proto::worker::v1::worker_client::WorkerClient;
use proto::worker::v1::{AliasSeen, EmbedShard, EmbedShardResult};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use crate::call::{Answered, Order, Twice, Work};
use crate::checkpoint::Digest;
use crate::error::Defect;
use crate::estimate::weigh;
use crate::likeness::{self, Likeness};
use crate::merge::{self, Embedded};
use crate::resolve::Pin;
use crate::wire::EmbedJob;

impl Work for EmbedJob {
    const TRIED: bool = true;

    type Part = EmbedShardResult;
    type Answer = v1::EmbedResponse;

    fn weights(&self) -> Vec<u64> {
        let instruction = self.form.instruction.as_deref().map_or(0, weigh);
        self.inputs.iter().map(|text| instruction + weigh(text)).collect()
    }

    async fn send(
        &self,
        mut worker: WorkerClient<Channel>,
        order: Order,
    ) -> Result<EmbedShardResult, Status> {
        let inputs = self.inputs[order.range.clone()].to_vec();
        let request = v1::EmbedRequest { inputs, ..self.form.clone() };
        let shard = EmbedShard { origin: Some(order.origin.clone()), request: Some(request) };
        Ok(worker.embed(order.seal(shard)).await?.into_inner())
    }

    fn alias(part: &EmbedShardResult) -> Option<&AliasSeen> {
        part.alias.as_ref()
    }

    fn merge(
        &self,
        pin: &Pin,
        parts: Vec<(Range<usize>, EmbedShardResult)>,
    ) -> Result<Answered<v1::EmbedResponse>, Defect> {
        let parts = parts.into_iter().map(|(range, part)| (range.len(), part)).collect();
        let Embedded { vectors, input_tokens } = merge::vectors(&pin.digest, parts)?;
        let tokens = input_tokens.iter().map(|&tokens| u64::from(tokens)).sum();
        let provenance = pin.provenance(vectors.dimensions);
        let body = v1::EmbedResponse {
            provenance: Some(provenance.clone()),
            usage: Some(v1::Usage { tokens }),
            dense: Some(vectors),
            input_tokens,
        };
        Ok(Answered { body, provenance, tokens, texts: self.inputs.len() })
    }
}

impl Twice for EmbedJob {
    fn copy(self, digest: Digest) -> Self {
        let Self { terms, inputs, form } = self;
        Self {
            terms: terms.copy(digest),
            inputs,
            form: v1::EmbedRequest { priority: v1::Priority::Bulk.into(), ..form },
        }
    }

    fn likeness(old: &v1::EmbedResponse, new: &v1::EmbedResponse) -> Likeness {
        let cosines = match (&old.dense, &new.dense) {
            (Some(old), Some(new)) => likeness::cosines(old, new),
            (_, _) => Vec::new(),
        };
        Likeness { cosines, rank_correlation: None }
    }
}

#[tonic::async_trait]
impl Embeddings for Service {
    async fn embed(&self, request: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        self.try_twice::<EmbedJob>(request).await
    }

    type EmbedStreamStream = ReceiverStream<Result<v1::EmbedResponse, Status>>;

    async fn embed_stream(
        &self,
        request: Request<Streaming<v1::EmbedRequest>>,
    ) -> Result<Response<Self::EmbedStreamStream>, Status> {
        Ok(Response::new(self.stream::<EmbedJob>(request)))
    }
}
