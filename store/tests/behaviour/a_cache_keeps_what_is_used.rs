//! What a cache believes, and what it lets go.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use proptest::prelude::*;
use store::{Cache, Error, Held, Progress, Stage, Store};
use tempfile::TempDir;

use crate::support::{Checkpoint, assert_same, folder, publish};

/// A cache of `bound` bytes, beside a store with `checkpoints`.
async fn world(bound: u64, checkpoints: &[Checkpoint]) -> (TempDir, Store, TempDir, Cache) {
    let (store_dir, store) = folder();
    for checkpoint in checkpoints {
        publish(&store, checkpoint).await;
    }
    let cache_dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(cache_dir.path(), bound).unwrap();
    (store_dir, store, cache_dir, cache)
}

async fn have(cache: &Cache, store: &Store, checkpoint: &Checkpoint) -> Result<Held, Error> {
    let held = cache.checkpoint(store, &checkpoint.files, &|_| ()).await?;
    assert_same(held.path(), checkpoint);
    Ok(held)
}

/// Every file below `dir` that is not a lock.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else if entry.path().parent().unwrap().file_name().unwrap() != "locks" {
            found.push(entry.path());
        }
    }
    found
}

/// Bytes on disk, files of several names counted once.
fn bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let metas = files(dir).into_iter().map(|path| fs::metadata(path).unwrap());
    let inodes: std::collections::BTreeMap<u64, u64> = metas.map(|meta| (meta.ino(), meta.len())).collect();
    inodes.values().sum()
}

/// Deletes all that is in a store.
fn empty(dir: &TempDir) {
    for folder in ["blobs", "parts", "manifests"] {
        fs::remove_dir_all(dir.path().join(folder)).unwrap();
    }
}

#[tokio::test]
async fn a_second_time_nothing_is_read_from_the_store() {
    let checkpoint = Checkpoint::usual(1);
    let (store_dir, store, _dir, cache) = world(1 << 20, std::slice::from_ref(&checkpoint)).await;
    drop(have(&cache, &store, &checkpoint).await.unwrap());
    empty(&store_dir);
    have(&cache, &store, &checkpoint).await.unwrap();
}

#[tokio::test]
async fn progress_goes_from_nothing_to_all() {
    let checkpoint = Checkpoint::usual(1);
    let total: u64 = checkpoint.files.iter().map(|file| file.size).sum();
    let (_store_dir, store, _dir, cache) = world(1 << 20, std::slice::from_ref(&checkpoint)).await;
    for stages in [&[Stage::Downloading, Stage::Verifying][..], &[Stage::Verifying]] {
        let told = Mutex::new(Vec::<Progress>::new());
        cache.checkpoint(&store, &checkpoint.files, &|it| told.lock().unwrap().push(it)).await.unwrap();
        let told = told.into_inner().unwrap();
        let mut order: Vec<_> = told.iter().map(|it| it.stage).collect();
        order.dedup();
        assert_eq!(order, stages);
        for stage in stages {
            let of_stage: Vec<_> = told.iter().filter(|it| it.stage == *stage).collect();
            assert!(of_stage.is_sorted_by_key(|it| it.done), "{of_stage:?}");
            assert!(of_stage.iter().all(|it| it.total == total), "{of_stage:?}");
            assert_eq!((of_stage[0].done, of_stage.last().unwrap().done), (0, total));
        }
    }
}

#[tokio::test]
async fn what_is_damaged_in_the_cache_is_fetched_again() {
    #[expect(clippy::type_complexity, reason = "a table")]
    let damages: [(&str, fn(&Path)); 4] = [
        ("a byte", |path| {
            let mut data = fs::read(path).unwrap();
            data[7] ^= 1;
            fs::write(path, data).unwrap();
        }),
        ("the end", |path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(9).unwrap()),
        ("more", |path| fs::write(path, vec![0; 5000]).unwrap()),
        ("all of it", |path| fs::remove_file(path).unwrap()),
    ];
    let checkpoint = Checkpoint::usual(1);
    let (_store_dir, store, dir, cache) = world(1 << 20, std::slice::from_ref(&checkpoint)).await;
    for (what, damage) in damages {
        let held = have(&cache, &store, &checkpoint).await.unwrap();
        damage(&held.path().join("model.safetensors"));
        have(&cache, &store, &checkpoint).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let blobs = files(&dir.path().join("blobs"));
        assert_eq!(blobs.len(), checkpoint.files.len(), "{what}: {blobs:?}");
    }
}

#[test]
fn what_is_damaged_in_the_store_is_not_handed_out() {
    /// The first object in a folder of the store that has as many bytes.
    fn object(dir: &Path, size: u64) -> PathBuf {
        files(dir).into_iter().find(|path| fs::metadata(path).unwrap().len() == size).unwrap()
    }
    #[track_caller]
    fn check(damage: impl FnOnce(&Path), expected: &str) {
        let checkpoint = Checkpoint::usual(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (store_dir, store, dir, cache) = world(1 << 20, std::slice::from_ref(&checkpoint)).await;
            damage(store_dir.path());
            let error = cache.checkpoint(&store, &checkpoint.files, &|_| ()).await.unwrap_err();
            assert!(format!("{error:?}").contains(expected), "{error:?}");
            let damaged = files(dir.path()).into_iter().filter(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                name == "model.safetensors" || name == checkpoint.files[2].sha256
            });
            assert_eq!(damaged.collect::<Vec<_>>(), [] as [PathBuf; 0]);
            // Publishing it again mends what is missing or short; a wrong byte is seen by whoever reads it.
            if expected.contains("hashes") {
                let damaged = store.mend(&checkpoint.files).await.unwrap();
                assert_eq!(damaged, [checkpoint.files[2].sha256.clone()]);
            }
            publish(&store, &checkpoint).await;
            assert_eq!(store.mend(&checkpoint.files).await.unwrap(), [] as [String; 0]);
            have(&cache, &store, &checkpoint).await.unwrap();
        });
    }
    let write = |path: PathBuf, size: usize| fs::write(path, vec![0; size]).unwrap();
    check(|dir| write(object(&dir.join("parts"), 1000), 1000), "hashes to");
    check(|dir| write(object(&dir.join("parts"), 1000), 999), "it has 999 bytes");
    check(|dir| write(object(&dir.join("blobs"), 100), 99), "it has 99 bytes");
    check(|dir| fs::remove_file(object(&dir.join("parts"), 321)).unwrap(), "Missing");
    let list = |dir: &Path| {
        let mut lists = files(&dir.join("blobs")).into_iter().filter(|path| path.extension().is_some());
        lists.next_back().unwrap()
    };
    check(|dir| fs::write(list(dir), "{}").unwrap(), "Format");
}

