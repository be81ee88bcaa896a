use tests::history::Book;
use tests::{Distance, checkpoint, deep_variant, variant};

#[tokio::test(flavor = "multi_thread")]
async fn by_their_vectors_and_scores() {
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoints = vec![checkpoint("bert-cls").into()];
    checkpoints.extend((0..4).map(|number| variant(number, Distance::Kin, dir.path())));
    checkpoints.push(variant(0, Distance::Stranger, dir.path()));
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
