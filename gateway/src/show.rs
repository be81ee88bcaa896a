//! Versions and swaps as callers are shown them.

use std::collections::BTreeMap;

use cluster::{Alias, GoldenSource, ListedVersion, ModelKind, Swap, SwapMode, SwapState, View};
use proto::v1;

use crate::checkpoint::Digest;
use crate::fleet::Fleet;

/// A version, and what it is to its model now.
#[must_use]
pub fn version(listed: &ListedVersion, view: &View, fleet: &Fleet) -> v1::Version {
    let ListedVersion { model, digest, version } = listed;
    let files = version.manifest.files.iter().map(|file| v1::CheckpointFile {
        path: file.path.clone(),
        size: file.size,
        sha256: file.sha256.clone(),
    });
    let metric = |(name, &value): (&String, &f64)| v1::Metric { name: name.clone(), value };
    let golden_inputs = version.golden.as_ref().map_or(0, |golden| golden.texts.len());
    v1::Version {
        model: model.clone(),
        checkpoint: Some(checkpoint(listed, fleet)),
        files: files.collect(),
        tokenizer_sha256: version.tokenizer_sha256.clone(),
        parent: version.parent.clone().unwrap_or_default(),
        evaluation: version.evaluation.iter().map(metric).collect(),
        job: version.job.clone().unwrap_or_default(),
        created_unix_ms: version.created_unix_ms,
        golden_inputs: small(golden_inputs),
        golden_from: golden_from(version.golden.as_ref().map(|golden| golden.from)).into(),
        stored: version.stored,
        pinned: view.pins.contains_key(&(model.clone(), digest.clone())),
        role: role(view.aliases.get(model), view.swaps.get(model), digest).into(),
    }
}

fn golden_from(source: Option<GoldenSource>) -> v1::GoldenSource {
    match source {
        None => v1::GoldenSource::Unspecified,
        Some(GoldenSource::Trial) => v1::GoldenSource::Trial,
        Some(GoldenSource::Publisher) => v1::GoldenSource::Publisher,
    }
}

fn checkpoint(ListedVersion { model: _, digest, version }: &ListedVersion, fleet: &Fleet) -> v1::Checkpoint {
    let kind = match version.kind {
        ModelKind::Embedder => v1::ModelKind::Embedder,
        ModelKind::CrossEncoder => v1::ModelKind::CrossEncoder,
    };
    let loaded = Digest::from(digest.as_str());
    v1::Checkpoint {
        digest: digest.clone(),
        index_space: version.index_space.clone(),
        kind: kind.into(),
        dimensions: small(version.manifest.dimensions),
        max_tokens: small(version.manifest.max_tokens),
        pooling: version.manifest.pooling.clone().unwrap_or_default(),
        normalize: version.manifest.normalize,
        architecture: version.architecture.clone(),
        dtypes: fleet.dtypes(&loaded),
        ready_workers: small(fleet.ready(&loaded).len()),
    }
}

fn role(alias: Option<&Alias>, swap: Option<&Swap>, digest: &str) -> v1::VersionRole {
    if alias.is_some_and(|alias| alias.digest == digest) {
        v1::VersionRole::Current
    } else if swap.is_some_and(|swap| swap.state.is_open() && swap.to == digest) {
        v1::VersionRole::Coming
    } else if alias.is_some_and(|alias| alias.prev.as_deref() == Some(digest)) {
        v1::VersionRole::Previous
    } else {
        v1::VersionRole::Unspecified
    }
}

/// A swap of `model`, and how far each worker is with it.
#[must_use]
pub fn swap(model: &str, swap: &Swap, view: &View, fleet: &Fleet) -> v1::Swap {
    let ready = view.ready.get(&(model.to_owned(), swap.to.clone())).into_iter().flatten().count();
    let event =
        |event: &cluster::SwapEvent| v1::SwapEvent { at_unix_ms: event.at_unix_ms, what: event.what.clone() };
    v1::Swap {
        id: swap.swap_id.clone(),
        model: model.to_owned(),
        from: swap.from.clone().unwrap_or_default(),
        to: swap.to.clone(),
        state: state(swap.state).into(),
        mode: mode(swap.mode).into(),
        min_ready: swap.min_ready,
        ready: small(ready),
        workers: workers(model, swap, view, fleet),
        deadline_unix_ms: swap.deadline_unix_ms,
        epoch: swap.epoch,
        reason: swap.reason.clone().unwrap_or_default(),
        events: swap.events.iter().map(event).collect(),
        comparison: swap.comparison.as_ref().map(comparison),
        plan: Some(plan(&swap.plan)),
    }
}

