use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tests::history::{Book, Callers, Flaw, Load, flaws};
use tests::{Cluster, Distance, checkpoint, deep_variant, variant};

#[tokio::test(flavor = "multi_thread")]
async fn by_their_vectors_and_scores() {
    let dir = tempfile::tempdir().unwrap();
    let first = PathBuf::from(checkpoint("bert-cls"));
    let mut checkpoints = vec![first.clone()];
    checkpoints.extend((0..4).map(|number| variant(&first, number, Distance::Kin, dir.path())));
    checkpoints.push(variant(&first, 0, Distance::Stranger, dir.path()));
    checkpoints.push(deep_variant(12, dir.path()));
    // It refuses checkpoints that answer alike.
    let book = Book::of(&checkpoints).await;
    assert_eq!(book.digests.len(), checkpoints.len());
    let lowest = |i: usize| book.lowest_cosine(&book.digests[0], &book.digests[i]);
    for kin in 1..=4 {
        assert!(lowest(kin) > 0.9995, "kin share an index space: {}", lowest(kin));
    }
    assert!(lowest(5) < 0.99, "a stranger does not: {}", lowest(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_answers_as_another_would_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let first = PathBuf::from(checkpoint("bert-cls"));
    let kin = variant(&first, 1, Distance::Kin, dir.path());
    let mut book = Book::of(&[first, kin]).await;
    let digests = book.digests.clone();
    book.exchange(&digests[0], &digests[1]);

    let cluster = Cluster::start(1, &[checkpoint("bert-cls")]).await;
    let load = Load { model: "bert-cls".to_owned(), callers: 4, rest: Duration::ZERO, most: 4 };
    let callers = Callers::start(&Arc::new(book), &load, &cluster.gateways);
    while callers.notebook.calls() < 20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let record = callers.finish().await;
    let flaws = flaws(&record);
    // In calls, in streams and in scores.
    assert!(
        !flaws.is_empty() && flaws.len() == record.entries.len(),
        "{} of {}",
        flaws.len(),
        record.entries.len()
    );
    assert!(flaws.iter().all(|flaw| matches!(flaw, Flaw::Mixed(_))), "{}", flaws[0]);
}
