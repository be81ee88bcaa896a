//! Has a worker try a checkpoint out before anybody can see it, and looks at what came of it.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Golden, GoldenSource, ListedVersion, ModelKind};
use manifest::Manifest;
use proto::v1;
use proto::v1::publish_response::Step;
use proto::worker::v1::trial_report::Step as Said;
use proto::worker::v1::{TrialReport, TrialRequest, Tried};
use tokio::time;
use tonic::Streaming;

use super::golden::agrees;
use super::publish::{Answers, Ended, tell};
use crate::checkpoint::{Card, Kind};
use crate::error::{self, Defect, ManageError, Unmet};
use crate::likeness::cosine;
use crate::link::Link;
use crate::retry::Failure;
use crate::service::Service;
use crate::wire::swaps::Upload;

/// A worker that says nothing for so long is given up: no checkpoint takes longer to be read, or copied in part.
const SILENCE: Duration = Duration::from_secs(600);
/// Golden vectors of one index space are at least this alike, as everywhere.
const ALIKE: f64 = 0.999;

/// A checkpoint that loads, and what is known of it now.
#[derive(Debug)]
pub(super) struct Rehearsed {
    pub(super) manifest: Manifest,
    pub(super) kind: ModelKind,
    pub(super) architecture: String,
    pub(super) index_space: String,
    pub(super) tokenizer_sha256: String,
    pub(super) golden: Golden,
}

/// A checkpoint of the index space that is claimed, which the new one has to meet.
#[derive(Debug, PartialEq)]
pub(super) struct Rival {
    index_space: String,
    digest: String,
    texts: Vec<String>,
    /// `[texts, dimensions]`, flat.
    vectors: Vec<f32>,
}

impl Rival {
    /// Whom `upload` has to meet, among `versions` of its model; nobody where it claims no index space.
    pub(super) fn of(upload: &Upload, versions: &[ListedVersion]) -> Result<Option<Self>, Unmet> {
        let Some(claimed) = &upload.index_space else { return Ok(None) };
        let known = |listed: &&ListedVersion| listed.version.index_space == *claimed;
        let rival = |listed: &ListedVersion| {
            let golden = listed.version.golden.as_ref()?;
            let vectors = golden.vectors().ok().filter(|_| !golden.texts.is_empty())?;
            let (digest, texts) = (listed.digest.clone(), golden.texts.clone());
            Some(Self { index_space: claimed.clone(), digest, texts, vectors })
        };
        let sentence = || {
            format!(
                "no version of model {} is of index space {claimed:?} and has golden vectors to be held against",
                upload.model
            )
        };
        let rival = versions.iter().filter(known).find_map(rival);
        rival.map(Some).ok_or_else(|| Unmet {
            what: "INDEX_SPACE",
            subject: claimed.clone(),
            sentence: sentence(),
        })
    }
}

impl Service {
    /// Has a worker try the checkpoint out; another one where that dies.
    pub(super) async fn rehearse(
        &self,
        upload: &Upload,
        rival: Option<&Rival>,
        answers: &Answers,
    ) -> Result<Rehearsed, Ended> {
        let files = upload.files.iter().map(|file| v1::CheckpointFile {
            path: file.path.clone(),
            size: file.size,
            sha256: file.sha256.clone(),
        });
        let request = TrialRequest {
            model: upload.model.to_string(),
            files: files.collect(),
            pooling: upload.pooling.clone(),
            max_tokens: upload.max_tokens,
            texts: asked(upload, rival).cloned().collect(),
        };
        let nobody =
            format!("no worker that may serve model {} can be reached to try the checkpoint", upload.model);
        let mut last = not_now(&nobody);
        for link in self.idlest(upload) {
            match on(&link, &request, answers).await? {
                Ok(tried) => return Ok(judge(upload, rival, (link.seat.id.as_str(), tried))?),
                Err(failure) => {
                    let reason = failure.label();
                    tracing::info!(worker = %link.seat, reason, "a worker did not try a checkpoint out");
                    last = elsewhere(failure, &nobody)?;
                }
            }
        }
        Err(last.into())
    }

    /// Workers that may serve the model, the idlest first.
    fn idlest(&self, upload: &Upload) -> Vec<Arc<Link>> {
        let (fleet, view) = (self.dispatcher.fleet(), self.control.view());
        let may_serve = |link: &&Arc<Link>| {
            view.workers.get(&link.seat.id).is_none_or(|worker| worker.may_serve(upload.model.as_str()))
        };
        let mut links: Vec<_> =
            fleet.serving().filter(|link| link.trusted()).filter(may_serve).cloned().collect();
        links.sort_by_key(|link| link.burden().tokens);
        links
    }
}