fn state(state: SwapState) -> v1::SwapState {
    match state {
        SwapState::Requested => v1::SwapState::Requested,
        SwapState::Preparing => v1::SwapState::Preparing,
        SwapState::Trial => v1::SwapState::Trial,
        SwapState::Committed => v1::SwapState::Committed,
        SwapState::Retired => v1::SwapState::Retired,
        SwapState::Aborted => v1::SwapState::Aborted,
        SwapState::RolledBack => v1::SwapState::RolledBack,
    }
}

/// A state as metrics and log lines have it.
#[must_use]
pub fn state_name(state: SwapState) -> &'static str {
    match state {
        SwapState::Requested => "requested",
        SwapState::Preparing => "preparing",
        SwapState::Trial => "trial",
        SwapState::Committed => "committed",
        SwapState::Retired => "retired",
        SwapState::Aborted => "aborted",
        SwapState::RolledBack => "rolled_back",
    }
}

fn mode(mode: SwapMode) -> v1::SwapMode {
    match mode {
        SwapMode::Beside => v1::SwapMode::Beside,
        SwapMode::Waves => v1::SwapMode::Waves,
    }
}

/// How far each worker is, by id: as it says itself, or as the cluster has it where it says nothing.
fn workers(model: &str, swap: &Swap, view: &View, fleet: &Fleet) -> Vec<v1::Preparation> {
    let at = |worker: &str, stage: v1::Stage| v1::Preparation {
        worker: worker.to_owned(),
        model: model.to_owned(),
        digest: swap.to.clone(),
        stage: stage.into(),
        ..v1::Preparation::default()
    };
    let mut workers = BTreeMap::new();
    for worker in view.workers.values().filter(|worker| worker.may_serve(model)) {
        workers.insert(worker.id.to_string(), at(worker.id.as_str(), v1::Stage::Unspecified));
    }
    for refusal in &swap.refusals {
        let failed = v1::Preparation {
            reason: refusal.reason.to_string(),
            detail: refusal.detail.clone(),
            ..at(refusal.worker.as_str(), v1::Stage::Failed)
        };
        workers.insert(refusal.worker.to_string(), failed);
    }
    for (id, told) in told(model, swap, fleet) {
        workers.insert(id, told);
    }
    for worker in view.ready.get(&(model.to_owned(), swap.to.clone())).into_iter().flatten() {
        workers.insert(worker.to_string(), at(worker.as_str(), v1::Stage::Ready));
    }
    workers.into_values().collect()
}

/// What workers say themselves of the checkpoint that `swap` leads to.
fn told<'a>(
    model: &'a str,
    swap: &'a Swap,
    fleet: &'a Fleet,
) -> impl Iterator<Item = (String, v1::Preparation)> {
    fleet.members().iter().filter_map(move |member| {
        let report = member.link.latest()?;
        let ours = |told: &&v1::Preparation| told.model == model && told.digest == swap.to;
        let told = report.preparations.iter().find(ours)?.clone();
        let id = member.link.seat.id.to_string();
        Some((id.clone(), v1::Preparation { worker: id, ..told }))
    })
}

fn comparison(seen: &cluster::Comparison) -> v1::Comparison {
    let known = |number: Option<f64>| number.unwrap_or_default();
    v1::Comparison {
        old_calls: seen.old_calls,
        new_calls: seen.new_calls,
        old_errors: seen.old_errors,
        new_errors: seen.new_errors,
        old_p99_ms: known(seen.old_p99_ms),
        new_p99_ms: known(seen.new_p99_ms),
        shadowed_calls: seen.shadowed_calls,
        shadow_failures: seen.shadow_failures,
        cosine_min: known(seen.cosine_min),
        cosine_mean: known(seen.cosine_mean),
        rank_correlation_min: known(seen.rank_correlation_min),
        rank_correlation_mean: known(seen.rank_correlation_mean),
        latency_ratio: known(seen.latency_ratio),
    }
}

