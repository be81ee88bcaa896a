//! Where there are API keys, a call needs one that allows it, and nothing of its secret is left anywhere.

use std::fs;
use std::time::Duration;

use gateway::fleet::Fleet;
use proto::v1::models_client::ModelsClient;
use proto::v1::{EmbedResponse, ListModelsRequest};
use tokio::time;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::support::gateway::{serving, view};
use crate::support::keys::{Key, KeyFile, signed};
use crate::support::log::Log;
use crate::support::raw::Raw;
use crate::support::{FakeWorker, Gateway, digest, embed, texts};

const EMBEDS: &str = r#"rights = ["embed"]"#;

async fn guarded(worker: &FakeWorker, keys: &KeyFile) -> Gateway {
    let gateway = Gateway::guarded(view(&[worker], 'a', 1), serving(), keys.guard()).await;
    gateway.until(Fleet::serves).await;
    gateway
}

async fn ask<T>(gateway: &Gateway, request: Request<T>) -> Result<Response<EmbedResponse>, Status> {
    let (metadata, extensions, _) = request.into_parts();
    let request = Request::from_parts(metadata, extensions, embed(texts(1, 3)));
    gateway.embeddings().await.embed(request).await
}

#[track_caller]
fn refused(status: &Status, code: Code, reason: &str) {
    let info = status.get_details_error_info().unwrap();
    assert_eq!((status.code(), &*info.reason, &*info.domain), (code, reason, "beige"), "{status:?}");
}

#[tokio::test]
async fn who_is_refused_is_told_why_and_counted_and_no_secret_is_logged() {
    let log = Log::keep();
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let (search, ops) = (Key::new("search", EMBEDS), Key::new("ops", r#"rights = ["models.read"]"#));
    let old = Key::new("old", "rights = [\"embed\"]\nexpires = 2020-01-01T00:00:00Z");
    let stranger = Key::new("stranger", EMBEDS);
    let gateway = guarded(&worker, &KeyFile::of(&[&search, &ops, &old])).await;

    ask(&gateway, search.sign(())).await.unwrap();
    let anonymous = ask(&gateway, Request::new(())).await.unwrap_err();
    refused(&anonymous, Code::Unauthenticated, "KEY_MISSING");
    let malformed = ask(&gateway, signed((), &search.secret)).await.unwrap_err();
    refused(&malformed, Code::Unauthenticated, "KEY_MALFORMED");
    let unknown = ask(&gateway, stranger.sign(())).await.unwrap_err();
    refused(&unknown, Code::Unauthenticated, "KEY_UNKNOWN");
    let expired = ask(&gateway, old.sign(())).await.unwrap_err();
    refused(&expired, Code::Unauthenticated, "KEY_EXPIRED");
    let denied = ask(&gateway, ops.sign(())).await.unwrap_err();
    refused(&denied, Code::PermissionDenied, "RIGHT_MISSING");
    assert_eq!(denied.get_details_error_info().unwrap().metadata["right"], "embed");
    let mut models = ModelsClient::new(gateway.connect().await);
    models.list(ops.sign(ListModelsRequest {})).await.unwrap();
    let denied = models.list(search.sign(ListModelsRequest {})).await.unwrap_err();
    refused(&denied, Code::PermissionDenied, "RIGHT_MISSING");

    for (reason, count) in
        [("missing", 1.0), ("malformed", 1.0), ("unknown", 1.0), ("expired", 1.0), ("denied", 2.0)]
    {
        let name = format!(r#"beige_gateway_unauthorized_total{{reason="{reason}"}}"#);
        gateway.until_metric(&name, count).await;
    }
    gateway.until_metric(r#"beige_gateway_key_requests_total{key="search",code="OK"}"#, 1.0).await;
    let seen = worker.take_seen();
    assert_eq!(seen.len(), 1, "who is refused costs no worker anything");
    assert_eq!(seen[0].origin.caller, "search", "work is shared fairly between keys");

    gateway.end().await.unwrap();
    let logged = log.text();
    assert!(
        logged.contains("a call was not let in") && logged.contains("KEY_EXPIRED"),
        "refusals are logged"
    );
    for key in [&search, &ops, &old, &stranger] {
        assert!(!logged.contains(&key.secret), "a secret was logged");
    }
}

#[tokio::test]
async fn health_needs_no_key_and_inventions_do() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let key = Key::new("search", EMBEDS);
    let gateway = guarded(&worker, &KeyFile::of(&[&key])).await;
    let all = HealthCheckRequest { service: String::new() };
    HealthClient::new(gateway.connect().await).check(all).await.unwrap();

    let caller = Raw::connect(gateway.address).await;
    let invented = "/beige.v1.Embeddings/Delete";
    assert_eq!(caller.call(invented, &[], b"").await.unwrap().code(), Code::Unauthenticated);
    let bearer = format!("Bearer {}", key.secret);
    let headers = [("authorization", bearer.as_str())];
    assert_eq!(caller.call(invented, &headers, b"").await.unwrap().code(), Code::Unimplemented);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_stream_needs_a_key_as_well() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let key = Key::new("search", EMBEDS);
    let gateway = guarded(&worker, &KeyFile::of(&[&key])).await;
    let mut embeddings = gateway.embeddings().await;
    let requests = || futures::stream::iter([embed(texts(2, 3))]);
    let status = embeddings.embed_stream(requests()).await.unwrap_err();
    refused(&status, Code::Unauthenticated, "KEY_MISSING");
    let mut answers = embeddings.embed_stream(key.sign(requests())).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    drop(answers);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn keys_come_and_go_without_a_restart() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let (first, second) = (Key::new("first", EMBEDS), Key::new("second", EMBEDS));
    let file = KeyFile::of(&[&first]);
    let gateway = guarded(&worker, &file).await;
    ask(&gateway, first.sign(())).await.unwrap();
    ask(&gateway, second.sign(())).await.unwrap_err();

    fs::write(file.path(), "half a fi").unwrap();
    time::sleep(Duration::from_secs(2)).await;
    ask(&gateway, first.sign(())).await.expect("a file that cannot be read changes nothing");

    file.write(&[&second]);
    let changed = async {
        while ask(&gateway, second.sign(())).await.is_err() {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(Duration::from_secs(30), changed).await.expect("it never saw the new file");
    let status = ask(&gateway, first.sign(())).await.unwrap_err();
    refused(&status, Code::Unauthenticated, "KEY_UNKNOWN");
    gateway.end().await.unwrap();
}
