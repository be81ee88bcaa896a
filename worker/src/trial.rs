//! A checkpoint in the store that nobody can see yet is tried out: brought here, verified, loaded beside those that
//! serve, run on its golden inputs in single precision by the processor, and let go again. Nothing of it is ever offered.

use std::sync::Arc;

use manifest::ManifestFile;
use model::{Checkpoint, Device, Kind, Overrides, Precision};
use proto::v1::{Preparation, Stage};
use proto::worker::v1::{TrialReport, TrialRequest, Tried, trial_report};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::apart::apart;
use crate::catalogue::describe;
use crate::golden;
use crate::memory::Memory;
use crate::models::{Built, Place};
use crate::prepare::{Failure, Files, Made, Shop, Step, Told, Work};
use crate::wire::{Fault, InvalidRequest};

/// Texts that a publisher may give.
const MOST_TEXTS: usize = 256;
/// Bytes of one of them; it is cut to the window anyway.
const LONGEST_TEXT: usize = 64 << 10;

/// Tries checkpoints out, one at a time.
#[derive(Clone, Debug)]
pub struct Trials {
    shop: Arc<Shop>,
    worker: String,
    /// A second trial is not kept waiting: another worker may be free.
    one: Arc<Semaphore>,
}

/// What is to be tried.
#[derive(Clone, Debug)]
pub struct Trial {
    model: String,
    files: Vec<ManifestFile>,
    overrides: Overrides,
    texts: Vec<String>,
}

/// Why there is no trial, or none that succeeded.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// Repair the request.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// Ask another worker, or come back.
    #[error("another checkpoint is being tried out here")]
    Busy,
    /// By what the publisher can do about it.
    #[error(transparent)]
    Failed(#[from] Failure),
}

impl Trial {
    /// Understands a request.
    ///
    /// # Errors
    /// Which field is at fault.
    pub fn parse(request: TrialRequest) -> Result<Self, InvalidRequest> {
        let TrialRequest { model, files, pooling, max_tokens, texts } = request;
        let invalid =
            |field: &str, why: String| InvalidRequest { field: field.to_owned(), fault: Fault::Unfit(why) };
        let mut files: Vec<ManifestFile> = files
            .into_iter()
            .map(|file| ManifestFile { path: file.path, sha256: file.sha256, size: file.size })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        manifest::check(&files).map_err(|error| invalid("files", error.to_string()))?;
        let pooling = match pooling.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|reason| invalid("pooling", reason))?),
        };
        let max_tokens = match max_tokens {
            Some(0) => return Err(invalid("max_tokens", "it is 0".to_owned())),
            tokens => tokens.map(|tokens| tokens as usize),
        };
        if texts.len() > MOST_TEXTS {
            let why = format!("there are {}, and at most {MOST_TEXTS} are taken", texts.len());
            return Err(invalid("texts", why));
        }
        if let Some(at) = texts.iter().position(|text| text.len() > LONGEST_TEXT) {
            let why = format!("it has {} bytes, and at most {LONGEST_TEXT} are taken", texts[at].len());
            return Err(invalid(&format!("texts[{at}]"), why));
        }
        Ok(Self { model, files, overrides: Overrides { pooling, max_tokens }, texts })
    }
}

impl Trials {
    /// Of a worker with this id.
    #[must_use]
    pub fn new(shop: Arc<Shop>, worker: String) -> Self {
        Self { shop, worker, one: Arc::new(Semaphore::new(1)) }
    }

    /// Tries a checkpoint out, and reports to `reports`: how far it is, and at last what was found. It ends early when
    /// nobody listens any more.
    ///
    /// # Errors
    /// [`TrialError`].
    pub async fn run(&self, trial: Trial, reports: &mpsc::Sender<TrialReport>) -> Result<Tried, TrialError> {
        let _alone = self.one.try_acquire().map_err(|_| TrialError::Busy)?;
        let cancel = CancellationToken::new();
        let _if_dropped = cancel.clone().drop_guard();
        let (steps, mut step) = watch::channel(Step { stage: Stage::Unspecified, done: 0, total: 0 });
        let told: Told = Arc::new(move |step| {
            steps.send_replace(step);
        });
        let model = trial.model.clone();
        let mut tried = std::pin::pin!(self.attempt(trial, told, cancel.clone()));
        loop {
            // All arms are cancel safe, or not polled again.
            tokio::select! {
                tried = &mut tried => return Ok(tried?),
                () = reports.closed() => return Err(Failure::Cancelled.into()),
                Ok(()) = step.changed() => {
                    let report = self.progress(&model, *step.borrow_and_update());
                    // A reader that is slow misses some.
                    let _ = reports.try_send(report);
                }
            }
        }
    }

