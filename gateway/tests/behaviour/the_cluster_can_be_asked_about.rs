//! Models, workers, health, readiness and reflection: what callers and operators find out.

use proto::v1;
use proto::v1::cluster_client::ClusterClient;
use proto::v1::models_client::ModelsClient;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1 as reflection, v1alpha as old_reflection};

use crate::support::gateway::{serving, view};
use crate::support::{FakeWorker, Gateway, digest, embed, texts};

#[tokio::test]
async fn models_and_workers_are_listed() {
    let (a, b) = (digest('a'), digest('b'));
    let workers =
        [FakeWorker::start("w1", &[("mini", &a)]), FakeWorker::start("w2", &[("mini", &a), ("mini", &b)])];
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    let mut models = ModelsClient::new(gateway.connect().await);
    let listed = models.list(v1::ListModelsRequest {}).await.unwrap().into_inner().models;
    let mini = models.get(v1::GetModelRequest { name: "mini".into() }).await.unwrap().into_inner();
    assert_eq!(listed, std::slice::from_ref(&mini));
    let current = mini.checkpoint.unwrap();
    assert_eq!((mini.epoch, current.digest, current.ready_workers), (1, a, 2));
    assert_eq!(current.dtypes, ["f32"]);
    assert_eq!(mini.others.iter().map(|other| &other.digest).collect::<Vec<_>>(), [&b]);
    for (name, code) in
        [("maxi", Code::NotFound), ("", Code::InvalidArgument), ("a/b", Code::InvalidArgument)]
    {
        let status = models.get(v1::GetModelRequest { name: name.into() }).await.unwrap_err();
        assert_eq!(status.code(), code, "{name:?}");
    }

    let mut cluster = ClusterClient::new(gateway.connect().await);
    let listed = cluster.list_workers(v1::ListWorkersRequest {}).await.unwrap().into_inner().workers;
    let ids: Vec<_> = listed.iter().map(|worker| (worker.id.as_str(), worker.state())).collect();
    assert_eq!(ids, [("w1", v1::WorkerState::Serving), ("w2", v1::WorkerState::Serving)]);
    assert_eq!((listed[1].models.len(), listed[1].device.as_str()), (2, "fake"));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn health_and_readiness_follow_the_workers() {
    let mut worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    worker.kill();
    let gateway = Gateway::begin(view(&[&worker], 'a', 1), serving()).await;
    let mut health = HealthClient::new(gateway.connect().await);
    let embeddings = || HealthCheckRequest { service: "beige.v1.Embeddings".into() };
    let mut changes = health.watch(embeddings()).await.unwrap().into_inner();
    while changes.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    assert!(gateway.ask("/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(gateway.ask("/livez").await.starts_with("HTTP/1.1 200"));

    worker.revive();
    while changes.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    assert!(gateway.ask("/readyz").await.starts_with("HTTP/1.1 200"));
    gateway.embeddings().await.embed(embed(texts(1, 3))).await.unwrap();
    let unheard = HealthCheckRequest { service: "no.such.Service".into() };
    assert_eq!(health.check(unheard).await.unwrap_err().code(), Code::NotFound);
    drop(changes);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn reflection_describes_the_services_in_both_versions() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let wanted = ["beige.v1.Embeddings", "beige.v1.Reranking", "beige.v1.Tokens", "grpc.health.v1.Health"];

    let list = reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = reflection::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client =
        reflection::server_reflection_client::ServerReflectionClient::new(gateway.connect().await);
    let answers = client.server_reflection_info(futures::stream::iter([request])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap();
    let reflection::server_reflection_response::MessageResponse::ListServicesResponse(listed) = answer else {
        panic!("{answer:?}");
    };
    for name in wanted {
        assert!(listed.service.iter().any(|service| service.name == name), "{name}");
    }
    assert!(!listed.service.iter().any(|service| service.name.contains("worker")), "workers are not public");

    let list = old_reflection::server_reflection_request::MessageRequest::ListServices(String::new());
    let request =
        old_reflection::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client =
        old_reflection::server_reflection_client::ServerReflectionClient::new(gateway.connect().await);
    let answers = client.server_reflection_info(futures::stream::iter([request])).await.unwrap();
    assert!(answers.into_inner().message().await.unwrap().is_some());
    gateway.end().await.unwrap();
}
