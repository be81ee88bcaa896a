//! `Models`: which names there are, what is loaded under them, and how that changes.

use std::sync::Arc;

use ::cluster::{Alias, View};
use proto::v1;
use proto::v1::models_server::Models;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Service;
use crate::checkpoint::Digest;
use crate::error::{self, CallError, ManageError};
use crate::fleet::{Fleet, Known};
use crate::resolve::unreachable;
use crate::wire::{self, swaps};

mod collect;
mod golden;
mod publish;
mod rehearse;
mod swap;
mod versions;
mod watch;

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
        request: Request<Streaming<v1::PublishRequest>>,
    ) -> Result<Response<Self::PublishStream>, Status> {
        Ok(Response::new(self.take(request)))
    }

    async fn list_versions(
        &self,
        request: Request<v1::ListVersionsRequest>,
    ) -> Result<Response<v1::ListVersionsResponse>, Status> {
        Ok(Response::new(self.versions(request.into_inner()).await?))
    }

    async fn promote(&self, request: Request<v1::PromoteRequest>) -> Result<Response<v1::Swap>, Status> {
        Ok(Response::new(self.move_name(request.into_inner()).await?))
    }

    async fn rollback(&self, request: Request<v1::RollbackRequest>) -> Result<Response<v1::Swap>, Status> {
        Ok(Response::new(self.move_back(request.into_inner()).await?))
    }

    async fn retire(&self, request: Request<v1::RetireRequest>) -> Result<Response<v1::Swap>, Status> {
        Ok(Response::new(self.let_go(request.into_inner()).await?))
    }

    async fn pin(&self, request: Request<v1::PinRequest>) -> Result<Response<v1::Version>, Status> {
        Ok(Response::new(self.keep(request.into_inner()).await?))
    }

    async fn collect(
        &self,
        request: Request<v1::CollectRequest>,
    ) -> Result<Response<v1::CollectResponse>, Status> {
        Ok(Response::new(self.clean(request.into_inner()).await?))
    }

    async fn get_swap(&self, request: Request<v1::GetSwapRequest>) -> Result<Response<v1::Swap>, Status> {
        let model = swaps::swap_of(request.into_inner())?;
        Ok(Response::new(self.last_swap(&model)?))
    }

    type WatchSwapStream = ReceiverStream<Result<v1::Swap, Status>>;

    async fn watch_swap(
        &self,
        request: Request<v1::WatchSwapRequest>,
    ) -> Result<Response<Self::WatchSwapStream>, Status> {
        Ok(Response::new(self.follow_swap(request.into_inner())?))
    }
}

impl Service {
    /// The cluster, once it was seen.
    fn seen(&self) -> Result<Arc<View>, ManageError> {
        match self.dispatcher.fleet().aliases() {
            Some(_) => Ok(self.control.view()),
            None => Err(error::unreachable(UNSEEN.to_owned()).into()),
        }
    }
}

/// Why nothing is known yet.
const UNSEEN: &str = "this gateway has not seen the cluster yet";

fn unseen() -> Status {
    unreachable(UNSEEN).into()
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
    v1::Checkpoint {
        dtypes: fleet.dtypes(digest),
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