/// Follows one worker's trial, and passes on how far it is.
async fn on(link: &Link, request: &TrialRequest, answers: &Answers) -> Result<Result<Tried, Failure>, Ended> {
    let trying = async {
        let mut reports = match link.client().trial(request.clone()).await {
            Ok(reports) => reports.into_inner(),
            Err(status) => return Ok(Err(Failure::of(status))),
        };
        loop {
            match report(&mut reports).await {
                Ok(Said::Progress(trial)) => {
                    tell(answers, Step::Progress(v1::PublishProgress { trial: Some(trial) })).await?;
                }
                Ok(Said::Tried(tried)) => return Ok(Ok(tried)),
                Err(failure) => return Ok(Err(failure)),
            }
        }
    };
    // Both others are cancel safe; a trial that is dropped is ended by the worker.
    tokio::select! {
        tried = trying => tried,
        () = link.given_up() => Ok(Err(Failure::Lost)),
        () = answers.closed() => Err(Ended::Gone),
    }
}

async fn report(reports: &mut Streaming<TrialReport>) -> Result<Said, Failure> {
    match time::timeout(SILENCE, reports.message()).await {
        Ok(Ok(Some(TrialReport { step: Some(said) }))) => Ok(said),
        Ok(Ok(Some(TrialReport { step: None }) | None)) | Err(_) => Err(Failure::Lost),
        Ok(Err(status)) => Err(Failure::of(status)),
    }
}

/// What the publisher is told if this was the last worker to ask.
///
/// # Errors
/// Where no other worker would say anything else.
fn elsewhere(failure: Failure, nobody: &str) -> Result<ManageError, ManageError> {
    match failure {
        Failure::Absent | Failure::Unsent | Failure::Lost | Failure::Leaving | Failure::Late => {
            Ok(not_now(nobody))
        }
        Failure::Busy(status) => Ok(ManageError::Refused(status)),
        // It has no store, or no room: another may have.
        Failure::Refused(status) if status.code() == tonic::Code::FailedPrecondition => {
            Ok(ManageError::Refused(status))
        }
        Failure::Refused(status) => Err(ManageError::Refused(status)),
        Failure::Defect(status) => {
            Err(Defect(format!("a worker that tries a checkpoint answered {status}")).into())
        }
    }
}

fn not_now(what: &str) -> ManageError {
    error::unreachable(what.to_owned()).into()
}

fn defect(what: &str) -> Defect {
    Defect(format!("a worker that tried a checkpoint out speaks of {what}"))
}

/// Little-endian f32; `None` where these are no numbers.
fn floats(bytes: &[u8]) -> Option<Vec<f32>> {
    let (numbers, rest) = bytes.as_chunks();
    let numbers: Vec<_> = numbers.iter().map(|&number| f32::from_le_bytes(number)).collect();
    (rest.is_empty() && numbers.iter().all(|number| number.is_finite())).then_some(numbers)
}

/// What a worker is asked to run beside its own inputs: the rival's, then the publisher's.
fn asked<'a>(upload: &'a Upload, rival: Option<&'a Rival>) -> impl Iterator<Item = &'a String> {
    let theirs = rival.into_iter().flat_map(|rival| &rival.texts);
    theirs.chain(upload.golden.iter().flat_map(|samples| &samples.golden.texts))
}

/// Holds what `worker` says against what was uploaded, against what the publisher computed, and against the index space that
/// is claimed.
fn judge(
    upload: &Upload,
    rival: Option<&Rival>,
    (worker, tried): (&str, Tried),
) -> Result<Rehearsed, ManageError> {
    let Tried { manifest, checkpoint, tokenizer_sha256, mut golden_texts, golden_vectors } = tried;
    let manifest = Manifest::parse(manifest.as_bytes()).map_err(|error| Defect(error.to_string()))?;
    let digest = manifest.digest();
    let card =
        checkpoint.as_ref().and_then(Card::of).ok_or_else(|| defect("no checkpoint that is known here"))?;
    if !manifest.is_of(&upload.files) || card.checkpoint.digest != digest {
        return Err(defect("another checkpoint than it was given").into());
    }
    let kind = match card.kind {
        Kind::Embedder => ModelKind::Embedder,
        Kind::CrossEncoder => ModelKind::CrossEncoder,
    };
    let mut vectors = floats(&golden_vectors).ok_or_else(|| defect("vectors that are none"))?;
    let row = manifest.dimensions.max(1);
    let own = golden_texts.len().checked_sub(asked(upload, rival).count());
    let own = own.filter(|_| vectors.len() == golden_texts.len() * row);
    let own = own.ok_or_else(|| defect("another number of vectors than of texts"))?;
    let asked = vectors.split_off(own * row);
    let (theirs, given) = asked.split_at(rival.map_or(0, |rival| rival.texts.len()) * row);
    let golden = if let Some(samples) = &upload.golden {
        agrees(samples, (kind, row), (worker, given))?;
        samples.golden.clone()
    } else {
        golden_texts.truncate(own);
        Golden::new(golden_texts, &vectors, GoldenSource::Trial)
    };
    let index_space = match rival {
        None => digest,
        Some(rival) => {
            meets(rival, (kind, row), theirs)?;
            rival.index_space.clone()
        }
    };
    let architecture = card.checkpoint.architecture;
    Ok(Rehearsed { manifest, kind, architecture, index_space, tokenizer_sha256, golden })
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().copied().map(f64::from).collect()
}

