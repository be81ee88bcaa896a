//! The calls of `Models` that change something, taken apart.

use std::collections::{BTreeMap, BTreeSet};

use cluster::{CanaryPlan, Name, SwapPlan};
use manifest::ManifestFile;
use proto::v1;

use super::{Fault, InvalidRequest, alias, digest_in, invalid};
use crate::checkpoint::Digest;

mod golden;
#[cfg(test)]
mod tests;

pub use golden::Samples;

/// Metrics of one evaluation.
const METRICS: usize = 256;
/// Bytes of a name that is free text: a metric, an index space.
const LABEL_BYTES: usize = 200;
/// Bytes of one chunk of a file.
const CHUNK_BYTES: usize = 1 << 20;
/// The longest time in a plan, in seconds: a month.
const LONGEST: u32 = 31 * 24 * 3600;
/// All callers, or all calls, in thousandths.
const ALL: u32 = 1000;
/// The most times slower that a checkpoint on trial may be asked to be let pass.
const RATIO: f64 = 1000.0;

/// A checkpoint that is to be published.
#[derive(Clone, Debug, PartialEq)]
pub struct Upload {
    /// The model.
    pub model: Name,
    /// Its files, ascending by path.
    pub files: Vec<ManifestFile>,
    /// What the publisher says in place of the files; empty where the files say it.
    pub pooling: String,
    /// Likewise.
    pub max_tokens: Option<u32>,
    /// The checkpoint it was made of.
    pub parent: Option<Digest>,
    /// The index space it claims; `None` for one of its own.
    pub index_space: Option<String>,
    /// What its makers measured.
    pub evaluation: BTreeMap<String, f64>,
    /// The job that made it.
    pub job: Option<Job>,
    /// How to go on to a swap, if at all.
    pub promote: Option<SwapPlan>,
    /// What the publisher computed of some inputs.
    pub golden: Option<Samples>,
}

/// A fine-tuning job, as a publisher names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which one.
    pub name: Name,
    /// When its owner took it, where that is to be compared.
    pub owner_revision: Option<i64>,
}

/// The first digits of a digest, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(String);

/// A checkpoint of a model, as a caller names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The model.
    pub model: Name,
    /// The checkpoint.
    pub digest: Prefix,
}

/// What a collection may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collection {
    /// Of which model; `None` for all.
    pub model: Option<Name>,
    /// Versions of each model to keep beside those in use.
    pub keep: usize,
    /// Only say what would be done.
    pub dry_run: bool,
}

