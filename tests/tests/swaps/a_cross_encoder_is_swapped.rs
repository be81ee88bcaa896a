//! What scores pairs is swapped as what embeds is, and compared by how it orders documents.

use std::path::Path;

use proto::v1::reranking_client::RerankingClient;
use proto::v1::{PublishBegin, RerankRequest, SwapPlan, SwapState};
use tests::history::Digest;
use tests::{Cluster, Distance, Golden, Operator, PATIENCE, Plan, checkpoint, variant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time;
use tonic::transport::Channel;

use crate::support::{plan, shadowed};

const MODEL: &str = "bert-cross";

/// What arithmetic in another order may change; see `tests/golden/README.md`.
const TOLERANCE: f32 = 1e-5;

/// Documents of a call.
const DOCUMENTS: usize = 8;

/// The checkpoint that ranked the documents, and their scores, in the order of the documents.
async fn rank(channel: &Channel, model: &str, texts: &[String]) -> (Digest, Vec<f32>) {
    let (query, documents) = (texts[0].clone(), texts[1..].to_vec());
    let request = RerankRequest { model: model.to_owned(), query, documents, ..RerankRequest::default() };
    let answer = RerankingClient::new(channel.clone()).rerank(request).await.unwrap().into_inner();
    let mut rankings = answer.rankings;
    rankings.sort_by_key(|ranking| ranking.index);
    let scores = rankings.into_iter().map(|ranking| ranking.score).collect();
    (answer.provenance.unwrap().digest.into(), scores)
}

/// Ranks until `stop`; all that was answered.
async fn caller(
    channel: Channel,
    texts: Vec<String>,
    stop: watch::Receiver<bool>,
) -> Vec<(Digest, Vec<f32>)> {
    let mut answers = Vec::new();
    while !*stop.borrow() {
        answers.push(rank(&channel, MODEL, &texts).await);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cross_encoder_that_orders_otherwise_is_swapped_and_said_to() {
    let dir = tempfile::tempdir().unwrap();
    let other = variant(Path::new(&checkpoint(MODEL)), 1, Distance::Stranger, dir.path());
    let cluster = Cluster::of(Plan { models: vec![checkpoint(MODEL)], store: true, ..plan(2) }).await;
    let mut operator = Operator::new(&cluster.gateways[0], MODEL);
    let version = operator.publish(&other, PublishBegin::default()).await.unwrap();
    let new = Digest::from(version.checkpoint.unwrap().digest);
    let texts = Golden::read("bert-cls").readable().texts[..=DOCUMENTS].to_vec();

    let (stop, stopped) = watch::channel(false);
    let mut callers = JoinSet::new();
    for gateway in cluster.gateways.iter().cycle().take(4) {
        callers.spawn(caller(tests::channel(gateway), texts.clone(), stopped.clone()));
    }
    // Until there is enough to compare.
    let trial = SwapPlan {
        shadow_per_mille: 1_000,
        shadow_seconds: Some(3_600),
        new_space: true,
        ..SwapPlan::default()
    };
    operator.promote(&new, trial).await.unwrap();
    cluster.until(|view| shadowed(view, MODEL) > 20).await;
    operator.promote(&new, SwapPlan::default()).await.unwrap();
    let swap = operator.until(|swap| swap.state() == SwapState::Committed).await;
    let heard = async { while rank(&cluster.channel(), MODEL, &texts).await.0 != new {} };
    time::timeout(PATIENCE, heard).await.expect("the first gateway hears of it");
    stop.send_replace(true);
    let answers: Vec<_> = callers.join_all().await.into_iter().flatten().collect();

    let comparison = swap.comparison.as_ref().unwrap();
    assert!(comparison.shadowed_calls > 20, "{comparison:?}");
    let mean = comparison.rank_correlation_mean;
    assert!((-1.0..0.999).contains(&mean), "{comparison:?}");
    // Whoever was named is who answered.
    let old = Digest::from(swap.from.clone());
    for digest in [&old, &new] {
        let named = format!("{MODEL}@{}", digest.as_str());
        let (_, scores) = rank(&cluster.channel(), &named, &texts).await;
        let theirs: Vec<_> = answers.iter().filter(|(by, _)| by == digest).collect();
        let is_it = |found: &[f32]| scores.iter().zip(found).all(|(a, b)| (a - b).abs() < TOLERANCE);
        assert!(theirs.iter().all(|(_, found)| is_it(found)), "answers that {digest:?} did not give");
        assert!(digest == &new || !theirs.is_empty(), "nobody was answered by the old one");
    }
    assert!(answers.iter().all(|(by, _)| *by == old || *by == new), "somebody else answered");
}
