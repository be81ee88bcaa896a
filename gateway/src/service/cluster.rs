//! `Cluster`: the workers as this gateway sees them.

use std::collections::BTreeMap;

use proto::v1;
use proto::v1::cluster_server::Cluster;
use tonic::{Request, Response, Status};

use super::Service;
use crate::fleet::{Fleet, Member, Standing};

#[tonic::async_trait]
impl Cluster for Service {
    async fn list_workers(
        &self,
        request: Request<v1::ListWorkersRequest>,
    ) -> Result<Response<v1::ListWorkersResponse>, Status> {
        let v1::ListWorkersRequest {} = request.into_inner();
        Ok(Response::new(v1::ListWorkersResponse { workers: workers(&self.dispatcher.fleet()) }))
    }
}

/// Ascending by id. Of a worker that moved, the seat that answers is shown.
fn workers(fleet: &Fleet) -> Vec<v1::Worker> {
    let mut shown: BTreeMap<&str, &Member> = BTreeMap::new();
    for member in fleet.members() {
        let entry = shown.entry(member.link.seat.id.as_str()).or_insert(member);
        if entry.standing == Standing::Unreachable {
            *entry = member;
        }
    }
    shown.into_values().map(worker).collect()
}

fn worker(member: &Member) -> v1::Worker {
    let state = match member.standing {
        Standing::Serving => v1::WorkerState::Serving,
        Standing::Draining => v1::WorkerState::Draining,
        Standing::Unreachable => v1::WorkerState::Unreachable,
    };
    let report = member.link.latest().unwrap_or_default();
    let loaded = |ready: &proto::worker::v1::ReadyCheckpoint| {
        let checkpoint = ready.checkpoint.clone().unwrap_or_default();
        let dtype = checkpoint.dtypes.first().cloned().unwrap_or_default();
        v1::LoadedModel { name: ready.model.clone(), digest: checkpoint.digest, dtype }
    };
    v1::Worker {
        id: member.link.seat.id.to_string(),
        address: member.link.seat.address.clone(),
        state: state.into(),
        device: report.device.clone(),
        queued_tokens: report.queued_tokens,
        tokens_per_second: report.tokens_per_second,
        total_tokens: report.total_tokens,
        memory_bytes: report.memory_bytes,
        models: report.ready.iter().map(loaded).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::tests::{member, ready};

    #[tokio::test]
    async fn each_worker_is_shown_once_where_it_answers() {
        let members = vec![
            member("w1", Standing::Unreachable, Vec::new()),
            member("w1", Standing::Serving, vec![ready("m", "d")]),
            member("w2", Standing::Draining, Vec::new()),
            member("w2", Standing::Unreachable, Vec::new()),
        ];
        let shown = workers(&Fleet::new(None, members));
        let states: Vec<_> = shown.iter().map(|worker| (worker.id.as_str(), worker.state())).collect();
        assert_eq!(states, [("w1", v1::WorkerState::Serving), ("w2", v1::WorkerState::Draining)]);
        assert_eq!((shown[0].models[0].name.as_str(), shown[0].models[0].digest.as_str()), ("m", "d"));
    }
}
