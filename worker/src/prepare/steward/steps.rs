//! The steps: a checkpoint made ready, offered, offered no more, and taken off the device.

use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{Holding, News, Running, Steward};
use crate::catalogue::{Id, unused};
use crate::prepare::plan::Task;
use crate::prepare::{Prepared, Twin};

impl Steward {
    /// Spawns a step; it is dropped where it stands when the worker leaves.
    fn spawn_step(&self, step: impl Future<Output = News> + Send + 'static) {
        let (news, end) = (self.news.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            if let Some(done) = end.run_until_cancelled(step).await {
                // The steward listens as long as it is not stopped.
                let _ = news.send(done).await;
            }
        });
    }

    /// Makes a checkpoint ready.
    pub(super) fn begin(&mut self, task: Task) {
        let (shop, id, cancel) = (self.shop.clone(), task.id.clone(), CancellationToken::new());
        let how = (self.reporter.told(&id), cancel.clone());
        let brought = self.brought.get(&id).map(|brought| brought.checkpoint.clone());
        let twin = self.twin(&id);
        self.running = Some(Running { task: task.clone(), cancel });
        tracing::info!(model = id.model, digest = id.digest, swap = task.swap_id, "a checkpoint is prepared");
        self.spawn_step(async move {
            let prepared = match twin {
                Some(twin) => shop.share(&id, twin).await,
                None => shop.prepare(&id, brought, how).await,
            };
            News::Prepared(task, prepared)
        });
    }

    /// The same checkpoint under another name, if it is ready.
    fn twin(&self, id: &Id) -> Option<Twin> {
        self.held.values().find_map(|holding| match holding {
            Holding::Ready(prepared) if *prepared.served.digest == *id.digest => Some(prepared.twin()),
            Holding::Ready(_) | Holding::Leaving(..) | Holding::Going(_) => None,
        })
    }

    /// Offers a checkpoint no more, and waits until nobody uses it.
    pub(super) fn release(&mut self, id: &Id) {
        let Some(Holding::Ready(prepared)) = self.held.remove(id) else { return };
        let back = CancellationToken::new();
        self.held.insert(id.clone(), Holding::Leaving(back.clone(), prepared.served.digest.clone()));
        tracing::info!(model = id.model, digest = id.digest, "a checkpoint is not wanted any more");
        self.reporter.withdraw(id);
        self.member.say();
        let (written, settle, catalogue) = (self.member.written(), self.settle, self.shop.catalogue.clone());
        let id = id.clone();
        self.spawn_step(async move {
            let leave = async {
                // Swaps are committed on what workers say, so it is said before anything changes.
                written.await;
                time::sleep(settle).await;
                catalogue.remove(&id);
                unused(&prepared.served).await;
            };
            match back.run_until_cancelled(leave).await {
                Some(()) => News::Unused(prepared),
                None => News::Kept(prepared),
            }
        });
    }

    /// Calls a checkpoint back that is on its way out.
    pub(super) fn resume(&self, id: &Id) {
        if let Some(Holding::Leaving(back, _)) = self.held.get(id) {
            back.cancel();
        }
    }

    /// Offers a checkpoint that is ready.
    pub(super) fn hold(&mut self, prepared: Prepared) {
        self.shop.catalogue.add(prepared.served.clone());
        self.reporter.offer(&prepared);
        self.held.insert(prepared.served.id(), Holding::Ready(prepared));
        self.member.say();
    }

    /// Takes a checkpoint off the device, unless it is there under another name too: that has a hold of its own on the
    /// files.
    pub(super) fn unload(&mut self, prepared: Prepared) {
        let Prepared { served, cached, .. } = prepared;
        let (id, digest) = (served.id(), served.digest.clone());
        drop(served);
        self.held.remove(&id);
        if self.uses(&digest) {
            return;
        }
        self.held.insert(id.clone(), Holding::Going(digest.clone()));
        let shop = self.shop.clone();
        self.spawn_step(async move {
            shop.unload(&digest).await;
            drop(cached);
            News::Gone(id)
        });
    }

    /// Whether a checkpoint is on the device for anybody, or soon will be.
    fn uses(&self, digest: &str) -> bool {
        let comes = self.running.as_ref().is_some_and(|running| running.task.id.digest == digest);
        let held = |holding: &Holding| match holding {
            Holding::Ready(prepared) => *prepared.served.digest == *digest,
            Holding::Leaving(_, other) | Holding::Going(other) => **other == *digest,
        };
        comes || self.held.values().any(held)
    }
}
