//! Objects that somebody else put into a bucket, and their copies here.

use std::fs;
use std::path::{Path, PathBuf};

use store::{Copies, Error, Object, ObjectError, Place, Source};
use tempfile::TempDir;

use crate::over_s3::settings;
use crate::s3::S3Server;

struct Scene {
    server: S3Server,
    source: Source,
    dir: TempDir,
}

impl Scene {
    async fn set() -> Self {
        let server = S3Server::start().await;
        let source = Source::open("s3://beige/data", &settings(server.environment())).unwrap();
        Self { server, source, dir: tempfile::tempdir().unwrap() }
    }

    fn place(&self, below: &str) -> Place {
        self.source.find(&format!("s3://beige/data/{below}")).unwrap()
    }

    async fn object(&self, below: &str) -> Object {
        self.place(below).object().await.unwrap()
    }

    fn copies(&self, bytes: u64) -> Copies {
        Copies::open(&self.dir.path().join("copies"), bytes).unwrap()
    }

    fn to(&self, name: &str) -> PathBuf {
        self.dir.path().join("links").join(name)
    }

    /// Files that copies consist of.
    fn kept(&self) -> Vec<PathBuf> {
        let list =
            |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        list(&self.dir.path().join("copies/objects")).iter().flat_map(|dir| list(dir)).collect()
    }
}

#[tokio::test]
async fn an_object_is_fetched_once_and_linked_as_often_as_it_is_wanted() {
    let scene = Scene::set().await;
    // More than one request's worth.
    let bytes: Vec<u8> =
        (0..9 << 20).map(|n: u32| n.to_le_bytes()[usize::from(n.is_multiple_of(7))]).collect();
    scene.server.put("data/a.jsonl", &bytes);
    let (object, copies) = (scene.object("a.jsonl").await, scene.copies(1 << 30));
    assert_eq!((object.url.as_str(), object.size), ("s3://beige/data/a.jsonl", 9 << 20));
    let sha256 = copies.copy(&scene.source, &object, &scene.to("one")).await.unwrap();
    assert!(fs::read(scene.to("one")).unwrap() == bytes);
    fs::remove_file(scene.server.bucket().join("data/a.jsonl")).unwrap();
    // Another process that shares them, which speaks to nobody.
    let others = scene.copies(1 << 30);
    assert_eq!(others.copy(&scene.source, &object, &scene.to("two")).await.unwrap(), sha256);
    assert!(fs::read(scene.to("two")).unwrap() == bytes);
    assert_eq!(scene.kept().len(), 1);
}

#[tokio::test]
async fn what_had_come_of_an_object_is_not_fetched_again() {
    let scene = Scene::set().await;
    scene.server.put("data/a.jsonl", &[7; 4000]);
    let (object, copies) = (scene.object("a.jsonl").await, scene.copies(1 << 30));
    copies.copy(&scene.source, &object, &scene.to("one")).await.unwrap();
    let [whole] = &scene.kept()[..] else { panic!("one copy") };
    // As a process leaves it that is killed: these bytes can only be here.
    fs::write(whole.with_file_name("4000.part"), [9; 1500]).unwrap();
    fs::remove_file(whole).unwrap();
    copies.copy(&scene.source, &object, &scene.to("two")).await.unwrap();
    assert_eq!(fs::read(scene.to("two")).unwrap(), [[9; 1500].as_slice(), &[7; 2500]].concat());
}

#[tokio::test]
async fn a_damaged_copy_is_fetched_again() {
    let scene = Scene::set().await;
    scene.server.put("data/a.jsonl", &[7; 4000]);
    let (object, copies) = (scene.object("a.jsonl").await, scene.copies(1 << 30));
    let sha256 = copies.copy(&scene.source, &object, &scene.to("one")).await.unwrap();
    let kept = scene.kept().remove(0);
    fs::remove_file(&kept).unwrap();
    fs::write(&kept, [8; 4000]).unwrap();
    assert_eq!(copies.copy(&scene.source, &object, &scene.to("two")).await.unwrap(), sha256);
    assert_eq!(fs::read(scene.to("two")).unwrap(), [7; 4000]);
}

#[tokio::test]
async fn an_object_that_has_changed_is_told_from_what_it_was() {
    let scene = Scene::set().await;
    scene.server.put("data/a.jsonl", b"old");
    let (old, copies) = (scene.object("a.jsonl").await, scene.copies(1 << 30));
    scene.server.put("data/a.jsonl", b"newer");
    let changed = copies.copy(&scene.source, &old, &scene.to("old")).await.unwrap_err();
    assert!(matches!(&changed, ObjectError::Changed(url) if url == "s3://beige/data/a.jsonl"), "{changed:?}");
    assert!(!scene.to("old").exists() && scene.kept().is_empty());
    copies.copy(&scene.source, &scene.object("a.jsonl").await, &scene.to("new")).await.unwrap();
    assert_eq!(fs::read(scene.to("new")).unwrap(), b"newer");
}

#[tokio::test]
async fn a_prefix_is_the_objects_below_it() {
    let scene = Scene::set().await;
    for key in ["data/kinds/b.jsonl", "data/kinds/a.jsonl", "data/kinds/in/c.jsonl", "data/kindsfolk.jsonl"] {
        scene.server.put(key, key.as_bytes());
    }
    let found = scene.place("kinds/").below().await.unwrap();
    let names: Vec<&Path> = found.iter().map(|(name, _)| name.as_path()).collect();
    assert_eq!(names, ["a.jsonl", "b.jsonl", "in/c.jsonl"].map(Path::new));
    assert_eq!(found[2].1.url, "s3://beige/data/kinds/in/c.jsonl");
    let nothing = scene.place("nothing").below().await.unwrap_err();
    assert!(matches!(nothing, ObjectError::Missing(_)), "{nothing:?}");
    let nothing = scene.place("nothing.jsonl").object().await.unwrap_err();
    assert_eq!(nothing.to_string(), "s3://beige/data/nothing.jsonl is not there");
}

#[tokio::test]
async fn copies_make_room_for_others_and_links_stay() {
    let scene = Scene::set().await;
    for name in ["a", "b", "c"] {
        scene.server.put(&format!("data/{name}"), name.repeat(1000).as_bytes());
    }
    let copies = scene.copies(2500);
    for name in ["a", "b", "c"] {
        copies.copy(&scene.source, &scene.object(name).await, &scene.to(name)).await.unwrap();
    }
    assert_eq!(scene.kept().len(), 2, "the first has made room");
    for name in ["a", "b", "c"] {
        assert_eq!(fs::read(scene.to(name)).unwrap(), name.repeat(1000).as_bytes());
    }
    scene.server.put("data/large", &[0; 3000]);
    let error = copies.copy(&scene.source, &scene.object("large").await, &scene.to("l")).await.unwrap_err();
    assert!(matches!(error, ObjectError::Local(Error::Room { wanted: 3000, bound: 2500, .. })), "{error:?}");
}

#[tokio::test]
async fn a_stranger_is_denied() {
    let scene = Scene::set().await;
    scene.server.put("data/a.jsonl", b"a");
    let stranger = settings(scene.server.environment_with("another-secret"));
    let place = Source::open("s3://beige/data", &stranger).unwrap().find("s3://beige/data/a.jsonl").unwrap();
    let error = place.object().await.unwrap_err();
    assert!(matches!(error, ObjectError::Denied { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains("another-secret"));
}
