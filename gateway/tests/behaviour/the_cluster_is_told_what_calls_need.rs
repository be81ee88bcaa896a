//! What a gateway says of itself: the epochs it has taken in, and the checkpoints that calls and streams are on
//! beside those that names mean.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::gateway::view;
use crate::support::{FakeWorker, Gateway, digest, embed, texts};

fn worker() -> FakeWorker {
    FakeWorker::start("w1", &[("mini", &digest('a')), ("mini", &digest('b'))])
}

fn epoch(epoch: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([("mini".to_owned(), epoch)])
}

fn of_mini(letter: char) -> (String, String) {
    ("mini".to_owned(), digest(letter))
}

#[tokio::test]
async fn a_call_keeps_its_checkpoint_busy_until_it_is_answered() {
    let worker = worker();
    let gateway = Gateway::start(&[&worker]).await;
    gateway.until_says(|record| record.epochs == epoch(1) && record.busy.is_empty()).await;
    worker.set(|mood| mood.takes = Duration::from_secs(3_600));
    let mut embeddings = gateway.embeddings().await;
    let call = embeddings.embed(embed(texts(2, 3)));
    let flip = async {
        while worker.running() == 0 {
            time::sleep(Duration::from_millis(1)).await;
        }
        gateway.views.send_replace(Arc::new(view(&[&worker], 'b', 2)));
        let record = gateway.until_says(|record| record.epochs == epoch(2)).await;
        assert_eq!(record.busy, BTreeSet::from([of_mini('a')]), "epoch and busy are of one moment");
        worker.set(|mood| mood.takes = Duration::ZERO);
    };
    let (answer, ()) = tokio::join!(call, flip);
    answer.unwrap();
    gateway.until_says(|record| record.busy.is_empty()).await;
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn an_open_stream_keeps_its_checkpoint_busy() {
    let worker = worker();
    let gateway = Gateway::start(&[&worker]).await;
    let (requests, sent) = mpsc::channel(1);
    let mut embeddings = gateway.embeddings().await;
    let mut answers = embeddings.embed_stream(ReceiverStream::new(sent)).await.unwrap().into_inner();
    requests.send(embed(texts(1, 3))).await.unwrap();
    answers.message().await.unwrap().unwrap();
    gateway.views.send_replace(Arc::new(view(&[&worker], 'b', 2)));
    gateway.until_says(|record| record.epochs == epoch(2) && record.busy.contains(&of_mini('a'))).await;
    drop(requests);
    assert!(answers.message().await.unwrap().is_none());
    gateway.until_says(|record| record.busy.is_empty()).await;
    gateway.end().await.unwrap();
}