/// Whether `vectors` of the rival's texts, `[texts, row]`, are the rival's, as far as can be told.
fn meets(rival: &Rival, (kind, row): (ModelKind, usize), vectors: &[f32]) -> Result<(), Unmet> {
    let Rival { index_space, digest, texts: _, vectors: theirs } = rival;
    let unmet = |why: String| {
        let sentence = format!(
            "the vectors are not of index space {index_space:?}: {why}; leave index_space out to begin a space of its own"
        );
        Unmet { what: "INDEX_SPACE", subject: index_space.clone(), sentence }
    };
    if kind != ModelKind::Embedder {
        return Err(unmet("a cross-encoder has no vectors".to_owned()));
    }
    if theirs.len() != vectors.len() {
        return Err(unmet(format!("checkpoint {digest} makes vectors of another length")));
    }
    let cosines =
        vectors.chunks(row).zip(theirs.chunks(row)).map(|(ours, theirs)| cosine(&wide(ours), &wide(theirs)));
    match cosines.reduce(f64::min) {
        Some(least) if least >= ALIKE => Ok(()),
        Some(least) => Err(unmet(format!(
            "their least cosine with those of checkpoint {digest} is {least:.4}, below {ALIKE}"
        ))),
        None => Err(unmet(format!("checkpoint {digest} has no golden vectors"))),
    }
}

#[cfg(test)]
mod tests {
    use cluster::Version;
    use manifest::ManifestFile;
    use tonic::{Code, Status};

    use super::*;
    use crate::wire::swaps::Samples;

    fn files() -> Vec<ManifestFile> {
        vec![ManifestFile { path: "config.json".into(), sha256: "0".repeat(64), size: 1 }]
    }

    fn upload(index_space: Option<&str>) -> Upload {
        Upload {
            model: cluster::Name::parse("m").unwrap(),
            files: files(),
            pooling: String::new(),
            max_tokens: None,
            parent: None,
            index_space: index_space.map(str::to_owned),
            evaluation: std::collections::BTreeMap::new(),
            job: None,
            promote: None,
            golden: None,
        }
    }

    fn manifest() -> Manifest {
        Manifest::new(files(), 2, 512, Some("cls".into()), true)
    }

    /// What an honest worker says that was asked for the texts of `rival`, and made these of them.
    fn tried(asked: &[&str], vectors: &[f32]) -> Tried {
        let texts = std::iter::once("own").chain(asked.iter().copied()).map(str::to_owned);
        Tried {
            manifest: manifest().canonical(),
            checkpoint: Some(v1::Checkpoint {
                digest: manifest().digest(),
                kind: v1::ModelKind::Embedder.into(),
                architecture: "BertModel".into(),
                ..v1::Checkpoint::default()
            }),
            tokenizer_sha256: "t".into(),
            golden_texts: texts.collect(),
            golden_vectors: vectors.iter().flat_map(|number| number.to_le_bytes()).collect(),
        }
    }

    fn rival(vectors: &[f32]) -> Rival {
        let texts = vec!["theirs".to_owned(); vectors.len() / 2];
        Rival { index_space: "space".into(), digest: "r".into(), texts, vectors: vectors.to_vec() }
    }

    #[test]
    fn a_checkpoint_that_claims_nothing_has_a_space_of_its_own() {
        let found = judge(&upload(None), None, ("w1", tried(&[], &[0.6, 0.8]))).unwrap();
        assert_eq!((found.index_space, found.kind), (manifest().digest(), ModelKind::Embedder));
        assert_eq!(found.golden, Golden::new(vec!["own".into()], &[0.6, 0.8], GoldenSource::Trial));
    }

