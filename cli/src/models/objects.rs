//! Models, versions and swaps as JSON, and the words for what they are.

use std::collections::BTreeMap;

use proto::v1::{
    Checkpoint, CheckpointFile, Comparison, GoldenSource, Metric, Model, ModelKind, Preparation, Stage, Swap,
    SwapEvent, SwapMode, SwapState, Version, VersionRole,
};
use serde_json::{Value, json};

pub(super) fn model(model: &Model) -> Value {
    let mut object = model.checkpoint.as_ref().map_or_else(|| json!({}), checkpoint);
    object["name"] = json!(model.name);
    object["epoch"] = json!(model.epoch);
    object["others"] = model.others.iter().map(checkpoint).collect();
    object
}

fn checkpoint(checkpoint: &Checkpoint) -> Value {
    json!({
        "digest": checkpoint.digest,
        "index_space": checkpoint.index_space,
        "kind": kind(checkpoint.kind()),
        "dimensions": checkpoint.dimensions,
        "max_tokens": checkpoint.max_tokens,
        "pooling": checkpoint.pooling,
        "normalize": checkpoint.normalize,
        "architecture": checkpoint.architecture,
        "dtypes": checkpoint.dtypes,
        "ready_workers": checkpoint.ready_workers,
    })
}

pub(super) fn version(version: &Version) -> Value {
    let mut object = version.checkpoint.as_ref().map_or_else(|| json!({}), checkpoint);
    let metrics: BTreeMap<&str, f64> =
        version.evaluation.iter().map(|Metric { name, value }| (name.as_str(), *value)).collect();
    let more = json!({
        "model": version.model,
        "role": role(version.role()),
        "stored": version.stored,
        "pinned": version.pinned,
        "parent": version.parent,
        "job": version.job,
        "tokenizer_sha256": version.tokenizer_sha256,
        "golden_inputs": version.golden_inputs,
        "golden_from": golden_from(version.golden_from()),
        "evaluation": metrics,
        "created_unix_ms": version.created_unix_ms,
        "files": version.files.iter().map(file).collect::<Vec<_>>(),
    });
    extend(&mut object, more);
    object
}

fn file(file: &CheckpointFile) -> Value {
    let CheckpointFile { path, size, sha256 } = file;
    json!({ "path": path, "size": size, "sha256": sha256 })
}

pub(super) fn swap(swap: &Swap) -> Value {
    json!({
        "id": swap.id,
        "model": swap.model,
        "from": swap.from,
        "to": swap.to,
        "state": state(swap.state()),
        "mode": mode(swap.mode()),
        "min_ready": swap.min_ready,
        "ready": swap.ready,
        "epoch": swap.epoch,
        "reason": swap.reason,
        "deadline_unix_ms": swap.deadline_unix_ms,
        "workers": swap.workers.iter().map(preparation).collect::<Vec<_>>(),
        "events": swap.events.iter().map(event).collect::<Vec<_>>(),
        "comparison": swap.comparison.as_ref().map(comparison),
    })
}

pub(super) fn preparation(preparation: &Preparation) -> Value {
    json!({
        "worker": preparation.worker,
        "model": preparation.model,
        "digest": preparation.digest,
        "stage": stage(preparation.stage()),
        "bytes_done": preparation.bytes_done,
        "bytes_total": preparation.bytes_total,
        "reason": preparation.reason,
        "detail": preparation.detail,
    })
}

fn event(event: &SwapEvent) -> Value {
    let SwapEvent { at_unix_ms, what } = event;
    json!({ "at_unix_ms": at_unix_ms, "what": what })
}

fn comparison(comparison: &Comparison) -> Value {
    json!({
        "old": { "calls": comparison.old_calls, "errors": comparison.old_errors, "p99_ms": comparison.old_p99_ms },
        "new": { "calls": comparison.new_calls, "errors": comparison.new_errors, "p99_ms": comparison.new_p99_ms },
        "shadow": {
            "calls": comparison.shadowed_calls,
            "failures": comparison.shadow_failures,
            "cosine_min": comparison.cosine_min,
            "cosine_mean": comparison.cosine_mean,
            "rank_correlation_min": comparison.rank_correlation_min,
            "rank_correlation_mean": comparison.rank_correlation_mean,
            "latency_ratio": comparison.latency_ratio,
        },
    })
}

/// Adds the fields of `more` to `object`.
fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

pub(super) fn kind(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::Unspecified => "unknown",
        ModelKind::Embedder => "embedder",
        ModelKind::CrossEncoder => "cross-encoder",
    }
}

pub(super) fn golden_from(source: GoldenSource) -> Option<&'static str> {
    match source {
        GoldenSource::Unspecified => None,
        GoldenSource::Trial => Some("trial"),
        GoldenSource::Publisher => Some("publisher"),
    }
}

pub(super) fn role(role: VersionRole) -> &'static str {
    match role {
        VersionRole::Unspecified => "published",
        VersionRole::Current => "current",
        VersionRole::Previous => "previous",
        VersionRole::Coming => "coming",
    }
}

pub(super) fn state(state: SwapState) -> &'static str {
    match state {
        SwapState::Unspecified => "unknown",
        SwapState::Requested => "requested",
        SwapState::Preparing => "preparing",
        SwapState::Trial => "trial",
        SwapState::Committed => "committed",
        SwapState::Retired => "retired",
        SwapState::Aborted => "aborted",
        SwapState::RolledBack => "rolled_back",
    }
}

fn mode(mode: SwapMode) -> &'static str {
    match mode {
        SwapMode::Unspecified => "unknown",
        SwapMode::Beside => "beside",
        SwapMode::Waves => "waves",
    }
}

pub(super) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Unspecified => "waiting",
        Stage::Downloading => "downloading",
        Stage::Verifying => "verifying",
        Stage::Draining => "draining",
        Stage::Loading => "loading",
        Stage::Warming => "warming",
        Stage::Ready => "ready",
        Stage::Failed => "failed",
    }
}