    async fn attempt(&self, trial: Trial, told: Told, cancel: CancellationToken) -> Result<Tried, Failure> {
        let Trial { model, files, overrides, texts } = trial;
        let Some(source) = self.shop.source.clone() else {
            return Err(Failure::Absent("this worker has no store".to_owned()));
        };
        // Beside the device, and beside what checkpoints may take of it: else nothing could be published where two do
        // not fit, which are swapped in waves.
        let place = Place { precision: Precision::F32, device: Device::Cpu };
        let memory = Memory::new(place.device, None);
        let files = Files::Stored { source, files, overrides };
        let work = Work { files, golden: None, place, memory, told: told.clone(), cancel };
        let bench = self.shop.bench().await;
        tracing::info!(model, "a checkpoint is tried out");
        let work = move || {
            let _until_done = bench;
            let made = work.run(None)?;
            told(Step { stage: Stage::Warming, done: 0, total: 0 });
            examine(made, texts)
        };
        apart("try-out", self.shop.effort(), work).await?
    }

    fn progress(&self, model: &str, Step { stage, done, total }: Step) -> TrialReport {
        let progress = Preparation {
            worker: self.worker.clone(),
            model: model.to_owned(),
            stage: stage.into(),
            bytes_done: done,
            bytes_total: total,
            ..Preparation::default()
        };
        TrialReport { step: Some(trial_report::Step::Progress(progress)) }
    }
}

/// Runs a checkpoint on its golden inputs, describes it, and lets it go.
fn examine(Made { checkpoint, built, cached }: Made, texts: Vec<String>) -> Result<Tried, Failure> {
    let Built { resident, tokenizer, golden_cosine: _ } = built;
    let texts = golden::texts(checkpoint.card().kind, texts);
    let found = golden::answers(&resident.encoder, &tokenizer, checkpoint.card(), &texts);
    resident.encoder.unload();
    drop(cached);
    let numbers = found.map_err(|reason| Failure::refused(cluster::NackReason::Golden, reason))?;
    if let Some(at) = numbers.iter().position(|number| !number.is_finite()) {
        let text = at / width(&checkpoint);
        let detail = format!("what it makes of golden text {text} is no number");
        return Err(Failure::refused(cluster::NackReason::Golden, detail));
    }
    Ok(Tried {
        manifest: checkpoint.manifest().canonical(),
        checkpoint: Some(describe(checkpoint.card(), checkpoint.digest(), checkpoint.index_space())),
        tokenizer_sha256: checkpoint.tokenizer_sha256(),
        golden_texts: texts,
        golden_vectors: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
    })
}

/// Numbers that a checkpoint makes of a text.
fn width(checkpoint: &Checkpoint) -> usize {
    match checkpoint.card().kind {
        Kind::Embedder => checkpoint.card().dimensions.max(1),
        Kind::CrossEncoder => 1,
    }
}

#[cfg(test)]
mod tests {
    use proto::v1::CheckpointFile;

    use super::*;

    fn request() -> TrialRequest {
        let file = |path: &str| CheckpointFile { path: path.into(), size: 1, sha256: "0".repeat(64) };
        TrialRequest {
            model: "m".into(),
            files: vec![file("config.json"), file("1_Pooling/config.json")],
            pooling: "cls".into(),
            max_tokens: Some(128),
            texts: vec!["a text".into()],
        }
    }

    #[test]
    fn a_request_is_understood() {
        let trial = Trial::parse(request()).unwrap();
        assert_eq!(trial.files[0].path, "1_Pooling/config.json", "in order");
        assert_eq!(trial.overrides, Overrides { pooling: Some(model::Pooling::Cls), max_tokens: Some(128) });
        let plain = TrialRequest { pooling: String::new(), max_tokens: None, ..request() };
        assert_eq!(Trial::parse(plain).unwrap().overrides, Overrides::default());
    }

    #[test]
    fn what_is_wrong_with_a_request_is_named() {
        #[track_caller]
        fn check(request: TrialRequest, field: &str, part: &str) {
            let invalid = Trial::parse(request).unwrap_err();
            assert_eq!(invalid.field, field);
            assert!(invalid.to_string().contains(part), "{invalid}");
        }
        check(TrialRequest { files: Vec::new(), ..request() }, "files", "0 files");
        let mut climbing = request();
        climbing.files[0].path = "../config.json".into();
        check(climbing, "files", "\"../config.json\" is not a plain path");
        let mut twice = request();
        twice.files[0].path = "1_Pooling/config.json".into();
        check(twice, "files", "not behind the one before it");
        check(TrialRequest { pooling: "max".into(), ..request() }, "pooling", "\"max\"");
        check(TrialRequest { max_tokens: Some(0), ..request() }, "max_tokens", "it is 0");
        check(TrialRequest { texts: vec![String::new(); MOST_TEXTS + 1], ..request() }, "texts", "257");
        check(TrialRequest { texts: vec!["x".repeat(LONGEST_TEXT + 1)], ..request() }, "texts[0]", "65537");
    }
}
