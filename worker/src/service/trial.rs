//! Checkpoints that are tried out before anybody can see them.

use std::pin::Pin;

use futures::stream::{self, Stream, StreamExt as _};
use proto::worker::v1::{TrialReport, TrialRequest, trial_report};
use tokio::sync::mpsc;
use tonic::Status;

use super::Service;
use crate::prepare::Failure;
use crate::trial::{Trial, TrialError};

/// Reports that may wait for a reader.
const REPORTS: usize = 8;

/// A stream of reports on a trial.
pub(super) type TrialReports = Pin<Box<dyn Stream<Item = Result<TrialReport, Status>> + Send>>;

impl Service {
    /// Reports on a trial, which is at an end when nobody reads them any more.
    pub(super) fn try_out(&self, request: TrialRequest) -> Result<TrialReports, Status> {
        let trial = Trial::parse(request).map_err(TrialError::from)?;
        let absent = || TrialError::from(Failure::Absent("this worker has no store".to_owned()));
        let trials = self.trials.clone().ok_or_else(absent)?;
        let (reports, mut inbox) = mpsc::channel(REPORTS);
        let stop = self.health.stop.clone();
        let last = async move {
            let tried = stop.run_until_cancelled(trials.run(trial, &reports)).await;
            match tried {
                Some(tried) => Ok(TrialReport { step: Some(trial_report::Step::Tried(tried?)) }),
                None => Err(Status::unavailable("the worker is leaving")),
            }
        };
        let progress = stream::poll_fn(move |context| inbox.poll_recv(context)).map(Ok);
        // The trial goes on as the stream is read: progress while there is some, then the last word.
        Ok(Box::pin(stream::select(progress, stream::once(last))))
    }
}
