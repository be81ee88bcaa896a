//! What is told of checkpoints that come and go: to gateways and, by way of the same state, to etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cluster::{Desired, View};
use proto::v1::{Preparation, Stage};
use proto::worker::v1::{AliasSeen, CanarySeen};
use tokio::sync::watch;

use super::plan::{Room, Task};
use super::setbacks::Setbacks;
use super::{Prepared, Step, Told};
use crate::catalogue::Id;
use crate::health::State;
use crate::metrics::Metrics;

/// Writes the part of a worker's state that is about checkpoints.
#[derive(Debug)]
pub(super) struct Reporter {
    state: watch::Sender<State>,
    worker: String,
    metrics: Metrics,
}

impl Reporter {
    /// For the worker of this id.
    pub(super) fn new(state: watch::Sender<State>, worker: String, metrics: Metrics) -> Self {
        Self { state, worker, metrics }
    }

    /// Offers a checkpoint.
    pub(super) fn offer(&self, prepared: &Prepared) {
        let (id, offer) = (prepared.served.id(), prepared.offer());
        self.state.send_modify(|state| {
            state.preparations.remove(&id);
            state.ready.insert(id, offer);
        });
    }

    /// Offers it no more.
    pub(super) fn withdraw(&self, id: &Id) {
        self.state.send_modify(|state| drop(state.ready.remove(id)));
    }

    /// How a preparation that has begun tells how far it is. Gateways hear of a new stage at once, and of bytes when
    /// they are told the next time anyway.
    pub(super) fn told(&self, id: &Id) -> Told {
        let (state, metrics, id) = (self.state.clone(), self.metrics.clone(), id.clone());
        let begun = self.preparation(&id, Stage::Unspecified);
        let came = AtomicU64::new(0);
        Arc::new(move |Step { stage, done, total }: Step| {
            if stage == Stage::Downloading {
                metrics.downloaded(done.saturating_sub(came.swap(done, Ordering::Relaxed)));
            }
            state.send_if_modified(|state| {
                let entry = state.preparations.entry(id.clone()).or_insert_with(|| begun.clone());
                let is_news = entry.stage() != stage;
                *entry = Preparation { bytes_done: done, bytes_total: total, ..begun.clone() };
                entry.set_stage(stage);
                is_news
            });
        })
    }

    /// Tells of all that is not ready: what waits, what is `running` as it told itself, and what failed, as long as the
    /// cluster has to do with it.
    pub(super) fn outstanding(
        &self,
        wanted: &BTreeMap<String, Desired>,
        tasks: &[Task],
        (running, setbacks): (Option<&Id>, &Setbacks),
    ) {
        let waiting = tasks.iter().filter(|task| running != Some(&task.id));
        let mut told: BTreeMap<Id, Preparation> = waiting
            .map(|task| {
                let stage = match task.room {
                    Room::Awaited => Stage::Draining,
                    Room::Beside | Room::Made => Stage::Unspecified,
                };
                (task.id.clone(), self.preparation(&task.id, stage))
            })
            .collect();
        let refused = wanted
            .iter()
            .flat_map(|(model, desired)| desired.keep.iter().map(move |digest| Id::new(model, digest)));
        let refused = refused.filter_map(|id| Some((id.clone(), setbacks.of(&id)?)));
        let put_off = tasks.iter().filter_map(|task| Some((task.id.clone(), setbacks.get(task)?)));
        for (id, setback) in refused.chain(put_off) {
            let failed = Preparation {
                reason: setback.reason.to_string(),
                detail: setback.detail.clone(),
                ..self.preparation(&id, Stage::Failed)
            };
            told.insert(id, failed);
        }
        self.state.send_if_modified(|state| {
            if let Some(id) = running {
                let begun = state.preparations.get(id).cloned();
                told.insert(id.clone(), begun.unwrap_or_else(|| self.preparation(id, Stage::Unspecified)));
            }
            let differs = state.preparations != told;
            state.preparations = told;
            differs
        });
    }

    /// Tells what names mean.
    pub(super) fn aliases(&self, view: &View) {
        let seen = view.aliases.iter().map(|(model, alias)| {
            let canary = alias.canary.as_ref().map(|canary| CanarySeen {
                digest: canary.digest.clone(),
                per_mille: canary.per_mille,
                salt: canary.salt.clone(),
            });
            let (digest, epoch) = (alias.digest.clone(), alias.epoch);
            let seen = AliasSeen { model: model.clone(), digest, epoch, canary };
            (model.clone(), seen)
        });
        let seen: BTreeMap<String, AliasSeen> = seen.collect();
        self.state.send_if_modified(|state| {
            let differs = state.aliases != seen;
            state.aliases = seen;
            differs
        });
    }

