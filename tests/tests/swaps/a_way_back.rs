//! What came before can be had again, for as long as it is kept.

use proto::v1::embeddings_client::EmbeddingsClient;
use proto::v1::{EmbedRequest, SwapState};
use tests::history::Digest;
use tests::{PATIENCE, Stage};
use tonic::Code;

use crate::support::{MODEL, plan, stage};

/// Whether a checkpoint can be asked for by its digest.
async fn has(stage: &Stage, digest: &Digest) -> Result<(), Code> {
    let model = format!("{MODEL}@{}", digest.as_str());
    let request = EmbedRequest { model, inputs: vec!["moss".to_owned()], ..EmbedRequest::default() };
    let answer = EmbeddingsClient::new(stage.cluster.channel()).embed(request).await;
    let named = answer.map_err(|status| status.code())?.into_inner().provenance.unwrap().digest;
    assert_eq!(named, digest.as_str());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_loads_nothing_and_is_noticed_by_nobody() {
    let mut stage = stage(plan(2)).await;
    let refused = stage.operator.rollback().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "there is nothing to go back to: {refused:?}");
    stage.swap_to(1).await;
    stage.calls(200).await;

    let swap = stage.operator.rollback().await.unwrap();
    assert_eq!(swap.state(), SwapState::RolledBack, "it is one transaction: {swap:#?}");
    stage.tell(&swap).await;
    let model = stage.operator.model().await;
    assert_eq!((model.epoch, model.checkpoint.unwrap().digest.as_str()), (3, stage.digests[0].as_str()));
    stage.calls(200).await;

    let refused = stage.operator.rollback().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "back is not forth: {refused:?}");
    stage.swap_to(2).await;
    stage.calls(100).await;
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_checkpoints_are_had_by_digest_until_the_old_one_is_retired() {
    let mut stage = stage(plan(2)).await;
    stage.swap_to(1).await;
    let digests = stage.digests.clone();
    for digest in &digests[..2] {
        assert_eq!(has(&stage, digest).await, Ok(()));
    }
    stage.operator.retire().await.unwrap();
    stage.retired().await;
    let gone = async {
        while has(&stage, &digests[0]).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("what nobody wants is let go");
    assert_eq!(has(&stage, &digests[0]).await, Err(Code::FailedPrecondition));
    let refused = stage.operator.rollback().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    stage.flawless().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_checkpoint_outlives_its_retirement() {
    let mut stage = stage(plan(1)).await;
    let digests = stage.digests.clone();
    assert!(stage.operator.pin(&digests[0]).await.unwrap().pinned);
    for i in [1, 2] {
        stage.swap_to(i).await;
    }
    stage.operator.retire().await.unwrap();
    stage.retired().await;
    stage.calls(200).await;
    assert_eq!(has(&stage, &digests[0]).await, Ok(()));
    assert!(!stage.operator.unpin(&digests[0]).await.unwrap().pinned);
    let gone = async {
        while has(&stage, &digests[0]).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("what is not pinned is let go");
    stage.flawless().await;
}
