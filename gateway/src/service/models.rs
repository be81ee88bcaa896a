//! `Models`: which names there are, and what is loaded under them.

use std::collections::BTreeSet;

use ::cluster::Alias;
use proto::v1;
use proto::v1::models_server::Models;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use crate::checkpoint::Digest;
use crate::error::CallError;
use crate::fleet::{Fleet, Known};
use crate::resolve::unreachable;
use crate::wire;

#[tonic::async_trait]
impl Models for Service {
    async fn list(
        &self,
        request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let v1::ListModelsRequest {} = request.into_inner();
        let fleet = self.dispatcher.fleet();
        let aliases = fleet.aliases().ok_or_else(unseen)?;
        let models = aliases.iter().map(|(name, alias)| model(&fleet, name, alias)).collect();
        Ok(Response::new(v1::ListModelsResponse { models }))
    }

    async fn get(&self, request: Request<v1::GetModelRequest>) -> Result<Response<v1::Model>, Status> {
        let name = wire::model_name(request.into_inner())?;
        let fleet = self.dispatcher.fleet();
        let aliases = fleet.aliases().ok_or_else(unseen)?;
        match aliases.get(name.as_str()) {
            Some(alias) => Ok(Response::new(model(&fleet, name.as_str(), alias))),
            None => Err(CallError::UnknownModel(name).into()),
        }
    }

    type PublishStream = ReceiverStream<Result<v1::PublishResponse, Status>>;

    async fn publish(
        &self,
        _: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        Err(unbuilt())
    }

    async fn list_versions(
        &self,
        _: Request<v1::ListVersionsRequest>,
    ) -> Result<Response<v1::ListVersionsResponse>, Status> {
        Err(unbuilt())
    }

    async fn promote(&self, _: Request<v1::PromoteRequest>) -> Result<Response<v1::Swap>, Status> {
        Err(unbuilt())
    }

    async fn rollback(&self, _: Request<v1::RollbackRequest>) -> Result<Response<v1::Swap>, Status> {
        Err(unbuilt())
    }

    async fn retire(&self, _: Request<v1::RetireRequest>) -> Result<Response<v1::Swap>, Status> {
        Err(unbuilt())
    }

    async fn pin(&self, _: Request<v1::PinRequest>) -> Result<Response<v1::Version>, Status> {
        Err(unbuilt())
    }

    async fn collect(&self, _: Request<v1::CollectRequest>) -> Result<Response<v1::CollectResponse>, Status> {
        Err(unbuilt())
    }

    async fn get_swap(&self, _: Request<v1::GetSwapRequest>) -> Result<Response<v1::Swap>, Status> {
        Err(unbuilt())
    }

    type WatchSwapStream = ReceiverStream<Result<v1::Swap, Status>>;

    async fn watch_swap(
        &self,
        _: Request<v1::WatchSwapRequest>,
    ) -> Result<Response<Self::WatchSwapStream>, Status> {
        Err(unbuilt())
    }
}

fn unbuilt() -> Status {
    Status::unimplemented("this gateway cannot do that yet")
}

fn unseen() -> Status {
    unreachable("this gateway has not seen the cluster yet").into()
}

fn model(fleet: &Fleet, name: &str, alias: &Alias) -> v1::Model {
    let current = Digest::from(alias.digest.as_str());
    let loaded = |(digest, known): &(&Digest, &Known)| {
        **digest != current && known.names.contains(name) && !known.ready.is_empty()
    };
    let mut others: Vec<_> =
        fleet.checkpoints().filter(loaded).map(|(digest, known)| checkpoint(fleet, digest, known)).collect();
    others.sort_by(|a, b| a.digest.cmp(&b.digest));
    let checkpoint = fleet.checkpoint(&current).map_or_else(
        || v1::Checkpoint { digest: alias.digest.clone(), ..v1::Checkpoint::default() },
        |known| checkpoint(fleet, &current, known),
    );
    v1::Model { name: name.to_owned(), checkpoint: Some(checkpoint), epoch: alias.epoch, others }
}

fn checkpoint(fleet: &Fleet, digest: &Digest, known: &Known) -> v1::Checkpoint {
    let reports = fleet.members().iter().filter_map(|member| member.link.latest());
    let dtypes: BTreeSet<String> = reports
        .flat_map(|report| report.ready.clone())
        .filter_map(|ready| ready.checkpoint)
        .filter(|checkpoint| checkpoint.digest == digest.as_str())
        .flat_map(|checkpoint| checkpoint.dtypes)
        .collect();
    v1::Checkpoint {
        dtypes: dtypes.into_iter().collect(),
        ready_workers: u32::try_from(known.ready.len()).unwrap_or(u32::MAX),
        ..known.card.checkpoint.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Standing;
    use crate::fleet::tests::{member, ready, view};

    #[tokio::test]
    async fn a_model_is_its_checkpoint_and_the_others_loaded_under_its_name() {
        let view = view(&[("m", "d", 4), ("gone", "g", 1)]);
        let members = vec![
            member("w1", Standing::Serving, vec![ready("m", "d"), ready("m", "c"), ready("n", "x")]),
            member("w2", Standing::Serving, vec![ready("m", "d")]),
            member("w3", Standing::Unreachable, vec![ready("m", "d"), ready("m", "b")]),
        ];
        let fleet = Fleet::new(Some(&view.aliases), members);
        let found = model(&fleet, "m", &view.aliases["m"]);
        let current = found.checkpoint.unwrap();
        assert_eq!((found.epoch, current.digest.as_str(), current.ready_workers), (4, "d", 2));
        assert_eq!((current.dimensions, current.index_space.as_str()), (384, "space of m"));
        let others: Vec<_> = found.others.iter().map(|other| other.digest.as_str()).collect();
        assert_eq!(others, ["c"]);

        let gone = model(&fleet, "gone", &view.aliases["gone"]).checkpoint.unwrap();
        assert_eq!((gone.digest.as_str(), gone.ready_workers), ("g", 0));
    }
}
