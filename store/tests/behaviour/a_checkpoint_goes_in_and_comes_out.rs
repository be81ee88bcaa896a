//! Publishing and collecting, over whatever store. A store may have been used by the tests before.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use manifest::ManifestFile;
use store::{Cache, Error, Purpose, Store, UploadError};

use crate::support::{Checkpoint, PART, assert_same, folder, publish, send};

#[tokio::test]
async fn in_a_folder() {
    let (dir, store) = folder();
    all(&store).await;
    // Publications that were dropped in the middle leave their markers to a collection, and they alone.
    let markers = std::fs::read_dir(dir.path().join("publishing")).unwrap().count();
    assert_eq!(markers, 0, "the last collection was after the last that was dropped");
}

#[tokio::test]
async fn a_publication_waits_for_a_collection_that_may_not_have_seen_it() {
    let (dir, store) = folder();
    let mark = dir.path().join("collecting.json");
    let (checkpoint, keep) = (Checkpoint::usual(1), BTreeSet::new());
    std::fs::write(&mark, "{}").unwrap();
    let second = store.collect(&keep, Duration::ZERO, Purpose::Delete).await;
    assert!(matches!(second, Err(Error::Busy)), "{second:?}");
    {
        let mut publishing = std::pin::pin!(store.publish(&checkpoint.files));
        let early = tokio::time::timeout(Duration::from_millis(500), &mut publishing).await;
        assert!(early.is_err(), "it did not wait");
        std::fs::remove_file(&mark).unwrap();
        publishing.await.unwrap().abandon().await.unwrap();
    }
    // One that was killed is waited for by nobody for ever.
    let dead = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::create(&mark).unwrap().set_modified(dead).unwrap();
    store.publish(&checkpoint.files).await.unwrap().abandon().await.unwrap();
    store.collect(&keep, Duration::ZERO, Purpose::Delete).await.unwrap();
    assert!(!mark.exists());
}

/// What every store does.
pub(crate) async fn all(store: &Store) {
    what_is_published_is_read_back(store).await;
    what_is_there_is_not_asked_for(store).await;
    an_upload_that_was_cut_short_goes_on(store).await;
    nothing_is_seen_before_it_is_whole(store).await;
    bytes_that_were_not_announced_are_refused(store).await;
    bytes_come_in_order(store).await;
    two_uploads_of_a_file_do_not_harm_each_other(store).await;
    a_wrong_upload_does_not_spoil_a_right_one(store).await;
    a_collection_takes_what_nothing_refers_to(store).await;
    a_collection_spares_a_publication(store).await;
    // Last: collections above would take what it relies on.
    what_was_never_published_is_missing(store).await;
}

async fn read(store: &Store, file: &ManifestFile, from: u64) -> Result<Vec<u8>, Error> {
    let pieces: Vec<Bytes> = store.read(file, from).await?.try_collect().await?;
    Ok(pieces.concat())
}

async fn what_is_published_is_read_back(store: &Store) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1 << 30).unwrap();
    let mut files = vec![("empty.txt", 0), ("one", 1), ("exact", 3000), ("less", 999), ("more", 1001)];
    files.extend([("1_Pooling/config.json", 40), ("model.safetensors", 12_345)]);
    let checkpoint = Checkpoint::new(1, &files);
    let digest = publish(store, &checkpoint).await;
    assert_eq!(store.manifest(&digest).await.unwrap(), checkpoint.manifest());
    assert!(store.manifests().await.unwrap().contains(&digest));
    let held = cache.checkpoint(store, &checkpoint.files, &|_| ()).await.unwrap();
    assert_same(held.path(), &checkpoint);
    for (file, data) in checkpoint.files.iter().zip(&checkpoint.contents) {
        for from in [0, 1, 999, 1000, 1001, 2500, file.size].into_iter().filter(|from| *from <= file.size) {
            let read = read(store, file, from).await.unwrap();
            assert!(read == data[usize::try_from(from).unwrap()..], "{} from {from}", file.path);
        }
    }
}

async fn what_is_there_is_not_asked_for(store: &Store) {
    let old = Checkpoint::new(2, &[("config.json", 50), ("model.safetensors", 4000)]);
    publish(store, &old).await;
    assert_eq!(store.publish(&old.files).await.unwrap().wanted(), []);
    let new = Checkpoint::new(2, &[("added.json", 60), ("config.json", 50), ("model.safetensors", 4000)]);
    let publication = store.publish(&new.files).await.unwrap();
    let wanted: Vec<_> = publication.wanted().into_iter().map(|wanted| wanted.sha256).collect();
    assert_eq!(wanted, [new.files[0].sha256.clone()]);
    publication.abandon().await.unwrap();
}

