//! `Training`: jobs are submitted, looked at, watched, cancelled and deleted.

use std::time::Duration;

use cluster::{Error, Etcd, Job, JobEvent, ListedJob, Name, Submitted, unix_ms};
use proto::v1;
use proto::v1::training_server::Training;
use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::fields::Fault;
use super::foreman::{Look, Shop};
use super::wire::{self, Detail};

/// Between two looks at a job that is watched.
const LOOK: Duration = Duration::from_millis(500);
/// Answers ahead of a caller.
const AHEAD: usize = 4;

/// The service.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) etcd: Etcd,
    pub(super) shop: Shop,
}

#[tonic::async_trait]
impl Training for Service {
    async fn submit(&self, request: Request<v1::SubmitJobRequest>) -> Result<Response<v1::Job>, Status> {
        let v1::SubmitJobRequest { name, spec } = request.into_inner();
        let look = Look::Submitted(self.most_devices().await?);
        let named = match Name::parse(name.as_str()) {
            Ok(name) if name.as_str().starts_with('.') => Err("it must not begin with a dot".to_owned()),
            named => named.map_err(|error| error.to_string()),
        };
        let settled = self.shop.settle(&spec, named.as_ref().map_or("", Name::as_str), look).await;
        let (name, settled) = match (named, settled) {
            (Ok(name), Ok(settled)) => (name, settled),
            (named, settled) => {
                let fault = |reason| Fault { field: "name".to_owned(), reason };
                let faults = named.err().map(fault).into_iter().chain(settled.err().into_iter().flatten());
                return Err(invalid(faults.collect()));
            }
        };
        let now = unix_ms();
        let job = Job {
            spec: spec.clone(),
            ranks: u32::try_from(settled.ranks).unwrap_or(u32::MAX),
            submitted_unix_ms: now,
            events: vec![JobEvent { at_unix_ms: now, what: "submitted".to_owned() }],
            ..Job::default()
        };
        match self.etcd.submit_job(&name, &job).await.map_err(unavailable)? {
            Submitted::New(found) => Ok(Response::new(wire::job(&found, Detail::Whole))),
            Submitted::Known(found) if found.job.spec == spec => {
                Ok(Response::new(wire::job(&found, Detail::Whole)))
            }
            Submitted::Known(_) => {
                let sentence = format!("there is a job {name} that says something else: take another name");
                let details = ErrorDetails::with_bad_request_violation("name", &sentence);
                Err(Status::with_error_details(Code::AlreadyExists, sentence, details))
            }
        }
    }

    async fn get(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::Job>, Status> {
        let name = parse(request.into_inner().name)?;
        let found = self.known(&name).await?;
        let curve = self.etcd.job_curve(&name).await.map_err(unavailable)?;
        let curve = curve.points.iter().map(wire::step).collect();
        Ok(Response::new(v1::Job { curve, ..wire::job(&found, Detail::Whole) }))
    }

    async fn list(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let v1::ListJobsRequest {} = request.into_inner();
        let mut jobs = self.etcd.jobs().await.map_err(unavailable)?;
        jobs.sort_by_key(|found| std::cmp::Reverse(found.job.submitted_unix_ms));
        let jobs = jobs.iter().map(|found| wire::job(found, Detail::Line)).collect();
        Ok(Response::new(v1::ListJobsResponse { jobs }))
    }

    type WatchStream = ReceiverStream<Result<v1::Job, Status>>;

    async fn watch(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let name = parse(request.into_inner().name)?;
        let first = self.known(&name).await?;
        let (tell, told) = mpsc::channel(AHEAD);
        let watcher = self.clone().follow(name, first, tell);
        let stop = self.shop.stop.clone();
        self.shop.tasks.spawn(async move { stop.run_until_cancelled_owned(watcher).await });
        Ok(Response::new(ReceiverStream::new(told)))
    }

    async fn cancel(&self, request: Request<v1::CancelJobRequest>) -> Result<Response<v1::Job>, Status> {
        let name = parse(request.into_inner().name)?;
        let found = self.etcd.cancel_job(&name).await.map_err(unavailable)?;
        let found = found.ok_or_else(|| unknown(&name))?;
        Ok(Response::new(wire::job(&found, Detail::Whole)))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let name = parse(request.into_inner().name)?;
        let has_not = || Status::failed_precondition(format!("job {name} has not ended: cancel it first"));
        if !self.known(&name).await?.job.state.is_final() {
            return Err(has_not());
        }
        // First, for the name is free once the record is gone: a job of it begins in an empty directory.
        self.shop.remove(name.as_str()).await.map_err(|error| {
            tracing::error!(job = %name, %error, "the directory of a job is not removed");
            Status::internal(format!("the directory of job {name} cannot be removed"))
        })?;
        match self.etcd.delete_job(&name).await.map_err(unavailable)? {
            Some(found) if !found.job.state.is_final() => Err(has_not()),
            // That somebody else was faster is as good.
            _ => Ok(Response::new(v1::DeleteJobResponse {})),
        }
    }
}

impl Service {
    async fn known(&self, name: &Name) -> Result<ListedJob, Status> {
        self.etcd.job(name).await.map_err(unavailable)?.ok_or_else(|| unknown(name))
    }

    /// Devices of the trainer that has most, free or not.
    async fn most_devices(&self) -> Result<usize, Status> {
        let trainers = self.etcd.trainers().await.map_err(unavailable)?;
        Ok(trainers.iter().map(|(_, trainer)| trainer.devices.len()).max().unwrap_or(0))
    }

    /// Tells of a job whenever it has changed, until it has ended or nobody listens.
    async fn follow(self, name: Name, first: ListedJob, tell: mpsc::Sender<Result<v1::Job, Status>>) {
        let mut told = wire::job(&first, Detail::Whole);
        let mut is_final = first.job.state.is_final();
        if tell.send(Ok(told.clone())).await.is_err() {
            return;
        }
        while !is_final {
            time::sleep(LOOK).await;
            if tell.is_closed() {
                return;
            }
            // Without etcd there is nothing new.
            let Ok(Some(found)) = self.etcd.job(&name).await else { continue };
            is_final = found.job.state.is_final();
            let now = wire::job(&found, Detail::Whole);
            if now != told {
                told = now;
                if tell.send(Ok(told.clone())).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn parse(name: String) -> Result<Name, Status> {
    Name::parse(name)
        .map_err(|error| invalid(vec![Fault { field: "name".to_owned(), reason: error.to_string() }]))
}

fn unknown(name: &Name) -> Status {
    Status::not_found(format!("there is no job {name}"))
}

/// All faults at once, each by its field.
fn invalid(faults: Vec<Fault>) -> Status {
    let sentences: Vec<String> =
        faults.iter().map(|Fault { field, reason }| format!("{field}: {reason}")).collect();
    let violations: Vec<FieldViolation> =
        faults.into_iter().map(|Fault { field, reason }| FieldViolation::new(field, reason)).collect();
    let details = ErrorDetails::with_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, sentences.join("\n"), details)
}

#[allow(clippy::needless_pass_by_value, reason = "it is mapped over")]
fn unavailable(error: Error) -> Status {
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    Status::unavailable(format!("{error}{}", source.unwrap_or_default()))
}
