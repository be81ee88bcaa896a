//! What the gateway tells of itself: readiness to operators, `grpc.health.v1` to callers.

use std::sync::Arc;

use proto::v1;
use telemetry::admin::Readiness;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::fleet::Fleet;

/// What callers may ask the health of: each service, and all of it.
const SERVICES: [&str; 6] = [
    "",
    v1::embeddings_server::SERVICE_NAME,
    v1::reranking_server::SERVICE_NAME,
    v1::tokens_server::SERVICE_NAME,
    v1::models_server::SERVICE_NAME,
    v1::cluster_server::SERVICE_NAME,
];

/// How the gateway stands, as the state of the fleet has it.
#[must_use]
pub fn readiness(fleet: &Fleet) -> Readiness {
    if fleet.aliases().is_none() {
        Readiness::NotReady("the cluster has not been seen yet".to_owned())
    } else if !fleet.serves() {
        Readiness::NotReady("no model has a worker that is ready".to_owned())
    } else {
        Readiness::Ready
    }
}

/// Says no, until there is more to say: a reporter that was told nothing says yes.
pub async fn begin(health: &HealthReporter) {
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::NotServing).await;
    }
}

/// Tells how the gateway stands at each change; from `leaving` on, that it takes nothing new.
pub async fn tell(
    mut fleet: watch::Receiver<Arc<Fleet>>,
    health: HealthReporter,
    readiness: watch::Sender<Readiness>,
    leaving: CancellationToken,
) {
    let telling = async {
        loop {
            let now = self::readiness(&fleet.borrow_and_update());
            announce(&health, &readiness, now).await;
            if fleet.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    leaving.run_until_cancelled(telling).await;
    leaving.cancelled().await;
    announce(&health, &readiness, Readiness::NotReady("leaving".to_owned())).await;
}

async fn announce(health: &HealthReporter, readiness: &watch::Sender<Readiness>, now: Readiness) {
    let status = match now {
        Readiness::Ready => ServingStatus::Serving,
        Readiness::NotReady(_) => ServingStatus::NotServing,
    };
    let changed = readiness.send_if_modified(|old| {
        let changed = *old != now;
        *old = now;
        changed
    });
    if changed {
        for service in SERVICES {
            health.set_service_status(service, status).await;
        }
        tracing::info!(readiness = ?*readiness.borrow(), "readiness changed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Standing;
    use crate::fleet::tests::{member, ready, view};

    #[tokio::test]
    async fn ready_is_a_model_with_a_worker() {
        let members = || vec![member("w1", Standing::Serving, vec![ready("m", "d")])];
        assert_ne!(readiness(&Fleet::new(None, members())), Readiness::Ready);
        assert_ne!(readiness(&Fleet::new(Some(&view(&[]).aliases), members())), Readiness::Ready);
        assert_eq!(
            readiness(&Fleet::new(Some(&view(&[("m", "d", 1)]).aliases), members())),
            Readiness::Ready
        );
    }

    #[tokio::test]
    async fn from_leaving_on_nothing_is_served() {
        let fleet = Fleet::new(
            Some(&view(&[("m", "d", 1)]).aliases),
            vec![member("w1", Standing::Serving, vec![ready("m", "d")])],
        );
        let (_fleet, fleet) = watch::channel(Arc::new(fleet));
        let (health, _server) = tonic_health::server::health_reporter();
        let (told, mut heard) = watch::channel(Readiness::NotReady(String::new()));
        let leaving = CancellationToken::new();
        let leaves = async {
            heard.wait_for(|readiness| *readiness == Readiness::Ready).await.unwrap();
            leaving.cancel();
        };
        tokio::join!(tell(fleet, health, told, leaving.clone()), leaves);
        assert_eq!(*heard.borrow(), Readiness::NotReady("leaving".to_owned()));
    }
}
