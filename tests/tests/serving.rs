//! A cluster embeds and reranks: every text gets its own vector, whichever worker made it.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::models_client::ModelsClient;
use proto::v1::reranking_client::RerankingClient;
use proto::v1::{EmbedRequest, GetModelRequest, ModelKind, RerankRequest, Scoring, Truncation};
use tests::{Cluster, Golden, PATIENCE, checkpoint, floats, minilm};
use tokio::time;
use tokio_stream::StreamExt as _;

const TEXTS: usize = 10_000;
const TEXTS_PER_CALL: usize = 1_000;

fn request(model: &str, inputs: Vec<String>) -> EmbedRequest {
    EmbedRequest {
        model: model.to_owned(),
        inputs,
        truncation: Truncation::End.into(),
        ..EmbedRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_texts_come_back_in_order_through_both_workers() {
    let cluster = Cluster::start(2, &[checkpoint("bert-cls")]).await;
    let golden = Golden::read("bert-cls").readable();
    let mut client = EmbeddingsClient::new(cluster.channel()).max_decoding_message_size(64 << 20);
    let (mut at, mut tokens) = (0, 0);
    while at < TEXTS {
        let wanted: Vec<usize> = (at..at + TEXTS_PER_CALL).map(|i| i % golden.texts.len()).collect();
        let inputs = wanted.iter().map(|&i| golden.texts[i].clone()).collect();
        let answer = client.embed(request("bert-cls", inputs)).await.unwrap();
        let header = |name: &str| answer.metadata().get(name).unwrap().to_str().unwrap().to_owned();
        let (digest, spent) = (header("beige-digest"), header("beige-tokens"));
        let answer = answer.into_inner();
        let (provenance, dense) = (answer.provenance.unwrap(), answer.dense.unwrap());
        assert_eq!(
            (provenance.digest, provenance.model, provenance.epoch),
            (digest, "bert-cls".to_owned(), 1)
        );
        let used = answer.usage.unwrap().tokens;
        assert_eq!(used, u64::from(answer.input_tokens.iter().sum::<u32>()));
        assert_eq!(used.to_string(), spent);
        let numbers = floats(&dense.data);
        let rows: Vec<_> = numbers.chunks_exact(dense.dimensions as usize).collect();
        assert_eq!(rows.len(), wanted.len());
        for (&i, row) in wanted.iter().zip(rows) {
            assert!(golden.is_vector_of(i, row), "text {i} has another vector");
        }
        at += TEXTS_PER_CALL;
        tokens += used;
    }
    // Workers report what they have done four times a second.
    let done = async {
        loop {
            let done: Vec<u64> = cluster.fleet().await.iter().map(|worker| worker.total_tokens).collect();
            if done.iter().sum::<u64>() >= tokens {
                return done;
            }
            time::sleep(Duration::from_millis(50)).await;
        }
    };
    let done = time::timeout(PATIENCE, done).await.expect("every token is accounted for");
    // Shares follow measured speed, which is uneven on a noisy machine; but neither is left out.
    assert!(done.iter().all(|&part| part > tokens / 20), "{done:?} of {tokens}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_models_share_the_workers() {
    let models = [checkpoint("bert-cls"), format!("reranker={}", checkpoint("bert-cross")), minilm()];
    let cluster = Cluster::start(1, &models).await;

    let golden = Golden::read("minilm").readable();
    let mut embeddings = EmbeddingsClient::new(cluster.channel());
    let answer = embeddings.embed(request("all-MiniLM-L6-v2", golden.texts[..40].to_vec())).await.unwrap();
    let dense = answer.into_inner().dense.unwrap();
    for (i, row) in floats(&dense.data).chunks_exact(384).enumerate() {
        assert!(golden.is_vector_of(i, row), "text {i}");
    }

    let mut reranking = RerankingClient::new(cluster.channel());
    let documents = ["The ferry leaves at ten.", "A knife needs care.", "The ferry leaves at ten."];
    for (model, scoring) in [("reranker", Scoring::CrossEncoder), ("all-MiniLM-L6-v2", Scoring::Dense)] {
        let request = RerankRequest {
            model: model.to_owned(),
            query: "When does the boat go?".to_owned(),
            documents: documents.map(str::to_owned).to_vec(),
            ..RerankRequest::default()
        };
        let answer = reranking.rerank(request).await.unwrap().into_inner();
        assert_eq!(answer.scoring(), scoring);
        let ranks: Vec<_> = answer.rankings.iter().map(|ranking| (ranking.index, ranking.score)).collect();
        assert!(ranks.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{ranks:?}");
        let of = |index| ranks.iter().find(|(i, _)| *i == index).unwrap().1;
        assert!((of(0) - of(2)).abs() < 1e-6, "equal documents have equal scores: {ranks:?}");
        if scoring == Scoring::Dense {
            assert_eq!(ranks[2].0, 1, "{ranks:?}");
        }
    }

    let mut catalogue = ModelsClient::new(cluster.channel());
    let model = catalogue.get(GetModelRequest { name: "reranker".to_owned() }).await.unwrap().into_inner();
    assert_eq!(model.checkpoint.unwrap().kind(), ModelKind::CrossEncoder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_in_order_by_one_checkpoint() {
    let cluster = Cluster::start(2, &[checkpoint("bert-cls")]).await;
    let golden = Golden::read("bert-cls").readable();
    let texts = golden.texts.clone();
    let requests = (0..300).map(move |i| request("bert-cls", vec![texts[i % texts.len()].clone()]));
    let mut client = EmbeddingsClient::new(cluster.channel());
    let mut answers = client.embed_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut i = 0;
    let mut digests = std::collections::BTreeSet::new();
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        assert!(
            golden.is_vector_of(i % golden.texts.len(), &floats(&answer.dense.unwrap().data)),
            "answer {i}"
        );
        digests.insert(answer.provenance.unwrap().digest);
        i += 1;
    }
    assert_eq!((i, digests.len()), (300, 1));
}