#[tokio::test]
async fn what_others_wrote_is_not_trusted() {
    let (store_dir, store, dir, cache) = world(1 << 20, &[]).await;
    let honest = Checkpoint::usual(1);
    let digest = publish(&store, &honest).await;
    let manifests = store_dir.path().join("manifests");
    let manifest = |digest: &str| manifests.join(format!("{digest}.json"));

    fs::write(manifest(&digest), Checkpoint::usual(2).manifest().canonical()).unwrap();
    let error = store.manifest(&digest).await.unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");

    let mut climbing = honest.manifest();
    climbing.files[0].path = "../../escaped".into();
    fs::write(manifest(&climbing.digest()), climbing.canonical()).unwrap();
    let error = store.manifest(&climbing.digest()).await.unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
    let error = cache.checkpoint(&store, &climbing.files, &|_| ()).await.unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
    assert_eq!(files(dir.path()), [] as [PathBuf; 0]);

    // What is not known to be needed cannot be told from what is not.
    let keep = [digest].into();
    let error = store.collect(&keep, std::time::Duration::ZERO, store::Purpose::Delete).await.unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    have(&cache, &store, &honest).await.unwrap();
}

#[tokio::test]
async fn what_was_used_longest_ago_makes_room() {
    let all: Vec<_> = (1..=4).map(Checkpoint::usual).collect();
    let (store_dir, store, dir, cache) = world(9500, &all).await;
    drop(have(&cache, &store, &all[0]).await.unwrap());
    drop(have(&cache, &store, &all[1]).await.unwrap());
    drop(have(&cache, &store, &all[0]).await.unwrap());
    drop(have(&cache, &store, &all[2]).await.unwrap()); // In place of the second.
    assert!(bytes(dir.path()) <= 9500);
    empty(&store_dir);
    drop(have(&cache, &store, &all[0]).await.unwrap());
    drop(have(&cache, &store, &all[2]).await.unwrap());
    assert!(matches!(have(&cache, &store, &all[1]).await, Err(Error::Missing(_))));
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let all: Vec<_> = (1..=3).map(Checkpoint::usual).collect();
    let (store_dir, store, dir, cache) = world(9500, &all).await;
    let first = have(&cache, &store, &all[0]).await.unwrap();
    let second = have(&cache, &store, &all[1]).await.unwrap();
    let error = have(&cache, &store, &all[2]).await.unwrap_err();
    assert!(matches!(error, Error::Room { wanted: 4461, bound: 9500, held: 8922 }), "{error}");
    drop(first);
    let third = have(&cache, &store, &all[2]).await.unwrap();
    assert!(bytes(dir.path()) <= 9500);
    empty(&store_dir);
    assert_same(second.path(), &all[1]);
    assert_same(third.path(), &all[2]);
    let huge = Checkpoint::new(9, &[("model.safetensors", 9501)]);
    drop((second, third));
    let error = have(&cache, &store, &huge).await.unwrap_err();
    assert!(matches!(error, Error::Room { wanted: 9501, .. }), "{error}");
}

#[tokio::test]
async fn files_that_two_checkpoints_share_are_there_once() {
    let one = Checkpoint::new(1, &[("a", 10), ("model.safetensors", 4000)]);
    let two = Checkpoint::new(1, &[("b", 20), ("model.safetensors", 4000)]);
    let other = Checkpoint::new(2, &[("model.safetensors", 1000)]);
    let (store_dir, store, dir, cache) = world(5000, &[one.clone(), two.clone(), other.clone()]).await;
    drop(have(&cache, &store, &one).await.unwrap());
    let held = have(&cache, &store, &two).await.unwrap();
    assert_eq!(bytes(dir.path()), 4030);
    drop(have(&cache, &store, &other).await.unwrap_err()); // The first goes, and that is not enough.
    assert_eq!(bytes(dir.path()), 4020);
    empty(&store_dir);
    assert_same(held.path(), &two);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_cache_stays_within_its_bound_and_keeps_what_is_held(
        steps in proptest::collection::vec((0..5_usize, any::<bool>()), 1..14),
    ) {
        let all: Vec<_> = (0..5_u8).map(|seed| {
            Checkpoint::new(seed, &[("a", 50 + usize::from(seed)), ("model.safetensors", 900 * usize::from(seed % 3))])
        }).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_store_dir, store, dir, cache) = world(3000, &all).await;
            let mut held: Vec<(usize, Held)> = Vec::new();
            for (which, keep) in steps {
                match have(&cache, &store, &all[which]).await {
                    Ok(it) if keep => held.push((which, it)),
                    Ok(_) => held.retain(|(held, _)| *held != which),
                    Err(Error::Room { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                assert!(bytes(dir.path()) <= 3000);
                for (which, held) in &held {
                    assert_same(held.path(), &all[*which]);
                }
            }
        });
    }
}