impl Prefix {
    fn parse(field: &str, text: &str) -> Result<Self, InvalidRequest> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.is_empty() {
            return Err(invalid(field, Fault::Empty));
        }
        if text.len() > 64 || !text.bytes().all(hex) {
            let why = "a digest, or the beginning of one, is up to 64 lower-case hexadecimal digits";
            return Err(invalid(field, Fault::Malformed(why.to_owned())));
        }
        Ok(Self(text.to_owned()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What a caller is told whose prefix names `count` versions.
    #[must_use]
    pub fn ambiguous(&self, count: usize) -> InvalidRequest {
        invalid("digest", Fault::Malformed(format!("{} is how {count} versions begin", self.0)))
    }

    /// The whole digest, where that is what was given.
    #[must_use]
    pub fn whole(&self) -> Option<Digest> {
        Digest::parse(&self.0)
    }
}

/// Takes the first message of an upload apart. `most` are the bytes that a checkpoint may have.
///
/// # Errors
/// Names the first field at fault.
pub fn upload(wire: v1::PublishRequest, most: u64) -> Result<Upload, InvalidRequest> {
    let v1::PublishRequest { step } = wire;
    let Some(v1::publish_request::Step::Begin(begin)) = step else {
        return Err(invalid("begin", Fault::Malformed("it must be the first message".to_owned())));
    };
    let v1::PublishBegin {
        model,
        files,
        pooling,
        max_tokens,
        parent,
        index_space,
        evaluation,
        job,
        job_owner_revision,
        promote,
        golden,
    } = begin;
    if !["", "cls", "mean", "last"].contains(&pooling.as_str()) {
        let why = format!("{pooling:?} is none of cls, mean and last");
        return Err(invalid("begin.pooling", Fault::Malformed(why)));
    }
    if max_tokens == Some(0) {
        return Err(outside("begin.max_tokens", 0, u32::MAX));
    }
    Ok(Upload {
        model: alias("begin.model", &model)?,
        files: self::files(files, most)?,
        pooling,
        max_tokens,
        parent: given(&parent).map(|parent| digest_in("begin.parent", parent)).transpose()?,
        index_space: given(&index_space).map(|space| label("begin.index_space", space)).transpose()?,
        evaluation: metrics(evaluation)?,
        job: self::job(&job, job_owner_revision)?,
        promote: promote.map(|plan| self::plan("begin.promote", plan)).transpose()?,
        golden: Samples::parse(golden)?,
    })
}

/// A chunk of an upload, which is every message but the first.
///
/// # Errors
/// Where it is not one.
pub fn chunk(wire: v1::PublishRequest) -> Result<v1::PublishChunk, InvalidRequest> {
    match wire.step {
        Some(v1::publish_request::Step::Chunk(chunk)) => {
            let (bytes, max) = (chunk.data.len(), CHUNK_BYTES);
            if bytes > max {
                return Err(invalid("chunk.data", Fault::TooLong { bytes, max }));
            }
            Ok(chunk)
        }
        Some(v1::publish_request::Step::Begin(_)) => {
            Err(invalid("begin", Fault::Malformed("it comes once, at first".to_owned())))
        }
        None => Err(invalid("chunk", Fault::Empty)),
    }
}

/// What to promote, and how.
///
/// # Errors
/// Names the first field at fault.
pub fn promotion(wire: v1::PromoteRequest) -> Result<(Chosen, SwapPlan), InvalidRequest> {
    let v1::PromoteRequest { model, digest, plan } = wire;
    Ok((chosen(&model, &digest)?, self::plan("plan", plan.unwrap_or_default())?))
}

/// The model in a `RollbackRequest`.
///
/// # Errors
/// Where it is no name.
pub fn rollback(wire: v1::RollbackRequest) -> Result<Name, InvalidRequest> {
    let v1::RollbackRequest { model } = wire;
    alias("model", &model)
}

/// The model in a `RetireRequest`, and the checkpoint where one is named.
///
/// # Errors
/// Names the first field at fault.
pub fn retirement(wire: v1::RetireRequest) -> Result<(Name, Option<Prefix>), InvalidRequest> {
    let v1::RetireRequest { model, digest } = wire;
    let digest = given(&digest).map(|digest| Prefix::parse("digest", digest)).transpose()?;
    Ok((alias("model", &model)?, digest))
}

/// What to keep, and whether no longer to.
///
/// # Errors
/// Names the first field at fault.
pub fn pinning(wire: v1::PinRequest) -> Result<(Chosen, Keep), InvalidRequest> {
    let v1::PinRequest { model, digest, unpin } = wire;
    Ok((chosen(&model, &digest)?, if unpin { Keep::NoLonger } else { Keep::FromNowOn }))
}

/// Whether a checkpoint is to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is.
    FromNowOn,
    /// It was.
    NoLonger,
}

/// The model whose versions are asked for; `None` for all.
///
/// # Errors
/// Where it is no name.
pub fn listing(wire: v1::ListVersionsRequest) -> Result<Option<Name>, InvalidRequest> {
    let v1::ListVersionsRequest { model } = wire;
    given(&model).map(|model| alias("model", model)).transpose()
}

/// What to collect.
///
/// # Errors
/// Names the first field at fault.
pub fn collection(wire: v1::CollectRequest) -> Result<Collection, InvalidRequest> {
    /// Versions that are kept unless another number is given.
    const KEEP: u32 = 3;
    let v1::CollectRequest { model, keep, dry_run } = wire;
    let model = given(&model).map(|model| alias("model", model)).transpose()?;
    Ok(Collection { model, keep: keep.unwrap_or(KEEP) as usize, dry_run })
}

/// The model whose swap is asked for.
///
/// # Errors
/// Where it is no name.
pub fn swap_of(wire: v1::GetSwapRequest) -> Result<Name, InvalidRequest> {
    let v1::GetSwapRequest { model } = wire;
    alias("model", &model)
}

/// When a watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When the swap is decided.
    Decided,
    /// When the watcher has seen enough.
    Dropped,
}