async fn an_upload_that_was_cut_short_goes_on(store: &Store) {
    let checkpoint = Checkpoint::new(3, &[("model.safetensors", 6500)]);
    let mut first = store.publish(&checkpoint.files).await.unwrap();
    assert_eq!(send(&mut first, &checkpoint, 700, 3400).await.unwrap(), 3400);
    drop(first);
    let mut second = store.publish(&checkpoint.files).await.unwrap();
    assert_eq!(second.wanted()[0].offset, 3 * PART);
    assert_eq!(send(&mut second, &checkpoint, 700, u64::MAX).await.unwrap(), 3500);
    let digest = second.finish(&checkpoint.manifest()).await.unwrap();
    assert_eq!(store.manifest(&digest).await.unwrap(), checkpoint.manifest());
    assert!(read(store, &checkpoint.files[0], 0).await.unwrap() == checkpoint.contents[0]);
}

async fn nothing_is_seen_before_it_is_whole(store: &Store) {
    let checkpoint = Checkpoint::new(4, &[("a", 100), ("b", 2500)]);
    let mut publication = store.publish(&checkpoint.files).await.unwrap();
    for wanted in publication.wanted() {
        let file = checkpoint.files.iter().find(|file| file.sha256 == wanted.sha256).unwrap();
        send(&mut publication, &checkpoint, 50, file.size - 1).await.unwrap();
        let error = read(store, file, 0).await.unwrap_err();
        assert!(matches!(error, Error::Missing(_)), "{error}");
        send(&mut publication, &checkpoint, 50, 1).await.unwrap();
        read(store, file, 0).await.unwrap();
    }
    // What its loader does not read is no part of it.
    let part = Checkpoint::new(4, &[("a", 100)]);
    let digest = publication.finish(&part.manifest()).await.unwrap();
    assert_eq!(store.manifest(&digest).await.unwrap(), part.manifest());
    let whole = store.publish(&part.files).await.unwrap();
    assert!(whole.is_whole());
    let error = whole.finish(&checkpoint.manifest()).await.unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
    let unfinished = Checkpoint::new(40, &[("a", 100)]);
    let publication = store.publish(&unfinished.files).await.unwrap();
    let error = publication.finish(&unfinished.manifest()).await.unwrap_err();
    assert!(matches!(error, Error::Missing(_)), "{error}");
}

/// The checkpoint's files with other bytes.
fn falsified(checkpoint: &Checkpoint) -> Checkpoint {
    let mut other = checkpoint.clone();
    for data in &mut other.contents {
        let mut wrong = data.to_vec();
        wrong[1500] ^= 1;
        *data = wrong.into();
    }
    other
}

async fn bytes_that_were_not_announced_are_refused(store: &Store) {
    let right = Checkpoint::new(5, &[("model.safetensors", 3500)]);
    let wrong = falsified(&right);
    // The second time it would go on from what came the first time.
    for most in [3400, u64::MAX] {
        let mut publication = store.publish(&right.files).await.unwrap();
        match send(&mut publication, &wrong, 333, most).await {
            Ok(sent) => assert_eq!(sent, 3400),
            Err(error) => {
                assert!(matches!(error, UploadError::Checksum { .. }) && most > 3400, "{error}");
            }
        }
        let error = read(store, &right.files[0], 0).await.unwrap_err();
        assert!(matches!(error, Error::Missing(_)), "{error}");
    }
    let mut publication = store.publish(&right.files).await.unwrap();
    assert_eq!(publication.wanted()[0].offset, 0, "parts of the wrong file were kept");
    send(&mut publication, &right, 333, u64::MAX).await.unwrap();
    assert!(read(store, &right.files[0], 0).await.unwrap() == right.contents[0]);
    publication.abandon().await.unwrap();
}

async fn bytes_come_in_order(store: &Store) {
    let checkpoint = Checkpoint::new(6, &[("a", 100)]);
    let sha256 = checkpoint.files[0].sha256.as_str();
    let data = &checkpoint.contents[0];
    let mut publication = store.publish(&checkpoint.files).await.unwrap();
    let error = publication.write("unknown", 0, data.clone()).await.unwrap_err();
    assert!(matches!(error, UploadError::Unasked(_)), "{error}");
    let error = publication.write(sha256, 1, data.slice(1..)).await.unwrap_err();
    assert!(matches!(error, UploadError::Misplaced { wanted: 0, given: 1, .. }), "{error}");
    publication.write(sha256, 0, data.slice(..90)).await.unwrap();
    let error = publication.write(sha256, 90, data.slice(..11)).await.unwrap_err();
    assert!(matches!(error, UploadError::Overlong { size: 100, .. }), "{error}");
    publication.write(sha256, 90, data.slice(90..)).await.unwrap();
    let error = publication.write(sha256, 100, data.clone()).await.unwrap_err();
    assert!(matches!(error, UploadError::Unasked(_)), "{error}");
    publication.abandon().await.unwrap();

    let climbing = [ManifestFile { path: "../a".into(), ..checkpoint.files[0].clone() }];
    let error = store.publish(&climbing).await.unwrap_err();
    assert!(matches!(error, UploadError::Store(Error::Format { .. })), "{error}");
    let file = checkpoint.files[0].clone();
    let false_empty = [ManifestFile { size: 0, sha256: "0".repeat(64), ..file.clone() }];
    let error = store.publish(&false_empty).await.unwrap_err();
    assert!(matches!(error, UploadError::Checksum { .. }), "{error}");
    let twice = [file.clone(), ManifestFile { path: "b".into(), size: 99, ..file }];
    let error = store.publish(&twice).await.unwrap_err();
    assert!(matches!(error, UploadError::Contradiction(_)), "{error}");
}

