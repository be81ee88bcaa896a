//! What becomes of a trained model: it is held against what is served, published, and swapped in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::JobGate;
use manifest::ManifestFile;
use model::{Device, Overrides};
use proto::v1::{
    CheckpointFile, GetModelRequest, GetSwapRequest, GoldenSample, Metric, PublishBegin, Swap, SwapPlan,
    SwapState,
};
use publisher::{Cut, Outgoing, persist};
use tokio::runtime::Handle;
use tokio::task;
use tokio::time::{self, Instant};
use tonic::{Code, Status};

use super::gateway::{Gateway, Gateways, Served, waiting};
use super::journal::{Journal, Lost};
use super::spec::{Gate, Publish, Spec};
use crate::error::TrainError;
use crate::evaluate::{CrossEncoder, Directory, Metrics};
use crate::golden;
use crate::job::{Job, Kind};
use crate::rank;

/// How long a server that is busy or away is waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a swap may take that was asked for.
const SWAP: Duration = Duration::from_secs(1_800);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(500);

/// Why a trained model was not handed over.
#[derive(Debug)]
pub(super) enum Undelivered {
    /// It cannot be.
    Failed(String),
    /// It is wanted no more.
    Cancelled,
    /// Somebody else owns the job.
    Lost,
}

impl From<Lost> for Undelivered {
    fn from(Lost: Lost) -> Self {
        Self::Lost
    }
}

impl From<Status> for Undelivered {
    fn from(status: Status) -> Self {
        Self::Failed(match status.message() {
            "" => format!("the gateway answered {:?} and said no more", status.code()),
            message => message.to_owned(),
        })
    }
}

/// Publishes the trained model of a job, and has the name mean it where the gate lets it through. What was done in an
/// earlier attempt is not done again.
pub(super) async fn deliver(
    spec: &Spec,
    publish: &Publish,
    gateways: &Gateways,
    journal: &mut Journal,
) -> Result<(), Undelivered> {
    let reached = async { Ok(gateways.connect().await?) };
    let gateway = unless_cancelled(journal, reached).await?;
    let model = PathBuf::from(&journal.job.outcome.model);
    let asked = async { Ok(served(&gateway, &publish.alias).await?) };
    let served = unless_cancelled(journal, asked).await?;
    if let Some(gate) = &publish.gate
        && journal.job.outcome.gate.is_none()
    {
        let compared = compare(&spec.job, gate, &model, (&gateway, publish, served.as_deref()));
        let found = unless_cancelled(journal, compared).await?;
        journal.event(verdict(&found));
        journal.job.outcome.gate = Some(found);
    }
    journal.write().await?;
    let passed = journal.job.outcome.gate.as_ref().is_none_or(|gate| gate.passed);
    let promote = publish.promote && passed;
    let plan = promote.then(|| SwapPlan { new_space: publish.new_space, ..SwapPlan::default() });
    let digest = unless_cancelled(journal, upload(&gateway, (&model, publish), plan, journal)).await?;
    journal.event(format!("published as {}@{digest}", publish.alias));
    journal.job.outcome.alias.clone_from(&publish.alias);
    journal.job.outcome.digest.clone_from(&digest);
    journal.write().await?;
    if !promote {
        return Ok(());
    }
    // A name that is new means its first checkpoint without a swap.
    if served.is_none() {
        return Ok(());
    }
    follow(&gateway, &publish.alias, &digest, journal).await
}

/// What `work` comes to, unless the job is wanted no more before. What a gateway had begun by then stands.
async fn unless_cancelled<T>(
    journal: &Journal,
    work: impl Future<Output = Result<T, Undelivered>>,
) -> Result<T, Undelivered> {
    tokio::select! {
        () = journal.cancelled() => Err(Undelivered::Cancelled),
        done = work => done,
    }
}

