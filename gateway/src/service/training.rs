//! `Training`: asked of a trainer. Any will do, for what is known of jobs is in etcd.

use std::time::Duration;

use cluster::TrainerId;
use proto::v1;
use proto::v1::training_client::TrainingClient;
use proto::v1::training_server::Training;
use rand::seq::SliceRandom as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use super::{Service, deadline};
use crate::error;

/// How long making a connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Bytes of an answer: a list of many jobs.
const ANSWER_BYTES: usize = 64 << 20;

#[tonic::async_trait]
impl Training for Service {
    async fn submit(&self, request: Request<v1::SubmitJobRequest>) -> Result<Response<v1::Job>, Status> {
        let mut trainer = self.trainer().await?;
        forwarded(trainer.submit(in_time(request)).await)
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let mut trainer = self.trainer().await?;
        forwarded(trainer.get(in_time(request)).await)
    }

    async fn list(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let mut trainer = self.trainer().await?;
        forwarded(trainer.list(in_time(request)).await)
    }

    type WatchStream = Streaming<v1::Job>;

    async fn watch(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Streaming<v1::Job>>, Status> {
        let mut trainer = self.trainer().await?;
        // It lasts as long as the job.
        forwarded(trainer.watch(request.into_inner()).await)
    }

    async fn cancel(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        let mut trainer = self.trainer().await?;
        forwarded(trainer.cancel(in_time(request)).await)
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let mut trainer = self.trainer().await?;
        forwarded(trainer.delete(in_time(request)).await)
    }
}

impl Service {
    /// A connection to a trainer that answers.
    async fn trainer(&self) -> Result<TrainingClient<Channel>, Status> {
        let found = self.control.etcd.trainers().await;
        let mut found =
            found.map_err(|error| unreachable(format!("trainers cannot be looked up: {error}")))?;
        if found.is_empty() {
            return Err(unreachable(
                "there is no trainer in the cluster: start one with beige-trainer serve".to_owned(),
            ));
        }
        found.shuffle(&mut rand::rng());
        let mut last = String::new();
        for (id, trainer) in found {
            match self.dial(&id, &trainer.address).await {
                Ok(channel) => {
                    return Ok(TrainingClient::new(channel).max_decoding_message_size(ANSWER_BYTES));
                }
                Err(why) => last = why,
            }
        }
        Err(unreachable(last))
    }

    async fn dial(&self, id: &TrainerId, address: &str) -> Result<Channel, String> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"));
        let endpoint =
            endpoint.map_err(|error| format!("trainer {id} has the address {address}: {error}"))?;
        let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
        self.trainers.connect(&endpoint).await.map_err(|error| {
            tracing::info!(trainer = %id, address, %error, "a trainer cannot be reached");
            format!("trainer {id} cannot be reached")
        })
    }
}

fn unreachable(why: String) -> Status {
    error::unreachable(why).into()
}

/// The message alone, with what is left of the caller's time: keys stay here.
fn in_time<T>(request: Request<T>) -> Request<T> {
    let deadline = deadline(request.extensions());
    let mut forwarded = Request::new(request.into_inner());
    let now = tokio::time::Instant::now();
    forwarded.set_timeout(deadline.of_answer(now).saturating_duration_since(now));
    forwarded
}

/// An answer, or what the trainer says is wrong, without the headers of the connection behind.
fn forwarded<T>(answer: Result<Response<T>, Status>) -> Result<Response<T>, Status> {
    match answer {
        Ok(answer) => Ok(Response::new(answer.into_inner())),
        Err(status) => {
            Err(Status::with_details(status.code(), status.message(), status.details().to_vec().into()))
        }
    }
}
