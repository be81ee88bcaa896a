//! Bad input gets its code and a sentence that names the field, and the calls beside it succeed.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;
use std::time::Duration;

use prost::bytes::{Buf as _, BufMut as _};
use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::reranking_client::RerankingClient;
use proto::v1::{EmbedRequest, Require, RerankRequest, ScoreForm, Truncation, require};
use tests::history::{Book, Callers, Load};
use tests::{Cluster, PATIENCE, checkpoint};
use tokio::time;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

const MODEL: &str = "bert-cls";

fn texts(inputs: &[&str]) -> EmbedRequest {
    let inputs = inputs.iter().map(|&text| text.to_owned()).collect();
    EmbedRequest { model: MODEL.to_owned(), inputs, ..EmbedRequest::default() }
}

fn documents(documents: &[&str]) -> RerankRequest {
    RerankRequest {
        model: MODEL.to_owned(),
        query: "Who painted the door?".to_owned(),
        documents: documents.iter().map(|&text| text.to_owned()).collect(),
        ..RerankRequest::default()
    }
}

#[track_caller]
fn check(what: &str, status: &Status, code: Code, field: &str) {
    assert_eq!(status.code(), code, "{what}: {status:?}");
    assert!(!status.message().is_empty() && status.message().len() < 500, "{what}: {}", status.message());
    assert!(status.message().contains(field), "{what}: no {field:?} in {:?}", status.message());
    if code == Code::InvalidArgument {
        let details = status.get_details_bad_request();
        let named =
            details.iter().flat_map(|bad| &bad.field_violations).any(|violation| violation.field == field);
        assert!(named, "{what}: details do not name {field}: {details:?}");
    }
}

/// Requests of the wrong shape: what is wrong, and the field that is named.
fn malformed() -> Vec<(&'static str, EmbedRequest, &'static str)> {
    let one = || texts(&["moss"]);
    vec![
        ("no model", EmbedRequest { model: String::new(), ..one() }, "model"),
        ("an unknown input type", EmbedRequest { input_type: 77, ..one() }, "input_type"),
        ("an unknown encoding", EmbedRequest { encoding: -1, ..one() }, "encoding"),
        ("an unknown output", EmbedRequest { outputs: vec![9], ..one() }, "outputs[0]"),
        ("an unknown truncation", EmbedRequest { truncation: 4, ..one() }, "truncation"),
        ("an unknown priority", EmbedRequest { priority: 3, ..one() }, "priority"),
        ("no dimensions", EmbedRequest { dimensions: Some(0), ..one() }, "dimensions"),
        ("too many dimensions", EmbedRequest { dimensions: Some(4096), ..one() }, "dimensions"),
    ]
}

/// Requests whose texts cannot be taken.
fn unreadable() -> Vec<(&'static str, EmbedRequest, &'static str)> {
    vec![
        ("an empty list", texts(&[]), "inputs"),
        ("an empty string", texts(&["moss", ""]), "inputs[1]"),
        ("only control characters", texts(&["\u{1}\u{7}\n"]), "inputs[0]"),
        ("ten megabytes", texts(&["moss", &"a ".repeat(5 << 20)]), "inputs[1]"),
        ("beyond the window", texts(&["moss", "moss", &"moss ".repeat(200)]), "inputs[2]"),
        ("too many inputs", texts(&vec!["moss"; 5000]), "inputs"),
    ]
}

async fn check_embeddings(client: &EmbeddingsClient<Channel>) {
    for (what, request, field) in malformed().into_iter().chain(unreadable()) {
        check(what, &client.clone().embed(request).await.unwrap_err(), Code::InvalidArgument, field);
    }
    let unknown = EmbedRequest { model: "nobody".to_owned(), ..texts(&["moss"]) };
    check("an unknown model", &client.clone().embed(unknown).await.unwrap_err(), Code::NotFound, "nobody");
    let other = Require { what: Some(require::What::Digest("0".repeat(64))), min_epoch: 0 };
    let other = EmbedRequest { require: Some(other), ..texts(&["moss"]) };
    let refusal = client.clone().embed(other).await.unwrap_err();
    check("another checkpoint", &refusal, Code::FailedPrecondition, "required");
}