/// The digest of what a name means; none where it means nothing yet.
async fn served(gateway: &Gateway, alias: &str) -> Result<Option<String>, Status> {
    let asked = GetModelRequest { name: alias.to_owned() };
    let call = async || gateway.models().get(gateway.request(asked.clone())).await;
    match persist(PATIENCE, waiting, call).await {
        Ok(found) => Ok(found.into_inner().checkpoint.map(|checkpoint| checkpoint.digest)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// Measures the trained model as it would be served, and what is served, on the same data.
async fn compare(
    job: &Job,
    gate: &Gate,
    model: &Path,
    (gateway, publish, served): (&Gateway, &Publish, Option<&str>),
) -> Result<JobGate, Undelivered> {
    let (job, model, metric) = (job.clone(), model.to_owned(), gate.metric.clone());
    let mut now = served.map(|digest| Served {
        gateway: gateway.clone(),
        model: format!("{}@{digest}", publish.alias),
        runtime: Handle::current(),
    });
    let work = move || -> Result<(f64, Option<f64>), TrainError> {
        let none = || TrainError::Unsupported("there is no evaluation to compare by".to_owned());
        let evaluation = rank::evaluation(&job)?.ok_or_else(none)?;
        let of = |metrics: Metrics| metrics.get(&metric).copied().ok_or_else(none);
        let (now, alone) = (now.as_mut(), Overrides::default());
        let (trained, served) = match job.kind {
            Kind::Embedder => {
                let trained = evaluation.measure(&mut Directory::open(&model, &alone, Device::Cpu)?)?;
                (trained, now.map(|now| evaluation.measure(now)))
            }
            Kind::Reranker => {
                let trained = evaluation.measure_scorer(&mut CrossEncoder::open(&model, &alone)?)?;
                (trained, now.map(|now| evaluation.measure_scorer(now)))
            }
        };
        Ok((of(trained)?, served.transpose()?.map(of).transpose()?))
    };
    let measured =
        task::spawn_blocking(work).await.map_err(|error| Undelivered::Failed(error.to_string()))?;
    let (trained, then) = measured.map_err(|error| Undelivered::Failed(error.to_string()))?;
    Ok(JobGate {
        metric: gate.metric.clone(),
        margin: gate.margin,
        served_digest: served.unwrap_or_default().to_owned(),
        served: then,
        trained,
        passed: passes(trained, then, gate.margin),
    })
}

/// Whether what was trained is to take the place of what is served: by more than `margin`, or where nothing is served.
fn passes(trained: f64, served: Option<f64>, margin: f64) -> bool {
    served.is_none_or(|served| trained - served > margin)
}

fn verdict(gate: &JobGate) -> String {
    let JobGate { metric, margin, served, trained, passed, .. } = gate;
    let decided = if *passed { "the gate lets it through" } else { "the gate holds it back" };
    match served {
        Some(served) => {
            format!(
                "{decided}: {metric} is {trained:.4}, that of what is served {served:.4}, more than {margin} above it is wanted"
            )
        }
        None => format!("{decided}: {metric} is {trained:.4}, and nothing is served under the name"),
    }
}

/// Uploads what the store lacks, and begins the swap that `promote` plans; answers the digest.
async fn upload(
    gateway: &Gateway,
    (model, publish): (&Path, &Publish),
    promote: Option<SwapPlan>,
    journal: &Journal,
) -> Result<String, Undelivered> {
    let dir = model.to_owned();
    let read = move || contents(&dir);
    let read = task::spawn_blocking(read).await.map_err(|error| Undelivered::Failed(error.to_string()))?;
    let (files, golden) = read.map_err(|failure| Undelivered::Failed(failure.to_string()))?;
    let begin = PublishBegin {
        model: publish.alias.clone(),
        files: files.iter().map(file).collect(),
        evaluation: metrics(journal),
        job: journal.fence.job.to_string(),
        job_owner_revision: journal.fence.owner_revision,
        promote,
        golden,
        ..PublishBegin::default()
    };
    let mut here = None;
    let attempt = async || {
        let call = async |outgoing: Outgoing| gateway.models().publish(gateway.unhurried(outgoing)).await;
        match publisher::attempt(call, model, &begin, &files, &mut |_| ()).await {
            Ok(version) => Ok(Some(version)),
            Err(Cut::Status(status)) => Err(status),
            Err(Cut::Here(failure)) => {
                here = Some(failure.to_string());
                Ok(None)
            }
        }
    };
    let version = persist(PATIENCE, waiting, attempt).await?;
    let version = version.ok_or_else(|| Undelivered::Failed(here.unwrap_or_default()))?;
    Ok(version.checkpoint.unwrap_or_default().digest)
}

/// The files of a finished model, and what its trainer made of the golden inputs. Blocks.
fn contents(model: &Path) -> Result<(Vec<ManifestFile>, Vec<GoldenSample>), publisher::Failure> {
    let files = publisher::hash(model, &publisher::find(model)?, &|_| ())?;
    let golden = model.with_file_name(golden::FILE);
    // A release that did not ask for them may have finished the model.
    let golden = if golden.exists() { publisher::golden(&golden, model)? } else { Vec::new() };
    Ok((files, golden))
}

fn file(file: &ManifestFile) -> CheckpointFile {
    CheckpointFile { path: file.path.clone(), size: file.size, sha256: file.sha256.clone() }
}

/// What the version's record says of its quality: the last evaluation, and what the gate compared.
fn metrics(journal: &Journal) -> Vec<Metric> {
    let metric = |name: String, value: f64| Metric { name, value };
    let step = journal.job.outcome.step;
    let evaluation = journal.job.evaluations.iter().find(|evaluation| evaluation.step == step);
    let own = evaluation.into_iter().flat_map(|evaluation| &evaluation.metrics);
    let mut metrics: Vec<Metric> = own.map(|(name, value)| metric(name.clone(), *value)).collect();
    if let Some(gate) = &journal.job.outcome.gate {
        metrics.push(metric(format!("gate_{}", gate.metric), gate.trained));
        metrics.extend(gate.served.map(|served| metric(format!("gate_served_{}", gate.metric), served)));
        metrics.push(metric("gate_margin".to_owned(), gate.margin));
        metrics.push(metric("gate_passed".to_owned(), f64::from(u8::from(gate.passed))));
    }
    metrics
}

/// Waits for the swap that was begun.
async fn follow(
    gateway: &Gateway,
    alias: &str,
    digest: &str,
    journal: &mut Journal,
) -> Result<(), Undelivered> {
    let begun = Instant::now();
    let asked = GetSwapRequest { model: alias.to_owned() };
    loop {
        let call = async || gateway.models().get_swap(gateway.request(asked.clone())).await;
        let swap: Swap = persist(PATIENCE, waiting, call).await?.into_inner();
        if swap.to == digest && journal.job.outcome.swap_id != swap.id {
            journal.event(format!("swap {} is under way", swap.id));
            journal.job.outcome.swap_id.clone_from(&swap.id);
        }
        match swap.state() {
            _ if swap.to != digest => {
                return Err(Undelivered::Failed(format!("another swap took its place, to {}", swap.to)));
            }
            SwapState::Committed | SwapState::Retired => {
                journal.event(format!("{alias} means the new checkpoint, at epoch {}", swap.epoch));
                return Ok(journal.write().await?);
            }
            SwapState::Aborted | SwapState::RolledBack => {
                return Err(Undelivered::Failed(format!("the swap did not come about: {}", swap.reason)));
            }
            SwapState::Unspecified | SwapState::Requested | SwapState::Preparing | SwapState::Trial => {}
        }
        if begun.elapsed() > SWAP {
            return Err(Undelivered::Failed(format!("swap {} takes too long", swap.id)));
        }
        journal.write().await?;
        time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_wants_more_than_its_margin() {
        for (trained, served, margin, expected) in [
            (0.75, Some(0.5), 0.0, true),
            (0.5, Some(0.75), 0.0, false),
            (0.5, Some(0.5), 0.0, false),
            (0.75, Some(0.5), 0.25, false),
            (0.75, Some(0.5), 0.125, true),
            (0.5, Some(0.75), -0.5, true),
            (0.25, Some(0.75), -0.5, false),
            (0.1, None, 0.5, true),
            (f64::NAN, Some(0.5), 0.0, false),
        ] {
            assert_eq!(passes(trained, served, margin), expected, "{trained} {served:?} {margin}");
        }
    }

    #[test]
    fn the_golden_inputs_lie_beside_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::write(model.join(name), name).unwrap();
        }
        // As a release leaves it that does not write them.
        let (files, samples) = contents(&model).unwrap();
        assert_eq!((files.len(), samples), (3, Vec::new()));
        let file = dir.path().join("golden.jsonl");
        std::fs::write(&file, "{\"text\": \"a\", \"embedding\": [1]}\n").unwrap();
        let (files, samples) = contents(&model).unwrap();
        assert_eq!((files.len(), samples[0].text.as_str()), (3, "a"), "they are no part of it");
        std::fs::write(&file, "{\"text\"").unwrap();
        let sentence = contents(&model).unwrap_err().to_string();
        assert!(sentence.starts_with(&format!("{}, line 1: ", file.display())), "{sentence}");
    }
}