async fn two_uploads_of_a_file_do_not_harm_each_other(store: &Store) {
    let checkpoint = Checkpoint::new(7, &[("model.safetensors", 4500)]);
    let mut one = store.publish(&checkpoint.files).await.unwrap();
    let mut two = store.publish(&checkpoint.files).await.unwrap();
    for most in [1200, 2100, u64::MAX] {
        send(&mut one, &checkpoint, 500, most).await.unwrap();
        send(&mut two, &checkpoint, 400, most).await.unwrap();
    }
    let digest = one.finish(&checkpoint.manifest()).await.unwrap();
    assert_eq!(two.finish(&checkpoint.manifest()).await.unwrap(), digest);
    assert!(read(store, &checkpoint.files[0], 0).await.unwrap() == checkpoint.contents[0]);
}

async fn a_wrong_upload_does_not_spoil_a_right_one(store: &Store) {
    let right = Checkpoint::new(8, &[("model.safetensors", 4500)]);
    let wrong = falsified(&right);
    let mut honest = store.publish(&right.files).await.unwrap();
    let mut other = store.publish(&right.files).await.unwrap();
    send(&mut honest, &right, 500, 2500).await.unwrap();
    send(&mut other, &wrong, 500, 4000).await.unwrap();
    send(&mut honest, &right, 500, u64::MAX).await.unwrap();
    send(&mut other, &wrong, 500, u64::MAX).await.unwrap_err();
    // What both had sent went with the wrong one: it is asked for again, and nothing wrong is ever read.
    let mut again = store.publish(&right.files).await.unwrap();
    send(&mut again, &right, 500, u64::MAX).await.unwrap();
    again.finish(&right.manifest()).await.unwrap();
    assert!(read(store, &right.files[0], 0).await.unwrap() == right.contents[0]);
}

async fn a_collection_takes_what_nothing_refers_to(store: &Store) {
    let shared = ("tokenizer.json", 2500);
    let kept = Checkpoint::new(9, &[("a", 100), shared]);
    let gone = Checkpoint::new(9, &[("b", 3200), shared]);
    let kept_digest = publish(store, &kept).await;
    let gone_digest = publish(store, &gone).await;
    let keep = BTreeSet::from([kept_digest.clone()]);

    let young = store.collect(&keep, Duration::from_secs(3600), Purpose::Delete).await.unwrap();
    assert_eq!(young, store::Collected::default());
    store.manifest(&gone_digest).await.unwrap();

    let report = store.collect(&keep, Duration::ZERO, Purpose::Report).await.unwrap();
    assert!(report.manifests.contains(&gone_digest) && !report.manifests.contains(&kept_digest));
    assert!(report.bytes >= 3200, "{report:?}");
    store.manifest(&gone_digest).await.unwrap();

    assert_eq!(store.collect(&keep, Duration::ZERO, Purpose::Delete).await.unwrap(), report);
    assert_eq!(store.manifests().await.unwrap(), [kept_digest]);
    assert!(matches!(store.manifest(&gone_digest).await, Err(Error::Missing(_))));
    assert!(matches!(read(store, &gone.files[0], 0).await, Err(Error::Missing(_))));
    for (file, data) in kept.files.iter().zip(&kept.contents) {
        assert!(read(store, file, 0).await.unwrap() == *data);
    }
    let nothing = store.collect(&keep, Duration::ZERO, Purpose::Delete).await.unwrap();
    assert_eq!(nothing, store::Collected::default());
}

async fn a_collection_spares_a_publication(store: &Store) {
    let grace = Duration::from_secs(2);
    let old = Checkpoint::new(10, &[("model.safetensors", 3000)]);
    publish(store, &old).await;
    tokio::time::sleep(grace + Duration::from_secs(1)).await; // Stores count in seconds.
    // It relies on the old file, to which nothing else refers.
    let new = Checkpoint::new(10, &[("added.json", 10), ("model.safetensors", 3000)]);
    let mut publication = store.publish(&new.files).await.unwrap();
    let collected = store.collect(&BTreeSet::new(), grace, Purpose::Delete).await.unwrap();
    assert!(!collected.manifests.is_empty(), "{collected:?}");
    send(&mut publication, &new, 100, u64::MAX).await.unwrap();
    publication.finish(&new.manifest()).await.unwrap();
    assert!(read(store, &new.files[1], 0).await.unwrap() == new.contents[1]);
}

async fn what_was_never_published_is_missing(store: &Store) {
    let never = Checkpoint::usual(11);
    assert!(matches!(store.manifest(&never.manifest().digest()).await, Err(Error::Missing(_))));
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), 1 << 30).unwrap();
    let error = cache.checkpoint(store, &never.files, &|_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Missing(_)), "{error}");
}