async fn check_reranking(client: &RerankingClient<Channel>) {
    let refused = [
        ("no documents", documents(&[]), "documents"),
        ("an empty document", documents(&["moss", "fern", " "]), "documents[2]"),
        ("no query", RerankRequest { query: String::new(), ..documents(&["moss"]) }, "query"),
        ("none wanted", RerankRequest { top_n: Some(0), ..documents(&["moss"]) }, "top_n"),
        (
            "a sigmoid of a cosine",
            RerankRequest { score_form: ScoreForm::Sigmoid.into(), ..documents(&["moss"]) },
            "score_form",
        ),
    ];
    for (what, request, field) in refused {
        check(what, &client.clone().rerank(request).await.unwrap_err(), Code::InvalidArgument, field);
    }
    let one = client.clone().rerank(documents(&["moss"])).await.unwrap().into_inner();
    assert_eq!(one.rankings.len(), 1);
    let twice =
        client.clone().rerank(documents(&["moss", "fern", "moss", "moss"])).await.unwrap().into_inner();
    let of_moss: Vec<u32> =
        twice.rankings.iter().map(|ranking| ranking.index).filter(|&index| index != 1).collect();
    assert_eq!(of_moss, [0, 2, 3], "duplicates are scored alike, and keep their order");
}

/// A deadline that has passed is tested beside the gateway: this client would not let one out.
async fn check_deadlines(client: &EmbeddingsClient<Channel>) {
    let mut request = Request::new(texts(&["moss"]));
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let status = client.clone().embed(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("grpc-timeout"), "{}", status.message());
}

/// Sends the bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

async fn send(channel: &Channel, bytes: Vec<u8>) -> Status {
    let mut client = tonic::client::Grpc::new(channel.clone()).max_encoding_message_size(usize::MAX);
    client.ready().await.unwrap();
    let path = "/beige.v1.Embeddings/Embed".parse().unwrap();
    client.unary(Request::new(bytes), path, Raw).await.unwrap_err()
}

async fn check_bytes(channel: &Channel) {
    // Field 2, two bytes that are no UTF-8.
    let status = send(channel, vec![0x12, 2, 0xff, 0xfe]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("inputs"), "{}", status.message());
    // A length that runs past the end.
    assert_eq!(send(channel, vec![0x12, 200]).await.code(), Code::InvalidArgument);
    // A message over the limit.
    let status = send(channel, vec![0; 40 << 20]).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("33554432"), "{}", status.message());
}

async fn check_goners(cluster: &Cluster, client: &EmbeddingsClient<Channel>) {
    let large = EmbedRequest {
        inputs: vec!["moss and fern and stone ".repeat(10); 4000],
        truncation: Truncation::End.into(),
        ..texts(&[])
    };
    for _ in 0..5 {
        let mut client = client.clone();
        let _gone = time::timeout(Duration::from_millis(30), client.embed(large.clone())).await;
    }
    let idle = async {
        while cluster.fleet().await.iter().any(|worker| worker.queued_tokens > 5_000) {
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    time::timeout(PATIENCE, idle).await.expect("what nobody waits for is dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named_and_its_neighbours_succeed() {
    let mut cluster = Cluster::start(2, &[checkpoint(MODEL)]).await;
    let book = Arc::new(Book::of(&[checkpoint(MODEL).into()]).await);
    let load = Load { model: MODEL.to_owned(), callers: 4, rest: Duration::ZERO, most: 8 };
    let callers = Callers::start(&book, &load, &cluster.gateways);
    let embeddings = EmbeddingsClient::new(cluster.channel()).max_encoding_message_size(64 << 20);
    let reranking = RerankingClient::new(cluster.channel());
    for _ in 0..2 {
        check_embeddings(&embeddings).await;
        check_reranking(&reranking).await;
        check_deadlines(&embeddings).await;
        check_bytes(&cluster.channel()).await;
    }
    check_goners(&cluster, &embeddings).await;
    callers.finish().await.assert_flawless();
    assert!(cluster.gateways[0].is_running() && cluster.workers.iter_mut().all(tests::Process::is_running));
}
