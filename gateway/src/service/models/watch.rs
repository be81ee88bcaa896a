//! A model's swap as it is, and as it goes.

use std::time::Duration;

use cluster::Name;
use proto::v1;
use tokio::sync::mpsc;
use tokio::time::{self, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::{Instrument as _, Span};

use crate::error::ManageError;
use crate::service::Service;
use crate::show;
use crate::wire::swaps::{self, Until};

/// How often workers are asked how far they are.
const LOOK: Duration = Duration::from_millis(250);

impl Service {
    /// A model's last swap.
    pub(super) fn last_swap(&self, model: &Name) -> Result<v1::Swap, ManageError> {
        let view = self.seen()?;
        let none = || ManageError::NotFound {
            kind: "swap",
            name: model.to_string(),
            sentence: format!("there was no swap of model {model}"),
        };
        let swap = view.swaps.get(model.as_str()).ok_or_else(none)?;
        Ok(show::swap(model.as_str(), swap, &view, &self.dispatcher.fleet()))
    }

    /// A model's last swap, again at each change of it.
    pub(super) fn follow_swap(
        &self,
        wire: v1::WatchSwapRequest,
    ) -> Result<ReceiverStream<Result<v1::Swap, Status>>, ManageError> {
        let (model, until) = swaps::watch(wire)?;
        let first = self.last_swap(&model)?;
        let (answers, taken) = mpsc::channel(1);
        let following = self.clone().follow(model, until, first, answers);
        self.streams.spawn(following.instrument(Span::current()));
        Ok(ReceiverStream::new(taken))
    }

    async fn follow(
        self,
        model: Name,
        until: Until,
        mut told: v1::Swap,
        answers: mpsc::Sender<Result<v1::Swap, Status>>,
    ) {
        let mut views = self.control.views.clone();
        let mut ticks = time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if answers.send(Ok(told.clone())).await.is_err() {
            return;
        }
        while until == Until::Dropped || !is_decided(&told) {
            // All arms are cancel safe. Views that nobody makes any more are looked at all the same.
            tokio::select! {
                Ok(()) = views.changed() => {}
                _ = ticks.tick() => {}
                () = answers.closed() => return,
            }
            // A swap is never removed; an etcd that was wiped has nothing new to tell.
            let Ok(now) = self.last_swap(&model) else { continue };
            if now != told {
                told = now;
                if answers.send(Ok(told.clone())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Whether it is known what the name means after the swap.
fn is_decided(swap: &v1::Swap) -> bool {
    match swap.state() {
        v1::SwapState::Requested | v1::SwapState::Preparing | v1::SwapState::Trial => false,
        v1::SwapState::Unspecified
        | v1::SwapState::Committed
        | v1::SwapState::Retired
        | v1::SwapState::Aborted
        | v1::SwapState::RolledBack => true,
    }
}
