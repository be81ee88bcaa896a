//! `Reranking`: scores of documents against a query.

use std::ops::Range;

use proto::v1;
use proto::v1::reranking_server::Reranking;
use proto::worker::v1::worker_client::WorkerClient;
use proto::worker::v1::{AliasSeen, RerankShard, RerankShardResult};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use crate::call::{Answered, Order, Twice, Work};
use crate::checkpoint::Digest;
use crate::error::Defect;
use crate::estimate::weigh;
use crate::likeness::{self, Likeness};
use crate::merge::{self, Ranked};
use crate::resolve::Pin;
use crate::wire::RerankJob;

impl Work for RerankJob {
    const TRIED: bool = true;

    type Part = RerankShardResult;
    type Answer = v1::RerankResponse;

    /// As a cross-encoder has it, which reads the query with each document; too much for an embedding model, whose
    /// answers correct it.
    fn weights(&self) -> Vec<u64> {
        let query = weigh(&self.form.query) + self.form.instruction.as_deref().map_or(0, weigh);
        self.documents.iter().map(|document| query + weigh(document)).collect()
    }

    async fn send(
        &self,
        mut worker: WorkerClient<Channel>,
        order: Order,
    ) -> Result<RerankShardResult, Status> {
        let documents = self.documents[order.range.clone()].to_vec();
        let request = v1::RerankRequest { documents, ..self.form.clone() };
        let shard = RerankShard { origin: Some(order.origin.clone()), request: Some(request) };
        Ok(worker.rerank(order.seal(shard)).await?.into_inner())
    }

    fn alias(part: &RerankShardResult) -> Option<&AliasSeen> {
        part.alias.as_ref()
    }

    fn merge(
        &self,
        pin: &Pin,
        parts: Vec<(Range<usize>, RerankShardResult)>,
    ) -> Result<Answered<v1::RerankResponse>, Defect> {
        let parts = parts.into_iter().map(|(range, part)| (range.len(), part)).collect();
        let ranked = merge::rankings(&pin.digest, parts, self.top_n)?;
        let Ranked { rankings, scoring, score_form, tokens } = ranked;
        let provenance = pin.provenance(0);
        let body = v1::RerankResponse {
            provenance: Some(provenance.clone()),
            usage: Some(v1::Usage { tokens }),
            rankings,
            scoring: scoring.into(),
            score_form: score_form.into(),
        };
        Ok(Answered { body, provenance, tokens, texts: self.documents.len() })
    }
}

impl Twice for RerankJob {
    fn copy(self, digest: Digest) -> Self {
        let Self { terms, documents, top_n: _, form } = self;
        let form = v1::RerankRequest { priority: v1::Priority::Bulk.into(), ..form };
        Self { terms: terms.copy(digest), documents, top_n: None, form }
    }

    fn likeness(old: &v1::RerankResponse, new: &v1::RerankResponse) -> Likeness {
        let rank_correlation = likeness::rank_correlation(&old.rankings, &new.rankings);
        Likeness { cosines: Vec::new(), rank_correlation }
    }
}

#[tonic::async_trait]
impl Reranking for Service {
    async fn rerank(
        &self,
        request: Request<v1::RerankRequest>,
    ) -> Result<Response<v1::RerankResponse>, Status> {
        self.try_twice::<RerankJob>(request).await
    }

    type RerankStreamStream = ReceiverStream<Result<v1::RerankResponse, Status>>;

    async fn rerank_stream(
        &self,
        request: Request<Streaming<v1::RerankRequest>>,
    ) -> Result<Response<Self::RerankStreamStream>, Status> {
        Ok(Response::new(self.stream::<RerankJob>(request)))
    }
}