/// The model whose swap is to be watched, and until when.
///
/// # Errors
/// Where it is no name.
pub fn watch(wire: v1::WatchSwapRequest) -> Result<(Name, Until), InvalidRequest> {
    let v1::WatchSwapRequest { model, follow } = wire;
    Ok((alias("model", &model)?, if follow { Until::Dropped } else { Until::Decided }))
}

fn chosen(model: &str, digest: &str) -> Result<Chosen, InvalidRequest> {
    Ok(Chosen { model: alias("model", model)?, digest: Prefix::parse("digest", digest)? })
}

/// Fields that are absent are empty on the wire.
fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn outside(field: &str, got: u32, max: u32) -> InvalidRequest {
    invalid(field, Fault::Outside { got, max })
}

fn label(field: &str, text: &str) -> Result<String, InvalidRequest> {
    if text.len() > LABEL_BYTES {
        return Err(invalid(field, Fault::TooLong { bytes: text.len(), max: LABEL_BYTES }));
    }
    if text.chars().any(char::is_control) || text.trim().is_empty() {
        return Err(invalid(field, Fault::Blank));
    }
    Ok(text.to_owned())
}

fn files(wire: Vec<v1::CheckpointFile>, most: u64) -> Result<Vec<ManifestFile>, InvalidRequest> {
    let (mut files, mut paths, mut total) = (Vec::with_capacity(wire.len()), BTreeSet::new(), 0_u64);
    for (i, v1::CheckpointFile { path, size, sha256 }) in wire.into_iter().enumerate() {
        let field = |name: &str| format!("begin.files[{i}].{name}");
        let malformed = |name: &str, why: &str| invalid(&field(name), Fault::Malformed(why.to_owned()));
        if !manifest::is_plain(&path) {
            return Err(malformed("path", "it is not a plain path below the checkpoint"));
        }
        if !paths.insert(path.clone()) {
            return Err(malformed("path", "another file has it, too"));
        }
        if !manifest::is_digest(&sha256) {
            return Err(malformed("sha256", "a SHA-256 is 64 lower-case hexadecimal digits"));
        }
        total = total.saturating_add(size);
        if total > most {
            return Err(malformed("size", &format!("a checkpoint may have {most} bytes in all")));
        }
        files.push(ManifestFile { path, sha256, size });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    manifest::check(&files).map_err(|error| invalid("begin.files", Fault::Malformed(error.to_string())))?;
    Ok(files)
}

fn metrics(wire: Vec<v1::Metric>) -> Result<BTreeMap<String, f64>, InvalidRequest> {
    let (got, max) = (wire.len(), METRICS);
    if got > max {
        return Err(invalid("begin.evaluation", Fault::TooMany { got, max }));
    }
    let mut metrics = BTreeMap::new();
    for (i, v1::Metric { name, value }) in wire.into_iter().enumerate() {
        let field = |field: &str| format!("begin.evaluation[{i}].{field}");
        let name = label(&field("name"), &name)?;
        if !value.is_finite() {
            return Err(invalid(&field("value"), Fault::Malformed("it is not a number".to_owned())));
        }
        if metrics.insert(name, value).is_some() {
            return Err(invalid(&field("name"), Fault::Malformed("another metric has it, too".to_owned())));
        }
    }
    Ok(metrics)
}

fn job(name: &str, owner_revision: i64) -> Result<Option<Job>, InvalidRequest> {
    let owner_revision = (owner_revision != 0).then_some(owner_revision);
    match (given(name), owner_revision) {
        (Some(name), owner_revision) => Ok(Some(Job { name: alias("begin.job", name)?, owner_revision })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(invalid("begin.job", Fault::Empty)),
    }
}

fn plan(field: &str, wire: v1::SwapPlan) -> Result<SwapPlan, InvalidRequest> {
    let v1::SwapPlan {
        min_ready,
        deadline_seconds,
        retire_after_seconds,
        new_space,
        canary,
        shadow_per_mille,
        shadow_seconds,
    } = wire;
    let usual = SwapPlan::default();
    let named = |name: &str| format!("{field}.{name}");
    if shadow_per_mille > ALL {
        return Err(outside(&named("shadow_per_mille"), shadow_per_mille, ALL));
    }
    Ok(SwapPlan {
        min_ready: min_ready.map(|count| within(&named("min_ready"), count, u32::MAX)).transpose()?,
        deadline_ms: seconds(&named("deadline_seconds"), deadline_seconds)?.unwrap_or(usual.deadline_ms),
        retire_after_ms: match retire_after_seconds {
            Some(0) => Some(0),
            given => seconds(&named("retire_after_seconds"), given)?,
        },
        new_space,
        canary: canary.map(|canary| self::canary(&named("canary"), canary)).transpose()?,
        shadow_per_mille,
        shadow_ms: seconds(&named("shadow_seconds"), shadow_seconds)?.unwrap_or(usual.shadow_ms),
    })
}

fn canary(field: &str, wire: v1::CanaryPlan) -> Result<CanaryPlan, InvalidRequest> {
    let v1::CanaryPlan { per_mille, hold_seconds, min_calls, max_error_excess, max_p99_ratio } = wire;
    let named = |name: &str| format!("{field}.{name}");
    let usual = CanaryPlan::of(within(&named("per_mille"), per_mille, ALL)?);
    let bounded = |name: &str, number: Option<f64>, bounds: (f64, f64), usual: f64| match number {
        Some(number) if !(bounds.0..=bounds.1).contains(&number) => {
            let why = format!("it is not from {} to {}", bounds.0, bounds.1);
            Err(invalid(&named(name), Fault::Malformed(why)))
        }
        given => Ok(given.unwrap_or(usual)),
    };
    if usual.per_mille == ALL && max_p99_ratio.is_some() {
        let why = "with a per_mille of 1000 no caller is left whose latency it could be compared with";
        return Err(invalid(&named("max_p99_ratio"), Fault::Malformed(why.to_owned())));
    }
    Ok(CanaryPlan {
        hold_ms: seconds(&named("hold_seconds"), hold_seconds)?.unwrap_or(usual.hold_ms),
        min_calls: match min_calls {
            Some(calls) => within(&named("min_calls"), calls, u32::MAX)?.into(),
            None => usual.min_calls,
        },
        max_error_excess: bounded("max_error_excess", max_error_excess, (0.0, 1.0), usual.max_error_excess)?,
        max_p99_ratio: bounded("max_p99_ratio", max_p99_ratio, (1.0, RATIO), usual.max_p99_ratio)?,
        ..usual
    })
}

/// From 1 to `max`.
fn within(field: &str, number: u32, max: u32) -> Result<u32, InvalidRequest> {
    if (1..=max).contains(&number) { Ok(number) } else { Err(outside(field, number, max)) }
}

/// In milliseconds.
fn seconds(field: &str, seconds: Option<u32>) -> Result<Option<u64>, InvalidRequest> {
    let within = seconds.map(|seconds| within(field, seconds, LONGEST)).transpose()?;
    Ok(within.map(|seconds| u64::from(seconds) * 1000))
}
