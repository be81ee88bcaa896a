//! `Tokens`: what a checkpoint's tokenizer makes of texts. One worker answers a request whole.

use std::ops::Range;

use proto::v1;
use proto::v1::tokens_server::Tokens;
use proto::worker::v1::worker_client::WorkerClient;
use proto::worker::v1::{AliasSeen, CountShard, TokenizeShard};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::Service;
use crate::call::{Answered, Order, Work};
use crate::error::Defect;
use crate::estimate::weigh;
use crate::merge;
use crate::resolve::Pin;
use crate::wire::{CountJob, TokenizeJob};

/// A worker tokenises this many times faster than it runs a model, and beside it; counted all the same, so that a
/// flood of such calls is bounded, too.
const CHEAPER: u64 = 16;

fn weights(inputs: &[String]) -> Vec<u64> {
    let weight: u64 = inputs.iter().map(|text| weigh(text)).sum();
    vec![weight / CHEAPER]
}

fn only<T>(parts: Vec<(Range<usize>, T)>) -> Result<T, Defect> {
    let part = parts.into_iter().next().map(|(_, part)| part);
    part.ok_or_else(|| Defect("a call has no parts".to_owned()))
}

impl Work for TokenizeJob {
    const TRIED: bool = false;

    type Part = v1::TokenizeResponse;
    type Answer = v1::TokenizeResponse;

    fn weights(&self) -> Vec<u64> {
        weights(&self.form.inputs)
    }

    async fn send(
        &self,
        mut worker: WorkerClient<Channel>,
        order: Order,
    ) -> Result<v1::TokenizeResponse, Status> {
        let request = Some(self.form.clone());
        let shard = TokenizeShard { origin: Some(order.origin.clone()), request };
        Ok(worker.tokenize(order.seal(shard)).await?.into_inner())
    }

    fn alias(_part: &v1::TokenizeResponse) -> Option<&AliasSeen> {
        None
    }

    fn merge(
        &self,
        pin: &Pin,
        parts: Vec<(Range<usize>, v1::TokenizeResponse)>,
    ) -> Result<Answered<v1::TokenizeResponse>, Defect> {
        let v1::TokenizeResponse { provenance, sequences } = only(parts)?;
        merge::made_by(&pin.digest, provenance)?;
        merge::same("sequences", self.form.inputs.len(), sequences.len())?;
        let provenance = pin.provenance(0);
        let body = v1::TokenizeResponse { provenance: Some(provenance.clone()), sequences };
        Ok(Answered { body, provenance, tokens: 0, texts: self.form.inputs.len() })
    }
}

impl Work for CountJob {
    const TRIED: bool = false;

    type Part = v1::CountResponse;
    type Answer = v1::CountResponse;

    fn weights(&self) -> Vec<u64> {
        weights(&self.form.inputs)
    }

    async fn send(
        &self,
        mut worker: WorkerClient<Channel>,
        order: Order,
    ) -> Result<v1::CountResponse, Status> {
        let shard = CountShard { origin: Some(order.origin.clone()), request: Some(self.form.clone()) };
        Ok(worker.count(order.seal(shard)).await?.into_inner())
    }

    fn alias(_part: &v1::CountResponse) -> Option<&AliasSeen> {
        None
    }

    fn merge(
        &self,
        pin: &Pin,
        parts: Vec<(Range<usize>, v1::CountResponse)>,
    ) -> Result<Answered<v1::CountResponse>, Defect> {
        let v1::CountResponse { provenance, counts } = only(parts)?;
        merge::made_by(&pin.digest, provenance)?;
        merge::same("counts", self.form.inputs.len(), counts.len())?;
        let provenance = pin.provenance(0);
        let body = v1::CountResponse { provenance: Some(provenance.clone()), counts };
        Ok(Answered { body, provenance, tokens: 0, texts: self.form.inputs.len() })
    }
}

#[tonic::async_trait]
impl Tokens for Service {
    async fn tokenize(
        &self,
        request: Request<v1::TokenizeRequest>,
    ) -> Result<Response<v1::TokenizeResponse>, Status> {
        self.call::<TokenizeJob>(request).await
    }

    async fn count(&self, request: Request<v1::CountRequest>) -> Result<Response<v1::CountResponse>, Status> {
        self.call::<CountJob>(request).await
    }
}
