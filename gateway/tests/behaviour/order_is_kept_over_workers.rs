//! A large call is split over the workers, and its answer is as if one had done it.

use std::time::Duration;

use proto::v1;

use crate::support::{FakeWorker, Gateway, assert_vectors, digest, embed, rerank, score, texts};

#[tokio::test]
async fn vectors_come_back_in_the_order_of_the_inputs() {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    workers[0].set(|mood| mood.takes = Duration::from_millis(20));
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;

    let inputs = texts(3000, 30);
    let answer = gateway.embeddings().await.embed(embed(inputs.clone())).await.unwrap().into_inner();
    assert_vectors(&answer, &digest('a'), &inputs);

    let seen = workers.each_ref().map(FakeWorker::take_seen);
    assert!(seen.iter().all(|shards| !shards.is_empty()), "both workers had a part of it");
    let mut shards: Vec<_> =
        seen.iter().flatten().map(|shard| (shard.origin.first_input as usize, shard.inputs)).collect();
    shards.sort_unstable();
    let end = shards.iter().fold(0, |next, &(first, inputs)| {
        assert_eq!(first, next, "each input was sent once, under its own position");
        first + inputs
    });
    assert_eq!(end, inputs.len());
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn documents_are_ranked_over_all_workers() {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;

    let mut documents = texts(2000, 30);
    documents[7] = documents[3].clone();
    let mut expected: Vec<_> = documents.iter().map(|document| score(document)).enumerate().collect();
    expected.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut reranking = gateway.reranking().await;
    let answer = reranking.rerank(rerank(documents.clone())).await.unwrap().into_inner();
    let found: Vec<_> =
        answer.rankings.iter().map(|ranking| (ranking.index as usize, ranking.score)).collect();
    assert_eq!(found, expected);
    assert_eq!((answer.scoring(), answer.score_form()), (v1::Scoring::Dense, v1::ScoreForm::Raw));

    let best = v1::RerankRequest { top_n: Some(3), ..rerank(documents) };
    let best = reranking.rerank(best).await.unwrap().into_inner();
    assert_eq!(best.rankings, answer.rankings[..3]);
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn a_small_call_goes_to_one_worker() {
    let workers = ["w1", "w2"].map(|id| FakeWorker::start(id, &[("mini", &digest('a'))]));
    let gateway = Gateway::start(&[&workers[0], &workers[1]]).await;
    gateway.embeddings().await.embed(embed(texts(20, 3))).await.unwrap();
    let shards: usize = workers.iter().map(|worker| worker.take_seen().len()).sum();
    assert_eq!(shards, 1);
    gateway.end().await.unwrap();
}