    /// What is offered now.
    pub(super) fn offered(&self) -> BTreeSet<Id> {
        self.state.borrow().ready.keys().cloned().collect()
    }

    fn preparation(&self, id: &Id, stage: Stage) -> Preparation {
        Preparation {
            worker: self.worker.clone(),
            model: id.model.clone(),
            digest: id.digest.clone(),
            stage: stage.into(),
            ..Preparation::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Alias, NackReason};
    use telemetry::prometheus::registry::Registry;
    use tokio::time::{Duration, Instant};

    use super::super::failure::Failure;
    use super::*;
    use crate::catalogue::Catalogue;
    use crate::load::{Limits, Load};

    fn reporter() -> (Reporter, watch::Receiver<State>) {
        let load = Load::new(Limits { tokens: 1, wait: Duration::ZERO });
        let (state, told) = watch::channel(State::default());
        (
            Reporter::new(
                state,
                "w".into(),
                Metrics::register(&mut Registry::default(), load, Catalogue::default()),
            ),
            told,
        )
    }

    fn task(digest: &str, room: Room) -> Task {
        Task { id: Id::new("m", digest), swap_id: None, room }
    }

    /// Digests, stages, bytes and reasons.
    fn seen(state: &watch::Receiver<State>) -> Vec<(String, Stage, u64, String)> {
        let preparations = state.borrow().preparations.clone().into_values();
        preparations.map(|told| (told.digest.clone(), told.stage(), told.bytes_done, told.reason)).collect()
    }

    #[test]
    fn a_new_stage_is_told_at_once_and_bytes_when_there_is_occasion() {
        let (reporter, mut state) = reporter();
        let told = reporter.told(&Id::new("m", "d"));
        told(Step { stage: Stage::Downloading, done: 1, total: 9 });
        assert!(state.has_changed().unwrap());
        state.mark_unchanged();
        told(Step { stage: Stage::Downloading, done: 5, total: 9 });
        assert!(!state.has_changed().unwrap());
        assert_eq!(seen(&state), [("d".to_owned(), Stage::Downloading, 5, String::new())]);
        told(Step { stage: Stage::Loading, done: 0, total: 0 });
        assert!(state.has_changed().unwrap());
    }

    #[test]
    fn what_waits_what_runs_and_what_failed_is_told() {
        let (reporter, state) = reporter();
        let mut setbacks = Setbacks::default();
        let failed = task("f", Room::Beside);
        let refused = Failure::refused(NackReason::Golden, "cosine");
        setbacks.note(&failed, refused, (Instant::now(), None), 0.0);
        let running = Id::new("m", "r");
        reporter.told(&running)(Step { stage: Stage::Verifying, done: 7, total: 9 });
        let tasks = [failed, task("d", Room::Awaited), task("w", Room::Beside)];
        let wanted = BTreeMap::new();
        reporter.outstanding(&wanted, &tasks, (Some(&running), &setbacks));
        let none = String::new;
        let expected = [
            ("d".to_owned(), Stage::Draining, 0, none()),
            ("f".to_owned(), Stage::Failed, 0, "golden".to_owned()),
            ("r".to_owned(), Stage::Verifying, 7, none()),
            ("w".to_owned(), Stage::Unspecified, 0, none()),
        ];
        assert_eq!(seen(&state), expected);
        reporter.outstanding(&wanted, &[], (None, &setbacks));
        assert_eq!(seen(&state), []);
        let keep = BTreeSet::from(["f".to_owned(), "k".to_owned()]);
        let refused = Desired { keep, ..Desired::default() };
        reporter.outstanding(&BTreeMap::from([("m".to_owned(), refused)]), &[], (None, &setbacks));
        assert_eq!(seen(&state)[0].1, Stage::Failed, "the cluster knows that it was refused");
    }

    #[test]
    fn what_names_mean_is_told_when_it_changes() {
        let (reporter, mut state) = reporter();
        let view = |epoch| {
            let aliases = BTreeMap::from([("m".to_owned(), Alias::of("d", epoch))]);
            View { aliases, ..View::default() }
        };
        for (epoch, is_news) in [(3, true), (3, false), (4, true)] {
            reporter.aliases(&view(epoch));
            assert_eq!(state.has_changed().unwrap(), is_news);
            assert_eq!(state.borrow_and_update().aliases["m"].epoch, epoch);
        }
    }
}
