use proto::v1;
use proto::worker::v1::{EmbedShard, RerankShard};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::support::{EMBEDDER, Options, WINDOW, embed, origin, request, shard, start};

#[track_caller]
fn check(status: &Status, field: &str, part: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let violation = status.get_details_bad_request().unwrap().field_violations.remove(0);
    assert_eq!(violation.field, field);
    assert!(violation.description.contains(part), "{}", violation.description);
    assert!(status.message().starts_with(field), "{}", status.message());
}

#[tokio::test]
async fn a_long_text_is_named_by_its_place_in_the_callers_request() {
    let mut stand = start(Options::default()).await;
    let long = "w1 ".repeat(WINDOW - 1);
    let status = stand.client.embed(embed(&["w1", "w2", &long, &long])).await.unwrap_err();
    check(&status, "inputs[42]", "it has 41 tokens, and the model's window 40");
    for truncation in [v1::Truncation::End, v1::Truncation::Start] {
        let asked = v1::EmbedRequest { truncation: truncation.into(), ..request(&[&long]) };
        let result = stand.client.embed(shard(asked)).await.unwrap().into_inner();
        assert_eq!(result.input_tokens, [40]);
    }
    let rerank = |query: &str, document: &str| {
        let (query, documents) = (query.to_owned(), vec!["w1".to_owned(), document.to_owned()]);
        let request = v1::RerankRequest { query, documents, ..v1::RerankRequest::default() };
        RerankShard { origin: Some(origin(EMBEDDER)), request: Some(request) }
    };
    check(&stand.client.rerank(rerank(&long, "w1")).await.unwrap_err(), "query", "42 tokens");
    check(&stand.client.rerank(rerank("w1", &long)).await.unwrap_err(), "documents[41]", "41 tokens");
    assert_eq!(stand.load.waiting(), 0);
}

#[tokio::test]
async fn choices_that_are_none_are_refused() {
    let mut stand = start(Options::default()).await;
    let cases = [
        (v1::EmbedRequest { encoding: 77, ..request(&["w1"]) }, "encoding", "77"),
        (v1::EmbedRequest { dimensions: Some(0), ..request(&["w1"]) }, "dimensions", "from 1 to 4"),
        (v1::EmbedRequest { dimensions: Some(5), ..request(&["w1"]) }, "dimensions", "from 1 to 4"),
        (request(&[]), "inputs", "missing"),
    ];
    for (asked, field, part) in cases {
        check(&stand.client.embed(shard(asked)).await.unwrap_err(), field, part);
    }
    let request = v1::RerankRequest {
        documents: vec!["w1".into()],
        score_form: v1::ScoreForm::Sigmoid.into(),
        ..v1::RerankRequest::default()
    };
    let asked = RerankShard { origin: Some(origin(EMBEDDER)), request: Some(request) };
    check(&stand.client.rerank(asked).await.unwrap_err(), "score_form", "dot products");
}

#[tokio::test]
async fn a_timeout_that_is_none_is_refused() {
    let mut stand = start(Options::default()).await;
    let mut asked = Request::new(embed(&["w1"]));
    asked.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    check(&stand.client.embed(asked).await.unwrap_err(), "grpc-timeout", "one to eight digits");
}

#[tokio::test]
async fn a_checkpoint_that_is_not_here_is_refused_before_any_work() {
    let mut stand = start(Options::default()).await;
    stand.control.hold();
    let asked = EmbedShard { origin: Some(origin("another")), request: Some(request(&["w1"])) };
    let status = stand.client.embed(asked).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let info = status.get_details_error_info().unwrap();
    assert_eq!((&*info.reason, &*info.domain), ("CHECKPOINT_NOT_LOADED", "beige"));
}
