//! Each bad request gets its code and the name of the field, and the calls beside it succeed.

use bytes::Bytes;
use gateway::config::Serving;
use proto::v1;
use tonic::{Code, Status};

use crate::support::gateway::serving;
use crate::support::raw::Raw;
use crate::support::worker::POISON;
use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, field, rerank, texts};

#[track_caller]
fn check(status: &Status, code: Code, named: Option<&str>) {
    assert_eq!((status.code(), field(status).as_deref()), (code, named), "{status:?}");
    assert!(!status.message().is_empty());
}

#[tokio::test]
async fn each_bad_embed_request_is_refused_and_its_neighbours_are_not() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let embeddings = gateway.embeddings().await;
    let base = || embed(texts(4, 3));
    let with = |text: &str| {
        let mut request = base();
        request.inputs[2] = text.to_owned();
        request
    };
    let cases = [
        (v1::EmbedRequest { inputs: Vec::new(), ..base() }, "inputs"),
        (with(""), "inputs[2]"),
        (with("\u{1}\u{2}\n"), "inputs[2]"),
        (with(&"long ".repeat(2_000_000)), "inputs[2]"),
        (v1::EmbedRequest { inputs: texts(4097, 3), ..base() }, "inputs"),
        (v1::EmbedRequest { model: String::new(), ..base() }, "model"),
        (v1::EmbedRequest { model: "mini@dead".into(), ..base() }, "model"),
        (v1::EmbedRequest { encoding: 99, ..base() }, "encoding"),
        (v1::EmbedRequest { input_type: -1, ..base() }, "input_type"),
        (v1::EmbedRequest { dimensions: Some(0), ..base() }, "dimensions"),
        (v1::EmbedRequest { dimensions: Some(5), ..base() }, "dimensions"),
        (with(POISON), "inputs[2]"),
    ];
    for (bad, named) in cases {
        let (mut one, mut other) = (embeddings.clone(), embeddings.clone());
        let (refused, answered) = tokio::join!(one.embed(bad), other.embed(base()));
        check(&refused.unwrap_err(), Code::InvalidArgument, Some(named));
        assert_vectors(&answered.unwrap().into_inner(), &digest('a'), &base().inputs);
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_position_is_the_callers_whichever_shard_it_is_in() {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    let mut inputs = texts(3000, 30);
    inputs[2345] = POISON.to_owned();
    let status = gateway.embeddings().await.embed(embed(inputs)).await.unwrap_err();
    check(&status, Code::InvalidArgument, Some("inputs[2345]"));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn each_bad_rerank_request_is_refused() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let mut reranking = gateway.reranking().await;
    let base = || rerank(texts(2, 3));
    for (bad, named) in [
        (v1::RerankRequest { query: " ".into(), ..base() }, "query"),
        (v1::RerankRequest { documents: Vec::new(), ..base() }, "documents"),
        (v1::RerankRequest { documents: vec!["a".into(), String::new()], ..base() }, "documents[1]"),
        (v1::RerankRequest { top_n: Some(0), ..base() }, "top_n"),
        (v1::RerankRequest { score_form: v1::ScoreForm::Sigmoid.into(), ..base() }, "score_form"),
    ] {
        check(&reranking.rerank(bad).await.unwrap_err(), Code::InvalidArgument, Some(named));
    }
    for good in [vec!["alone".to_owned()], vec!["twice".to_owned(); 2]] {
        let answer = reranking.rerank(rerank(good.clone())).await.unwrap().into_inner();
        assert_eq!(answer.rankings.len(), good.len());
    }
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn an_unknown_model_is_not_found() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let request = v1::EmbedRequest { model: "maxi".into(), ..embed(texts(1, 3)) };
    let status = gateway.embeddings().await.embed(request).await.unwrap_err();
    check(&status, Code::NotFound, None);
    assert!(status.message().contains("maxi"));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn what_is_no_message_is_the_callers_to_repair() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let serving = Serving { max_message_bytes: 1 << 20, ..serving() };
    let gateway = Gateway::start_with(&[&worker], serving).await;
    let caller = Raw::connect(gateway.address).await;
    let path = "/beige.v1.Embeddings/Embed";

    let not_utf8 = b"\x0a\x02\xff\xfe";
    let status = caller.call(path, &[], not_utf8).await.unwrap();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("model"), "it names the field: {status:?}");

    for garbage in [&b"\xff\xff\xff\xff"[..], &[0x0a, 0x7f, 0x00]] {
        let status = caller.call(path, &[], garbage).await.unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    let large = caller.embed(&[], vec!["x".repeat(2 << 20)]).await.unwrap();
    assert_eq!(large.code(), Code::InvalidArgument, "{large:?}");
    assert!(large.message().contains("1048576"), "it names the limit: {large:?}");
    let nothing = caller.send(path, &[], Bytes::new()).await.unwrap();
    assert_eq!(nothing.code(), Code::InvalidArgument, "{nothing:?}");
    let elsewhere = caller.call("/beige.v1.Embeddings/Erase", &[], b"").await.unwrap();
    assert_eq!(elsewhere.code(), Code::Unimplemented);

    let fine = caller.embed(&[], texts(1, 3)).await.unwrap();
    assert_eq!(fine.code(), Code::Ok, "the same connection goes on");
    gateway.end().await.unwrap();
}
