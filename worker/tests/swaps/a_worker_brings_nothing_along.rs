use std::path::Path;

use cluster::SwapState;

use crate::checkpoint;
use crate::support::Scene;

#[tokio::test]
async fn and_holds_what_the_name_means() {
    let scene = Scene::set().await;
    let empty = scene.worker("w1", &[]).await;
    empty.until_page("/readyz", "200 OK").await;
    let published = scene.publish(Path::new(&checkpoint("bert-cls")), &empty).await;
    assert_eq!(empty.until("a report", |_| true).await.ready, [], "it was only tried");

    scene.swap(&published.digest).await;
    scene.until_swap(SwapState::Committed).await;
    empty.until_ready(&[&published.digest]).await;
    let view = scene.until("ready", |view| !view.ready.is_empty()).await;
    assert_eq!(view.ready[&("m".to_owned(), published.digest.clone())].len(), 1);

    // One that comes later takes it up at its start.
    let later = scene.worker("w2", &[]).await;
    later.until_ready(&[&published.digest]).await;
    later.until_page("/readyz", "200 OK").await;
    later.embed(&published.digest, "a text").await.unwrap();
    let other = scene.worker("w3", &["--serve", "n"]).await;
    other.until_page("/readyz", "200 OK").await;
    assert_eq!(other.until("a report", |_| true).await.ready, [], "it may not serve the model");
}

#[tokio::test]
async fn and_one_that_brings_an_older_one_takes_what_the_name_means() {
    let scene = Scene::set().await;
    let first = scene.worker("w1", &[]).await;
    first.until_page("/readyz", "200 OK").await;
    let published = scene.publish(Path::new(&checkpoint("bert-cls")), &first).await;
    scene.swap(&published.digest).await;
    scene.until_swap(SwapState::Committed).await;

    let model = format!("m={}", checkpoint("bert-mean"));
    let second = scene.worker("w2", &["--model", &model]).await;
    second.until_ready(&[&published.digest]).await;
    second.embed(&published.digest, "a text").await.unwrap();
}