    #[test]
    fn a_space_is_granted_where_the_vectors_are_alike() {
        #[track_caller]
        fn check(rival: &Rival, ours: &[f32], expected: Result<&str, Code>) {
            let texts: Vec<_> = rival.texts.iter().map(String::as_str).collect();
            let tried = tried(&texts, &[&[1.0, 0.0], ours].concat());
            let found = judge(&upload(Some("space")), Some(rival), ("w1", tried));
            let found = found.map(|found| found.index_space).map_err(|error| Status::from(error).code());
            assert_eq!(found, expected.map(str::to_owned));
        }
        check(&rival(&[1.0, 0.0]), &[0.5, 0.0], Ok("space"));
        check(&rival(&[1.0, 0.0, 0.0, 1.0]), &[1.0, 0.01, 0.0, 1.0], Ok("space"));
        check(&rival(&[1.0, 0.0, 0.0, 1.0]), &[1.0, 0.0, 0.1, 1.0], Err(Code::FailedPrecondition));
        check(&rival(&[1.0, 0.0]), &[0.0, 0.0], Err(Code::FailedPrecondition));
        let wider = Rival { vectors: vec![1.0, 0.0, 0.0], ..rival(&[1.0, 0.0]) };
        check(&wider, &[1.0, 0.0], Err(Code::FailedPrecondition));
    }

    #[test]
    fn what_the_publisher_computed_is_kept_where_the_worker_agrees() {
        let samples = |vectors: &[f32]| Samples {
            kind: ModelKind::Embedder,
            width: 2,
            golden: Golden::new(vec!["a".into(), "b".into()], vectors, GoldenSource::Publisher),
        };
        let found = |theirs: &[f32], rival: Option<&Rival>| {
            let upload = Upload { golden: Some(samples(theirs)), ..upload(rival.map(|_| "space")) };
            let texts: Vec<_> = asked(&upload, rival).map(String::as_str).collect();
            let ours = match rival {
                None => vec![1.0, 0.0, 0.6, 0.8, 0.8, 0.6],
                Some(_) => vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8, 0.8, 0.6],
            };
            judge(&upload, rival, ("w1", tried(&texts, &ours))).map_err(Status::from)
        };
        let theirs = [0.6, 0.801, 0.8, 0.6];
        for rival in [None, Some(rival(&[0.0, 1.0]))] {
            assert_eq!(found(&theirs, rival.as_ref()).unwrap().golden, samples(&theirs).golden);
            let refused = found(&[0.6, 0.8, 0.6, 0.8], rival.as_ref()).unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            assert!(refused.message().starts_with("begin.golden[1], \"b\": "), "{}", refused.message());
        }
        let status = found(&theirs, Some(&rival(&[1.0, 0.0]))).unwrap_err();
        assert!(status.message().contains("index space"), "{status}");
    }

    #[test]
    fn a_worker_that_speaks_of_something_else_is_not_believed() {
        let honest = || tried(&[], &[0.6, 0.8]);
        let other = Manifest::new(files(), 2, 256, None, true);
        let cases = [
            Tried { manifest: "{}".into(), ..honest() },
            Tried { manifest: other.canonical(), ..honest() },
            Tried { checkpoint: None, ..honest() },
            Tried { golden_vectors: vec![0; 7], ..honest() },
            Tried { golden_vectors: vec![0; 12], ..honest() },
            tried(&[], &[0.6, f32::NAN]),
            Tried { golden_texts: Vec::new(), ..honest() },
        ];
        for said in cases {
            let error = judge(&upload(None), None, ("w1", said.clone())).unwrap_err();
            assert_eq!(Status::from(error).code(), Code::Internal, "{said:?}");
        }
    }

    #[test]
    fn a_rival_is_a_version_of_the_space_with_golden_vectors() {
        let version = |space: &str, golden| ListedVersion {
            model: "m".into(),
            digest: format!("of {space}"),
            version: Version {
                manifest: manifest(),
                stored: true,
                kind: ModelKind::Embedder,
                architecture: String::new(),
                index_space: space.into(),
                tokenizer_sha256: String::new(),
                parent: None,
                evaluation: std::collections::BTreeMap::new(),
                golden,
                job: None,
                created_unix_ms: 0,
            },
        };
        let golden = Some(Golden::new(vec!["theirs".into()], &[1.0, 0.0], GoldenSource::Trial));
        let versions = [version("other", golden.clone()), version("bare", None), version("space", golden)];
        let found = Rival::of(&upload(Some("space")), &versions).unwrap().unwrap();
        assert_eq!((found.digest.as_str(), found.vectors), ("of space", vec![1.0, 0.0]));
        assert_eq!(Rival::of(&upload(None), &versions), Ok(None));
        for nobody in ["bare", "nowhere"] {
            assert!(Rival::of(&upload(Some(nobody)), &versions).is_err(), "{nobody}");
        }
    }
}
