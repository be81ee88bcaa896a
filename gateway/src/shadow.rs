//! Copies of calls, tried on the checkpoint that is on trial after they were answered by the old one.
//!
//! A caller never waits for a copy and never hears of it. Copies are jobs of nobody's: they run as bulk, a few at a
//! time, and where there is no room for one it is dropped.

use std::sync::Arc;
use std::time::Duration;

use cluster::ShadowSample;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::{Caller, Dispatcher, Done, Twice};
use crate::checkpoint::Digest;
use crate::likeness::Likeness;
use crate::resolve::{Part, Pin, Side};
use crate::retry::Patience;

/// Copies that run at a time.
const AT_A_TIME: usize = 4;
/// A copy that takes longer than this is given up.
const LONGEST: Duration = Duration::from_secs(30);
/// As who copies share workers with callers.
const NOBODY: &str = "shadow";
/// All calls, in the unit in which a part of them is told.
const ALL: u32 = 1000;

/// Where copies run.
#[derive(Clone, Debug)]
pub struct Shadows {
    room: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A call that was answered, for its copy to be held against.
struct Original<W: Twice> {
    answer: W::Answer,
    pin: Pin,
    took: Duration,
}

impl Shadows {
    /// Copies as `tasks`, until `stop`.
    #[must_use]
    pub fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { room: Arc::new(Semaphore::new(AT_A_TIME)), tasks, stop }
    }

    /// Tries `work`, which was answered with `answer` on `pin` and `took` so long, on the checkpoint on trial, if it is
    /// drawn for that. Returns at once.
    pub fn offer<W: Twice + Send + 'static>(
        &self,
        dispatcher: &Arc<Dispatcher>,
        work: W,
        done: &Done<W::Answer>,
    ) {
        let Done { answered, pin, took } = done;
        let Some(Part { swap_id, side: Side::Old(Some(shadow)) }) = &pin.part else { return };
        if rand::random_range(0..ALL) >= shadow.per_mille {
            return;
        }
        let (model, swap_id) = (pin.model.clone(), swap_id.clone());
        let room = Arc::clone(&self.room).try_acquire_owned().ok().filter(|_| !dispatcher.is_busy());
        let Some(room) = room else {
            dispatcher.metrics.shadowed("dropped");
            dispatcher.trials.record(&model, &swap_id, |sample| sample.shadow.failures += 1);
            return;
        };
        let copy = work.copy(Digest::from(shadow.digest.as_str()));
        let original = Original::<W> { answer: answered.body.clone(), pin: pin.clone(), took: *took };
        let dispatcher = Arc::clone(dispatcher);
        let trying = async move {
            let tried = dispatcher.shadow(&copy, &original).await;
            dispatcher.metrics.shadowed(if tried.is_some() { "answered" } else { "failed" });
            dispatcher.trials.record(&model, &swap_id, |sample| note(&mut sample.shadow, tried));
            drop(room);
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(trying).await });
    }
}

/// A copy that was answered: how alike the answers are, and its time over that of the call.
type Tried = (Likeness, f64);

fn note(sample: &mut ShadowSample, tried: Option<Tried>) {
    let Some((likeness, latency_ratio)) = tried else {
        sample.failures += 1;
        return;
    };
    sample.record(latency_ratio);
    likeness.cosines.into_iter().for_each(|cosine| sample.cosine.record(cosine));
    if let Some(correlation) = likeness.rank_correlation {
        sample.rank_correlation.record(correlation);
    }
}

impl Dispatcher {
    /// Runs a copy, and holds it against its original.
    async fn shadow<W: Twice>(&self, copy: &W, original: &Original<W>) -> Option<Tried> {
        let began = Instant::now();
        let caller = Caller {
            name: NOBODY.to_owned(),
            key: NOBODY.to_owned(),
            account: None,
            due: began + LONGEST,
            patience: Patience::Refuse,
        };
        let pinned = self.pin(copy.terms(), &caller).await.ok()?;
        let answered =
            tokio::time::timeout_at(caller.due, self.run(copy, &pinned.pin, &caller)).await.ok()?.ok()?;
        let ratio = began.elapsed().as_secs_f64() / original.took.as_secs_f64().max(f64::MIN_POSITIVE);
        let mut likeness = W::likeness(&original.answer, &answered.body);
        if pinned.pin.card.checkpoint.index_space != original.pin.card.checkpoint.index_space {
            likeness.cosines.clear();
        }
        Some((likeness, ratio))
    }
}
