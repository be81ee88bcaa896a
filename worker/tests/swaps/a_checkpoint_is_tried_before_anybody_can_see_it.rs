use std::fs;
use std::path::{Path, PathBuf};

use manifest::Manifest;
use proto::v1::ModelKind;
use tonic::Code;

use crate::checkpoint;
use crate::support::{Scene, files, floats, request};
use crate::variants::{Distance, variant};

#[tokio::test]
async fn and_what_it_makes_of_the_golden_inputs_is_told() {
    let scene = Scene::set().await;
    let worker = scene.worker("w1", &[]).await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/checkpoints/bert-cls");
    let files = files(&dir);
    let _publication = scene.upload(&dir, &files).await;
    let mut asked = request(&files);
    asked.texts = vec!["a text of the publisher".into()];
    asked.files.reverse();
    let tried = worker.try_out(asked).await.unwrap();

    let manifest = Manifest::parse(tried.manifest.as_bytes()).unwrap();
    let told = tried.checkpoint.unwrap();
    assert_eq!((manifest.digest(), &manifest.files), (told.digest.clone(), &files));
    assert_eq!(
        (told.kind(), told.pooling.as_str(), told.index_space.as_str()),
        (ModelKind::Embedder, "cls", &*told.digest)
    );
    assert_eq!(tried.golden_texts.len(), 9);
    assert_eq!(tried.golden_texts[8], "a text of the publisher");
    let numbers = floats(&tried.golden_vectors);
    assert_eq!(numbers.len(), 9 * manifest.dimensions);
    let rows: Vec<&[f32]> = numbers.chunks(manifest.dimensions).collect();
    assert!(rows.iter().all(|row| (row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-4), "normalised");
    assert!(rows.windows(2).all(|pair| pair[0] != pair[1]));
    assert_eq!(worker.until("a report", |_| true).await.ready, []);
    assert!(scene.view.borrow().ready.is_empty());
}

#[tokio::test]
async fn a_cross_encoder_scores_pairs() {
    let scene = Scene::set().await;
    let worker = scene.worker("w1", &[]).await;
    let dir = checkpoint("xlmr-cross");
    let files = files(Path::new(&dir));
    let _publication = scene.upload(Path::new(&dir), &files).await;
    let tried = worker.try_out(request(&files)).await.unwrap();
    assert_eq!(tried.checkpoint.unwrap().kind(), ModelKind::CrossEncoder);
    let scores = floats(&tried.golden_vectors);
    assert_eq!((scores.len(), tried.golden_texts.len()), (8, 8));
    assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
}

#[tokio::test]
async fn what_is_wrong_with_it_is_said() {
    let scene = Scene::set().await;
    let worker = scene.worker("w1", &[]).await;
    let whole = PathBuf::from(checkpoint("bert-cls"));
    let odd = variant(Path::new(&checkpoint("bert-cls")), 3, Distance::Kin, scene.dir.path());
    let config = fs::read_to_string(odd.join("config.json")).unwrap();
    fs::write(odd.join("config.json"), config.replace("gelu", "swish")).unwrap();
    let paths = files(&whole).iter().map(|file| PathBuf::from(&file.path)).collect();
    let odd_files = manifest::hash(&odd, paths).unwrap();
    let _publication = scene.upload(&odd, &odd_files).await;
    let refused = worker.try_out(request(&odd_files)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let sentence = refused.message();
    assert!(sentence.contains("config.json") && sentence.contains("swish"), "{sentence}");

    let _publication = scene.upload(&whole, &files(&whole)).await;
    let refused = worker.try_out(request(&files(&whole)[..1])).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let mut absent = files(&whole);
    absent[0].sha256 = "0".repeat(64);
    let refused = worker.try_out(request(&absent)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("is not in the store"), "{}", refused.message());
    let refused = worker.try_out(request(&[])).await.unwrap_err();
    assert_eq!((refused.code(), refused.message().split(':').next()), (Code::InvalidArgument, Some("files")));
}
