use std::sync::Arc;

use model::{Kind, Rows, Sequence};
use proto::worker::v1::EmbedShard;
use tokio_util::task::TaskTracker;
use tonic::Code;
use worker::bisect::EncodeError;
use worker::catalogue::{Served, unused};

use super::support::{EMBEDDER, MakeRows, Options, Stand, embed, origin, put, request, served, start};

/// Another checkpoint of the embedder's name.
const NEXT: &str = "next";

fn nines(batch: &[&Sequence]) -> Rows {
    Rows::new(4, vec![9.0; 4 * batch.len()])
}

async fn put_next(stand: &Stand, rows: MakeRows) -> Result<Arc<Served>, EncodeError> {
    let next = Arc::new(served(NEXT, Kind::Embedder, 4));
    put(&stand.shelf, &stand.control, &next, rows).await?;
    stand.catalogue.add(next.clone());
    Ok(next)
}

fn embed_by(digest: &str, texts: &[&str]) -> EmbedShard {
    EmbedShard { origin: Some(origin(digest)), request: Some(request(texts)) }
}

#[tokio::test]
async fn one_that_comes_waits_for_no_more_than_the_batch_that_runs() {
    let stand = start(Options::default()).await;
    let tasks = TaskTracker::new();
    stand.control.hold();
    let running = stand.spawn(&tasks, embed(&["w1"]));
    stand.control.begun(1).await;
    let waiting = stand.spawn(&tasks, embed(&["w2"]));
    stand.waiting(3 + 3).await;
    let refused = stand.client.clone().embed(embed_by(NEXT, &["w1"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);

    stand.control.release();
    put_next(&stand, nines).await.unwrap();
    assert_eq!(running.await.unwrap().unwrap()[1..2], [1.0]);
    assert_eq!(waiting.await.unwrap().unwrap()[1..2], [2.0]);
    assert_eq!(stand.spawn(&tasks, embed_by(NEXT, &["w3"])).await.unwrap().unwrap(), [9.0; 4]);
    assert_eq!(stand.spawn(&tasks, embed(&["w3"])).await.unwrap().unwrap()[1..2], [3.0]);
}

#[tokio::test]
async fn one_that_goes_is_kept_until_its_calls_have_ended() {
    let stand = start(Options::default()).await;
    let tasks = TaskTracker::new();
    let next = put_next(&stand, nines).await.unwrap();
    stand.control.hold();
    let plug = stand.spawn(&tasks, embed(&["w1"]));
    stand.control.begun(2).await; // The warm-up was the first.
    let last = stand.spawn(&tasks, embed_by(NEXT, &["w2"]));
    stand.waiting(3 + 3).await;

    stand.catalogue.remove(&next.id());
    let refused = stand.client.clone().embed(embed_by(NEXT, &["w3"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    tokio::select! {
        biased;
        () = unused(&next) => panic!("a call is left"),
        () = stand.waiting(3 + 3) => {}
    }
    stand.control.release();
    unused(&next).await;
    assert!(stand.shelf.take(&next.digest).await.is_some());
    assert_eq!(last.await.unwrap().unwrap(), [9.0; 4]);
    plug.await.unwrap().unwrap();
    assert!(stand.shelf.take(&next.digest).await.is_none(), "it is gone");
    assert!(stand.catalogue.find("m", EMBEDDER).is_some());
}

#[tokio::test]
async fn one_that_does_not_run_is_not_left_behind() {
    let stand = start(Options::default()).await;
    let tasks = TaskTracker::new();
    let failure = put_next(&stand, |_| panic!("as told")).await.unwrap_err();
    assert_eq!(failure.to_string(), "panicked: as told");
    assert!(stand.shelf.take(&NEXT.into()).await.is_none());
    assert_eq!(stand.spawn(&tasks, embed(&["w1"])).await.unwrap().unwrap()[1..2], [1.0]);
}
