//! Puts the parts together: sockets, pool, services, and their end.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Etcd, Gateway};
use proto::v1;
use store::Store;
use telemetry::admin::{self, Readiness};
use telemetry::prometheus::registry::Registry;
use tls::{Door, Refusals};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic_health::pb::health_server::{Health, HealthServer};
use tower::layer::util::{Identity, Stack};

use crate::admit::Ledger;
use crate::call::Dispatcher;
use crate::config::Serving;
use crate::control::Control;
use crate::drain::{Arrivals, Ending, Steps};
use crate::edge::{self, Edge, EdgeLayer};
use crate::fleet::Fleet;
use crate::gauges::Gauges;
use crate::guard::Guard;
use crate::metrics::{Metrics, Readings};
use crate::outlier;
use crate::pool::{self, Gossip, Sources};
use crate::presence;
use crate::service::Service;
use crate::standing;

/// Calls that one connection may have open. A caller with more to ask waits or opens another connection.
const OPEN_CALLS: u32 = 1024;
/// Calls that a caller may take back before they are looked at, or its connection is taken to be an attack: all that
/// it may have open.
const TAKEN_BACK: usize = OPEN_CALLS as usize;
/// Calls in which a caller may break the protocol, likewise.
const BROKEN: usize = 1024;
/// Bytes of the headers of a call beyond which HTTP/2 itself refuses it, before anything here could say why. The
/// [edge](crate::edge) allows a quarter of it.
const HEADER_BYTES: u32 = 4 * edge::HEADER_BYTES;
/// Room for requests on their way: of one call, and of all of a connection.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Connections are probed, so that those whose other end vanished do not stay for ever.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the tasks behind the calls take to notice that all calls are over.
const LAST_TASKS: Duration = Duration::from_secs(5);

/// What a gateway stands between.
#[derive(Debug)]
pub struct Ends {
    /// Where callers connect.
    pub public: TcpListener,
    /// Where operators connect.
    pub admin: TcpListener,
    /// Where workers are, and what names mean.
    pub sources: Sources,
    /// Where the picture of the workers is kept.
    pub fleet: watch::Sender<Arc<Fleet>>,
    /// Where it is kept what the gateway says of itself to the cluster.
    pub record: watch::Sender<Gateway>,
    /// Who is let in, and how workers are reached.
    pub guard: Guard,
    /// Where the cluster's records are.
    pub etcd: Etcd,
    /// Where checkpoints are, if anywhere.
    pub store: Option<Store>,
}