fn plan(plan: &cluster::SwapPlan) -> v1::SwapPlan {
    let seconds = |milliseconds: u64| u32::try_from(milliseconds / 1000).unwrap_or(u32::MAX);
    let canary = |canary: &cluster::CanaryPlan| v1::CanaryPlan {
        per_mille: canary.per_mille,
        hold_seconds: Some(seconds(canary.hold_ms)),
        min_calls: Some(u32::try_from(canary.min_calls).unwrap_or(u32::MAX)),
        max_error_excess: Some(canary.max_error_excess),
        max_p99_ratio: Some(canary.max_p99_ratio),
    };
    v1::SwapPlan {
        min_ready: plan.min_ready,
        deadline_seconds: Some(seconds(plan.deadline_ms)),
        retire_after_seconds: plan.retire_after_ms.map(seconds),
        new_space: plan.new_space,
        canary: plan.canary.as_ref().map(canary),
        shadow_per_mille: plan.shadow_per_mille,
        shadow_seconds: Some(seconds(plan.shadow_ms)),
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use cluster::{NackReason, Refusal, SwapPlan, Worker, WorkerId};
    use proto::worker::v1::HealthReport;

    use super::*;
    use crate::fleet::Standing;
    use crate::fleet::tests::member;

    /// A swap of `m` from `d` to `e`, and four workers, of which one may not serve `m`.
    fn view() -> View {
        let worker = |id: &str| Worker {
            id: WorkerId::parse(id).unwrap(),
            address: format!("{id}:1"),
            boot_id: "boot".into(),
            device: "cpu".into(),
            memory: 0,
            draining: false,
            serves: (id == "w4").then(|| ["other".to_owned()].into()),
        };
        let workers = ["w1", "w2", "w3", "w4"].map(worker);
        let plan = SwapPlan::default();
        let swap = Swap::requested("s".into(), (Some("d".into()), "e".into()), plan, 1);
        View {
            workers: workers.into_iter().map(|worker| (worker.id.clone(), worker)).collect(),
            swaps: [("m".to_owned(), swap)].into(),
            aliases: [("m".to_owned(), Alias { prev: Some("c".into()), ..Alias::of("d", 1) })].into(),
            ..View::default()
        }
    }

    fn stages(view: &View, fleet: &Fleet) -> Vec<(String, v1::Stage, String)> {
        let shown = swap("m", &view.swaps["m"], view, fleet);
        shown
            .workers
            .into_iter()
            .map(|worker| (worker.worker.clone(), worker.stage(), worker.reason))
            .collect()
    }

    #[tokio::test]
    async fn each_worker_is_shown_by_the_best_that_is_known_of_it() {
        let mut view = view();
        let id = |id: &str| WorkerId::parse(id).unwrap();
        view.ready.insert(("m".into(), "e".into()), [id("w1")].into());
        view.ready.insert(("m".into(), "d".into()), [id("w2")].into());
        let refusal = Refusal { worker: id("w3"), reason: NackReason::Disk, detail: "full".into() };
        view.swaps.get_mut("m").unwrap().refusals = vec![refusal];
        let loading = |digest: &str| v1::Preparation {
            model: "m".into(),
            digest: digest.into(),
            stage: v1::Stage::Loading.into(),
            ..v1::Preparation::default()
        };
        let reports = [("w1", loading("e")), ("w2", loading("e")), ("w3", loading("d"))];
        let members = reports.map(|(id, preparation)| {
            let member = member(id, Standing::Serving, Vec::new());
            member.link.heard(std::sync::Arc::new(HealthReport {
                worker_id: id.into(),
                preparations: vec![preparation],
                ..HealthReport::default()
            }));
            member
        });
        let fleet = Fleet::new(None, members.into());
        let expected =
            [("w1", v1::Stage::Ready, ""), ("w2", v1::Stage::Loading, ""), ("w3", v1::Stage::Failed, "disk")];
        let expected = expected.map(|(id, stage, reason)| (id.to_owned(), stage, reason.to_owned()));
        assert_eq!(stages(&view, &fleet), expected);
        assert_eq!(swap("m", &view.swaps["m"], &view, &fleet).ready, 1);
    }

    #[test]
    fn a_version_is_what_its_model_makes_of_it() {
        let view = view();
        let role = |digest: &str| role(view.aliases.get("m"), view.swaps.get("m"), digest);
        assert_eq!(role("d"), v1::VersionRole::Current);
        assert_eq!(role("e"), v1::VersionRole::Coming);
        assert_eq!(role("c"), v1::VersionRole::Previous);
        assert_eq!(role("x"), v1::VersionRole::Unspecified);
    }
}
