//! `Training`: jobs are kept, and told as [`Jobs::script`] has them.

use proto::v1::training_server::Training;
use proto::v1::{
    CancelJobRequest, DeleteJobRequest, DeleteJobResponse, GetJobRequest, Job, JobState, ListJobsRequest,
    ListJobsResponse, SubmitJobRequest, WatchJobRequest,
};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use super::services::{Answers, Services};

/// Jobs: what there is, and what was asked.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// The newest first.
    pub(crate) all: Vec<Job>,
    /// What is told to who watches, from the first to the last; one of no state stands for a trainer that leaves.
    pub(crate) script: Vec<Job>,
    /// Every submission is refused with these fields and reasons.
    pub(crate) faults: Vec<(&'static str, &'static str)>,
    /// How often somebody began to watch.
    pub(crate) watched: usize,
}

impl Services {
    fn jobs<T>(&self, with: impl FnOnce(&mut Jobs) -> T) -> T {
        with(&mut self.state.lock().unwrap().jobs)
    }

    fn found(&self, name: &str) -> Result<Job, Status> {
        let found = self.jobs(|jobs| jobs.all.iter().find(|job| job.name == name).cloned());
        found.ok_or_else(|| Status::not_found(format!("there is no job {name}")))
    }
}

#[tonic::async_trait]
impl Training for Services {
    async fn submit(&self, request: Request<SubmitJobRequest>) -> Result<Response<Job>, Status> {
        let SubmitJobRequest { name, spec } = request.into_inner();
        let faults = self.jobs(|jobs| jobs.faults.clone());
        if !faults.is_empty() {
            let lines: Vec<String> =
                faults.iter().map(|(field, reason)| format!("{field}: {reason}")).collect();
            let violations: Vec<_> =
                faults.into_iter().map(|(field, reason)| FieldViolation::new(field, reason)).collect();
            let details = ErrorDetails::with_bad_request(violations);
            return Err(Status::with_error_details(Code::InvalidArgument, lines.join("\n"), details));
        }
        if let Ok(known) = self.found(&name) {
            return Ok(Response::new(known));
        }
        let job = Job { name, spec, state: JobState::Queued.into(), ranks: 1, ..Job::default() };
        self.jobs(|jobs| jobs.all.insert(0, job.clone()));
        Ok(Response::new(job))
    }

    async fn get(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        self.found(&request.get_ref().name).map(Response::new)
    }

    async fn list(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        Ok(Response::new(ListJobsResponse { jobs: self.jobs(|jobs| jobs.all.clone()) }))
    }

    type WatchStream = Answers<Job>;

    async fn watch(&self, request: Request<WatchJobRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.found(&request.get_ref().name)?;
        let told = self.jobs(|jobs| {
            jobs.watched += 1;
            let left = jobs.script.iter().position(|job| job.state() == JobState::Unspecified);
            let rest = left.map_or(Vec::new(), |at| jobs.script.split_off(at + 1));
            let mut told = std::mem::replace(&mut jobs.script, rest);
            told.retain(|job| job.state() != JobState::Unspecified);
            told
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(told.into_iter().map(Ok)))))
    }

    /// One that runs is ended by its trainer, later.
    async fn cancel(&self, request: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        let name = request.into_inner().name;
        self.found(&name)?;
        self.jobs(|jobs| {
            for job in jobs.all.iter_mut().filter(|job| job.name == name && job.state() == JobState::Queued) {
                job.set_state(JobState::Cancelled);
            }
        });
        self.found(&name).map(Response::new)
    }

    async fn delete(
        &self,
        request: Request<DeleteJobRequest>,
    ) -> Result<Response<DeleteJobResponse>, Status> {
        let name = request.into_inner().name;
        let found = self.found(&name)?;
        if matches!(found.state(), JobState::Queued | JobState::Running | JobState::Publishing) {
            return Err(Status::failed_precondition(format!("job {name} has not ended: cancel it first")));
        }
        self.jobs(|jobs| jobs.all.retain(|job| job.name != name));
        Ok(Response::new(DeleteJobResponse {}))
    }
}
