//! Jobs whose data and models are objects of a bucket.

use std::fs;
use std::path::{Path, PathBuf};

use proto::v1::JobState;
use serde_json::{Value, json};
use tests::{Plan, S3Server, checkpoint};
use tonic::Code;

use crate::bad_jobs::fields;
use crate::support::{Hiring, Scene, job};

/// A trainer that may read below `s3://beige/data`.
async fn scene(server: &S3Server) -> Scene {
    let flags = vec!["--data-uri".to_owned(), "s3://beige/data".to_owned()];
    let scene = Scene::set_with(Plan::default(), None, Hiring { flags, environment: server.environment() });
    scene.await
}

/// Puts the files below `dir` into the bucket, as they lie there.
fn put_below(server: &S3Server, dir: &Path, prefix: &str) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let key = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            put_below(server, &entry.path(), &key);
        } else {
            server.put(&key, &fs::read(entry.path()).unwrap());
        }
    }
}

/// The job's files below the data root or, with a `root` in front, in the bucket.
fn of(root: &str, model: &str, more: &Value) -> Value {
    let mut spec = job(&json!({
        "model": model,
        "train_data": [format!("{root}train.jsonl"), format!("{root}kinds")],
        "evaluation": { "sts": format!("{root}pairs.tsv") },
        "metric_for_best_model": "spearman",
        "max_steps": 400,
        "save_steps": 20,
    }));
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

fn below(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_trained_on_as_files_are_also_when_they_change() {
    let server = S3Server::start().await;
    let mut scene = scene(&server).await;
    let lines = fs::read_to_string(scene.data().join("train.jsonl")).unwrap();
    fs::create_dir(scene.data().join("kinds")).unwrap();
    let kinds: Vec<&str> = lines.lines().collect();
    fs::write(scene.data().join("kinds/b.jsonl"), kinds[..7].join("\n")).unwrap();
    fs::write(scene.data().join("kinds/a.jsonl"), kinds[7..].join("\n")).unwrap();
    fs::write(scene.data().join("kinds/notes.txt"), "nothing to learn").unwrap();
    fs::write(scene.data().join("pairs.tsv"), "5\tmoss\tfern\n1\tmoss\tship\n").unwrap();
    put_below(&server, &scene.data(), "data");
    put_below(&server, Path::new(&checkpoint("xlmr-cls")), "data/models/xlmr-cls");

    scene.submit("files", &of("", &checkpoint("xlmr-cls"), &json!({}))).await.unwrap();
    let root = "s3://beige/data/";
    let objects = of(root, "s3://beige/data/models/xlmr-cls/", &json!({}));
    scene.submit("objects", &objects).await.unwrap();
    scene.until("objects", |job| job.last.is_some_and(|last| last.step >= 3)).await;
    // What it has begun with is what it goes on with.
    server.put("data/train.jsonl", kinds[..3].join("\n").as_bytes());
    fs::remove_dir_all(server.bucket().join("data/models")).unwrap();
    scene.restart().await;
    let ended = scene.ended("objects").await;
    assert_eq!(ended.state(), JobState::Succeeded, "{ended:?}");
    assert!(ended.attempt > 1, "it had ended before anything changed: {ended:?}");
    let files = scene.ended("files").await;
    assert_eq!(files.state(), JobState::Succeeded, "{files:?}");
    assert_eq!(ended.evaluations, files.evaluations);
    assert!(scene.weights("objects") == scene.weights("files"), "the weights differ");
    assert_eq!(below(&scene.output.join("objects/data")), <[PathBuf; 0]>::default(), "it is let go");
    assert_eq!(below(&scene.output.join(".data/looks")), <[PathBuf; 0]>::default());

    // Where what it began with is gone, there is no going on.
    let other = json!({ "max_steps": 100_000, "train_data": [format!("{root}train.jsonl")] });
    scene.submit("changed", &of(root, &checkpoint("xlmr-cls"), &other)).await.unwrap();
    scene.until("changed", |job| job.last.is_some_and(|last| last.step >= 3)).await;
    server.put("data/train.jsonl", kinds[..5].join("\n").as_bytes());
    for dir in [scene.output.join("changed/data/0"), scene.output.join(".data/objects")] {
        fs::remove_dir_all(dir).unwrap();
    }
    fs::create_dir(scene.output.join(".data/objects")).unwrap();
    scene.restart().await;
    let ended = scene.ended("changed").await;
    assert_eq!(ended.state(), JobState::Failed, "{ended:?}");
    let reason = "train_data[0]: s3://beige/data/train.jsonl has changed since the job began";
    assert!(ended.reason.contains(reason), "{}", ended.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_not_to_be_had_are_refused_by_field() {
    let mut server = S3Server::start().await;
    let scene = scene(&server).await;
    let line = r#"{"query": "q", "pos": ["p"], "neg": ["n"]}"#;
    server.put("data/good.jsonl", line.as_bytes());
    server.put("data/torn.jsonl", format!("{line}\n{line}\n{{\"query\": \n").as_bytes());
    server.put("data/empty.jsonl", b"\n");
    server.put("data/half/config.json", b"{");
    server.put("data/notes/a.txt", b"nothing to learn");
    server.put("secret.jsonl", line.as_bytes());
    let train = |url: &str| json!({ "train_data": [url] });
    let cases: [(Value, &str, &str); 14] = [
        (train("s3://beige/data/torn.jsonl"), "train_data[0]", "s3://beige/data/torn.jsonl: line 3"),
        (train("s3://beige/data/empty.jsonl"), "train_data[0]", "s3://beige/data/empty.jsonl is empty"),
        (train("s3://beige/data/no.jsonl"), "train_data[0]", "s3://beige/data/no.jsonl is not there"),
        (train("s3://beige/data/notes/"), "train_data[0]", "no file below it that ends in .jsonl"),
        (train("s3://beige/secret.jsonl"), "train_data[0]", "not below a data URI"),
        (train("s3://other/data/good.jsonl"), "train_data[0]", "not below a data URI"),
        (train("gs://beige/data/good.jsonl"), "train_data[0]", "not below a data URI"),
        (train("s3://beige/data/../secret.jsonl"), "train_data[0]", "climbs"),
        (train("s3://me:secret@beige/data/good.jsonl"), "train_data[0]", "a user or a password"),
        (train("http://169.254.169.254/latest/meta-data"), "train_data[0]", "of the scheme http"),
        (train("https://beige.s3.amazonaws.com/data/good.jsonl"), "train_data[0]", "of the scheme https"),
        (json!({ "model": "s3://beige/data/nothing" }), "model", "s3://beige/data/nothing is not there"),
        (json!({ "model": "s3://beige/data/half" }), "model", "s3://beige/data/half/config.json"),
        (
            json!({ "evaluation": { "sts": "s3://beige/data/no.tsv" }, "metric_for_best_model": "spearman" }),
            "evaluation.sts",
            "s3://beige/data/no.tsv is not there",
        ),
    ];
    for (more, field, part) in cases {
        let refused = scene.submit("bad", &job(&more)).await.unwrap_err();
        assert_eq!(
            (refused.code(), fields(&refused)),
            (Code::InvalidArgument, vec![field.to_owned()]),
            "{more}"
        );
        let said = refused.message();
        assert!(said.contains(part) && !said.contains("me:secret"), "{more}: {said}");
    }
    let two = train("s3://beige/data/no.jsonl");
    let refused = scene.submit("bad", &of("s3://beige/data/", "../m", &two)).await.unwrap_err();
    assert_eq!(fields(&refused), ["model", "train_data[0]", "evaluation.sts"]);

    server.stop().await;
    let refused = scene.submit("bad", &job(&train("s3://beige/data/good.jsonl"))).await.unwrap_err();
    assert!(refused.message().contains("train_data[0]: the store cannot be reached"), "{refused:?}");
}
