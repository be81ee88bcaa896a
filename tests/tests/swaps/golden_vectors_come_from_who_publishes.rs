//! Who publishes a checkpoint says what another implementation makes of it: here the reference's vectors. A worker that does
//! not agree has nothing published, and workers that get the checkpoint ready are held to them.

use std::collections::HashMap;
use std::path::Path;

use proto::v1::models_client::ModelsClient;
use proto::v1::{
    GoldenSample, GoldenSource, ListVersionsRequest, PublishBegin, SwapPlan, SwapState, Version,
};
use safetensors::SafeTensors;
use tests::history::Digest;
use tests::{Cluster, Golden, Operator, Plan, checkpoint, floats, repository};
use tonic::{Code, Status};

use crate::support::plan;

/// Of the reference's, some of which are longer than the window.
const SAMPLES: usize = 24;

/// The digests of what is known of `m`.
async fn known(cluster: &Cluster) -> Vec<String> {
    let asked = ListVersionsRequest { model: "m".to_owned() };
    let listed = ModelsClient::new(cluster.channel()).list_versions(asked).await.unwrap().into_inner();
    listed.versions.into_iter().map(|version| version.checkpoint.unwrap().digest).collect()
}

/// Publishes the checkpoint `name` with samples, as a version of what the operator operates.
async fn publish(operator: &mut Operator, name: &str, golden: Vec<GoldenSample>) -> Result<Version, Status> {
    let begin = PublishBegin { golden, ..PublishBegin::default() };
    operator.publish(Path::new(&checkpoint(name)), begin).await
}

/// Publishes `name` as a version of what `served` is named: first with the wrong `samples`, of which `part` is said, then
/// with the right ones; and swaps to it.
async fn check(name: &str, served: &str, (right, wrong): (&[GoldenSample], &[GoldenSample]), part: &str) {
    let models = vec![format!("m={}", checkpoint(served))];
    let cluster = Cluster::of(Plan { models, store: true, ..plan(2) }).await;
    let mut operator = Operator::new(&cluster.gateways[0], "m");
    let before = known(&cluster).await;

    let refused = publish(&mut operator, name, wrong.to_vec()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains(part), "{}", refused.message());
    assert_eq!(known(&cluster).await, before, "nothing is to be seen of it");

    let version = publish(&mut operator, name, right.to_vec()).await.unwrap();
    let count = u32::try_from(right.len()).unwrap();
    assert_eq!((version.golden_inputs, version.golden_from()), (count, GoldenSource::Publisher));
    let digest = Digest::from(version.checkpoint.unwrap().digest);
    operator.promote(&digest, SwapPlan { new_space: true, ..SwapPlan::default() }).await.unwrap();
    let swap = operator.until(|swap| swap.state() == SwapState::Committed).await;
    assert_eq!((swap.to.as_str(), swap.ready), (digest.as_str(), 2), "{swap:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_references_vectors_hold_the_fleet() {
    let golden = Golden::read("bert-cls").readable();
    let sample = |(text, vector): (&String, &Vec<f32>)| GoldenSample {
        text: text.clone(),
        embedding: vector.iter().flat_map(|number| number.to_le_bytes()).collect(),
        ..GoldenSample::default()
    };
    let right: Vec<GoldenSample> =
        golden.texts.iter().zip(&golden.vectors).map(sample).take(SAMPLES).collect();
    let mut wrong = right.clone();
    wrong[7].embedding.clone_from(&right[8].embedding);
    let excerpt: String = right[7].text.chars().take(10).collect();
    check("bert-cls", "bert-mean", (&right, &wrong), &format!("begin.golden[7], \"{excerpt}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_references_scores_hold_the_fleet() {
    let path = repository().join("tests/golden/bert-cross");
    let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
    let logits = floats(SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data());
    let lines = std::fs::read_to_string(path.with_extension("jsonl")).unwrap();
    let readable = |text: &str| text.chars().any(|c| !c.is_control() && !c.is_whitespace());
    let sample = |(line, logit): (&str, f32)| {
        let mut pair: HashMap<String, String> = serde_json::from_str(line).unwrap();
        let (query, text) = (pair.remove("query").unwrap(), pair.remove("document").unwrap());
        let is_sample = readable(&query) && readable(&text) && !query.contains('\n');
        let score = Some(1.0 / (1.0 + (-logit).exp()));
        is_sample.then_some(GoldenSample { text, query: Some(query), score, ..GoldenSample::default() })
    };
    let right: Vec<GoldenSample> = lines.lines().zip(logits).filter_map(sample).take(SAMPLES).collect();
    let mut wrong = right.clone();
    let score = right[5].score.unwrap();
    wrong[5].score = Some(if score < 0.5 { score + 0.02 } else { score - 0.02 });
    check("bert-cross", "xlmr-cross", (&right, &wrong), "begin.golden[5], ").await;
}
