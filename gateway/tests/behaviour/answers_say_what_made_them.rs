//! Every answer carries its provenance and its cost, as fields and as metadata.

use proto::v1;
use proto::v1::tokens_client::TokensClient;
use tonic::metadata::MetadataMap;

use crate::support::{DIMENSIONS, FakeWorker, Gateway, digest, embed, rerank, texts};

#[track_caller]
fn assert_metadata(metadata: &MetadataMap, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(metadata.get(*key).and_then(|found| found.to_str().ok()), Some(*value), "{key}");
    }
}

fn provenance(dimensions: u32) -> v1::Provenance {
    v1::Provenance {
        model: "mini".into(),
        digest: digest('a'),
        epoch: 1,
        index_space: "space".into(),
        dimensions,
    }
}

#[tokio::test]
async fn fields_and_metadata_say_the_same() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;

    let answer = gateway.embeddings().await.embed(embed(vec!["eight ch".into(); 3])).await.unwrap();
    let (digest, dimensions) = (digest('a'), DIMENSIONS.to_string());
    let expected = [
        ("beige-model", "mini"),
        ("beige-digest", &digest),
        ("beige-epoch", "1"),
        ("beige-index-space", "space"),
        ("beige-dimensions", &dimensions),
        ("beige-tokens", "12"),
    ];
    assert_metadata(answer.metadata(), &expected);
    let answer = answer.into_inner();
    assert_eq!(answer.provenance, Some(provenance(DIMENSIONS)));
    assert_eq!(answer.usage, Some(v1::Usage { tokens: 12 }));
    assert_eq!(answer.input_tokens, [4, 4, 4]);

    let answer = gateway.reranking().await.rerank(rerank(texts(5, 3))).await.unwrap();
    assert_metadata(answer.metadata(), &[("beige-dimensions", "0"), ("beige-tokens", "5")]);
    assert_eq!(answer.into_inner().provenance, Some(provenance(0)));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn tokens_are_asked_of_one_worker() {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    let mut tokens = TokensClient::new(gateway.connect().await);
    let inputs = vec!["one".to_owned(), String::new()];
    let request = v1::CountRequest { model: "mini".into(), inputs, without_special_tokens: false };
    let answer = tokens.count(request).await.unwrap();
    assert_metadata(answer.metadata(), &[("beige-model", "mini"), ("beige-digest", &digest('a'))]);
    assert_eq!(answer.into_inner().counts, [3, 0]);

    let request =
        v1::TokenizeRequest { model: "mini".into(), inputs: texts(3, 3), without_special_tokens: true };
    let answer = tokens.tokenize(request).await.unwrap().into_inner();
    assert_eq!((answer.sequences.len(), answer.provenance), (3, Some(provenance(0))));
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_can_be_asked_for_and_insisted_on() {
    let (a, b) = (digest('a'), digest('b'));
    let worker = FakeWorker::start("w1", &[("mini", &a), ("mini", &b)]);
    let gateway = Gateway::start(&[&worker]).await;
    let mut embeddings = gateway.embeddings().await;
    let older = v1::EmbedRequest { model: format!("mini@{b}"), ..embed(texts(1, 3)) };
    let answer = embeddings.embed(older).await.unwrap().into_inner();
    crate::support::assert_vectors(&answer, &b, &texts(1, 3));

    let require = |what| Some(v1::Require { what: Some(what), min_epoch: 0 });
    let other = v1::EmbedRequest { require: require(v1::require::What::Digest(b)), ..embed(texts(1, 3)) };
    assert_eq!(embeddings.embed(other).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    let space = v1::require::What::IndexSpace("another".into());
    let other = v1::EmbedRequest { require: require(space), ..embed(texts(1, 3)) };
    assert_eq!(embeddings.embed(other).await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    gateway.end().await.unwrap();
}
