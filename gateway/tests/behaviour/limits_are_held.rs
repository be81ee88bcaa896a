//! What one caller may cost is bounded, at every layer, and its neighbours do not notice.

use tonic::Code;

use crate::support::frames::{ENHANCE_YOUR_CALM, Frames, REFUSED_STREAM, Said};
use crate::support::raw::Raw;
use crate::support::{FakeWorker, Gateway, digest, embed, field, texts};

async fn gateway() -> (FakeWorker, Gateway) {
    let worker = FakeWorker::start("w1", &[("mini", &digest('a'))]);
    let gateway = Gateway::start(&[&worker]).await;
    (worker, gateway)
}

#[tokio::test]
async fn headers_that_are_too_large_are_named_and_counted() {
    let (_worker, gateway) = gateway().await;
    let caller = Raw::connect(gateway.address).await;
    let (some, many, far_too_many) = ("x".repeat(8 << 10), "x".repeat(20 << 10), "x".repeat(100 << 10));
    assert_eq!(caller.embed(&[("x-more", &some)], texts(1, 3)).await.unwrap().code(), Code::Ok);

    let status = caller.embed(&[("x-more", &many)], texts(1, 3)).await.unwrap();
    assert_eq!((status.code(), field(&status)), (Code::InvalidArgument, Some("metadata".to_owned())));
    assert!(status.message().contains("16384"), "it names the limit: {status:?}");
    gateway.until_metric(r#"beige_gateway_refused_total{reason="headers"}"#, 1.0).await;

    // Beyond all measure HTTP/2 itself refuses, and nothing is read of it.
    let refused = caller.embed(&[("x-more", &far_too_many)], texts(1, 3)).await;
    assert!(refused.is_err() || refused.unwrap().code() != Code::Ok);
    gateway.embeddings().await.embed(embed(texts(1, 3))).await.expect("others do not notice");
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn calls_beyond_those_that_may_be_open_are_refused() {
    let (_worker, gateway) = gateway().await;
    let mut caller = Frames::connect(gateway.address).await;
    for _ in 0..1100 {
        caller.open();
    }
    let heard = caller.converse(|said| *said == Said::Reset(REFUSED_STREAM)).await;
    assert!(heard.contains(&Said::Reset(REFUSED_STREAM)), "{heard:?}");
    gateway.embeddings().await.embed(embed(texts(1, 3))).await.expect("others do not notice");
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn whoever_takes_calls_back_again_and_again_is_sent_away() {
    let (_worker, gateway) = gateway().await;
    let mut caller = Frames::connect(gateway.address).await;
    for _ in 0..20_000 {
        caller.open_and_reset();
    }
    let heard = caller.converse(|said| matches!(said, Said::GoAway(_))).await;
    assert_eq!(heard.last(), Some(&Said::GoAway(ENHANCE_YOUR_CALM)));
    gateway.embeddings().await.embed(embed(texts(1, 3))).await.expect("others do not notice");
    gateway.end().await.unwrap();
}

#[tokio::test]
async fn whoever_breaks_the_protocol_again_and_again_is_sent_away() {
    let (_worker, gateway) = gateway().await;
    let mut caller = Frames::connect(gateway.address).await;
    for _ in 0..5000 {
        caller.malformed();
    }
    let heard = caller.converse(|said| matches!(said, Said::GoAway(_))).await;
    assert_eq!(heard.last(), Some(&Said::GoAway(ENHANCE_YOUR_CALM)));
    gateway.embeddings().await.embed(embed(texts(1, 3))).await.expect("others do not notice");
    gateway.end().await.unwrap();
}