/// Why a gateway ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    /// Its sockets do not do what sockets do.
    #[error("the public socket failed")]
    Public(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Calls were still running when grace was over; they were given up.
    #[error("grace was over before the last call")]
    Late,
    /// What it would say about itself is broken.
    #[error("the descriptors for reflection cannot be read")]
    Descriptors(#[from] tonic_reflection::server::Error),
}

/// Serves until `stop`, and then until the last call is answered or grace is over.
///
/// # Errors
/// See [`Exit`].
pub async fn run(ends: Ends, serving: Serving, stop: CancellationToken) -> Result<(), Exit> {
    let Ends { public, admin, sources, fleet: picture, record, guard, etcd, store } = ends;
    let (steps, ended, tasks) = (Steps::default(), CancellationToken::new(), TaskTracker::new());
    let fleet = picture.subscribe();
    let ledger = Arc::new(Ledger::new(serving.max_queued_tokens));
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let readings = Readings { fleet: fleet.clone(), sight: sources.sight.clone(), ledger: ledger.clone() };
    registry.register_collector(Box::new(readings));
    let gauges = Gauges { fleet: fleet.clone(), views: sources.views.clone() };
    registry.register_collector(Box::new(gauges));
    let refusals = Refusals::default();
    refusals.register(registry.sub_registry_with_prefix("beige_gateway"));

    let (reporter, health) = tonic_health::server::health_reporter();
    let (told, readiness) = watch::channel(Readiness::NotReady("starting".to_owned()));
    standing::begin(&reporter).await;
    let control = Control::new((etcd, store), sources.views.clone(), serving.collection);
    let (gossip, heard) = Gossip::channel();
    tasks.spawn(pool::run(sources, heard, picture, guard.workers.clone(), ended.clone()));
    if let Some(keys) = &guard.keys {
        tasks.spawn(Arc::clone(keys).follow(ended.clone()));
    }
    tasks.spawn(outlier::watch(fleet.clone(), metrics.clone(), ended.clone()));
    tasks.spawn(standing::tell(fleet.clone(), reporter, told, steps.leaving.clone()));
    let operators = admin::serve(admin, Arc::new(registry), readiness, ended.clone());
    tasks.spawn(async move {
        if let Err(error) = operators.await {
            tracing::error!(%error, "the admin socket failed");
        }
    });

    let dispatcher = Arc::new(Dispatcher::new(serving.limits, fleet, ledger, metrics.clone(), gossip));
    tasks.spawn(presence::tell(Arc::clone(&dispatcher), record, ended.clone()));
    let service = Service::new(dispatcher, control, tasks.clone(), ended.clone(), guard.workers);
    let edge =
        Edge { metrics, default_deadline: serving.default_deadline, steps: steps.clone(), keys: guard.keys };
    let door = Door::new(public, guard.tls, refusals);
    let served = accept(door, router(service, health, edge, &serving)?, &steps, (&stop, &serving)).await;

    // All calls are over, so nothing needs the workers any more.
    steps.leaving.cancel();
    ended.cancel();
    tasks.close();
    if time::timeout(LAST_TASKS, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "tasks outlived their calls");
    }
    served
}

/// Serves `router` at `door` through all `steps`.
async fn accept(
    door: Door,
    router: Router<Stack<EdgeLayer, Identity>>,
    steps: &Steps,
    (stop, serving): (&CancellationToken, &Serving),
) -> Result<(), Exit> {
    let arrivals = Arrivals::new(door, steps.shut.clone());
    let closing = steps.closing.clone().cancelled_owned();
    let serving_calls = router.serve_with_incoming_shutdown(arrivals, closing);
    tokio::select! {
        outcome = serving_calls => outcome.map_err(|error| Exit::Public(error.into())),
        ending = steps.take(stop, serving) => match ending {
            Ending::Drained => Ok(()),
            Ending::Late => Err(Exit::Late),
        },
    }
}

fn router(
    service: Service,
    health: HealthServer<impl Health>,
    edge: Edge,
    serving: &Serving,
) -> Result<Router<Stack<EdgeLayer, Identity>>, Exit> {
    let most = serving.max_message_bytes;
    let embeddings = v1::embeddings_server::EmbeddingsServer::new(service.clone());
    let reranking = v1::reranking_server::RerankingServer::new(service.clone());
    let tokens = v1::tokens_server::TokensServer::new(service.clone());
    let models = v1::models_server::ModelsServer::new(service.clone());
    let training = v1::training_server::TrainingServer::new(service.clone());
    let cluster = v1::cluster_server::ClusterServer::new(service);
    let routes = Routes::new(embeddings.max_decoding_message_size(most))
        .add_service(reranking.max_decoding_message_size(most))
        .add_service(tokens.max_decoding_message_size(most))
        .add_service(models.max_decoding_message_size(most))
        .add_service(training.max_decoding_message_size(most))
        .add_service(cluster.max_decoding_message_size(most))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let server = Server::builder()
        .max_concurrent_streams(OPEN_CALLS)
        .http2_max_pending_accept_reset_streams(Some(TAKEN_BACK))
        .http2_max_local_error_reset_streams(Some(BROKEN))
        .http2_max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .layer(EdgeLayer(Arc::new(edge)))
        .add_routes(routes);
    Ok(server)
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
