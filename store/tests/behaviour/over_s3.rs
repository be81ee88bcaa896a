//! The same over S3, spoken to a server that keeps its objects in a folder.

use store::{Cache, Error, Settings, Store};

use crate::a_checkpoint_goes_in_and_comes_out as suite;
use crate::s3::S3Server;
use crate::support::{Checkpoint, open, publish};

pub(crate) fn settings(environment: Vec<(String, String)>) -> Settings {
    environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn store(server: &S3Server) -> Store {
    open("s3://beige/models/all", &settings(server.environment()))
}

#[tokio::test]
async fn a_server_over_a_folder() {
    let server = S3Server::start().await;
    suite::all(&store(&server)).await;
    assert!(server.bucket().join("models/all/blobs").is_dir());
}

#[tokio::test]
async fn a_wrong_secret_is_denied_and_not_told() {
    let server = S3Server::start().await;
    let digest = publish(&store(&server), &Checkpoint::usual(1)).await;
    let stranger = open("s3://beige/models/all", &settings(server.environment_with("another-secret")));
    let error = stranger.manifest(&digest).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert!(!format!("{error:?} {stranger:?}").contains("another-secret"));
}

#[tokio::test]
async fn a_store_that_is_away_is_unreachable_and_then_back() {
    let mut server = S3Server::start().await;
    let checkpoint = Checkpoint::usual(1);
    let store = store(&server);
    publish(&store, &checkpoint).await;
    server.stop().await;
    let cache_dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(cache_dir.path(), 1 << 30).unwrap();
    let error = cache.checkpoint(&store, &checkpoint.files, &|_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");

    let before = server.connections();
    server.start_again().await;
    cache.checkpoint(&store, &checkpoint.files, &|_| ()).await.unwrap();
    assert!(server.connections() > before);
}
