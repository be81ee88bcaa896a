//! The checkpoints on the device, from outside: put there and warmed, or taken away, while others run.

use std::sync::Arc;
use std::time::Duration;

use model::Sequence;
use tokio::sync::{mpsc, oneshot};

use crate::bisect::{Encode, EncodeError};
use crate::config::BatchTokens;
use crate::device::{Order, Resident};
use crate::engine::Engine;
use crate::pace::{Budget, Target};
use crate::warm::{self, Patience, Rehearse};

/// What batches are to hold.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// As it was asked for.
    pub batch_tokens: BatchTokens,
    /// What it is measured against where that is to be found out.
    pub target: Target,
}

/// Mailboxes of those who know of the checkpoints on a device: the device itself, and the queue before it.
#[derive(Debug)]
pub struct Shelf<E> {
    orders: mpsc::Sender<Order<E>>,
    engine: Engine,
    sizes: Sizes,
}

/// What a checkpoint turned out to be on this device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmth {
    /// Work of a batch, in tokens.
    pub batch_tokens: usize,
    /// Work per second, in tokens.
    pub tokens_per_second: f64,
}

impl<E: Encode> Shelf<E> {
    /// Of a device and its queue.
    #[must_use]
    pub fn new(orders: mpsc::Sender<Order<E>>, engine: Engine, sizes: Sizes) -> Self {
        Self { orders, engine, sizes }
    }

    /// Puts a checkpoint on the device and runs its first batches, between those of others. Its longest input has
    /// `window` tokens. From then on calls for it may be queued.
    ///
    /// # Errors
    /// That of the first batch, and the checkpoint is not there.
    pub async fn put(
        &self,
        digest: &Arc<str>,
        resident: Resident<E>,
        window: usize,
        patience: Patience,
    ) -> Result<Warmth, EncodeError> {
        let probe = resident.probe.clone();
        self.order(Order::Put { digest: digest.clone(), resident }).await?;
        let Sizes { batch_tokens, target } = self.sizes;
        let mut stage = Stage { orders: &self.orders, digest };
        let rate = match warm::warm(&probe, (target, patience), &mut stage).await {
            Ok(rate) => rate,
            Err(error) => {
                self.take(digest).await;
                return Err(error);
            }
        };
        let budget = match batch_tokens {
            BatchTokens::Auto => Budget::measured(target, window, rate),
            BatchTokens::Fixed(tokens) => Budget::fixed(tokens.get()),
        };
        self.engine.open(digest.clone(), budget, rate).await;
        Ok(Warmth { batch_tokens: budget.tokens(), tokens_per_second: rate })
    }

    /// Takes a checkpoint off the device; no call for it may be left. It is to be dropped where that holds up nobody.
    pub async fn take(&self, digest: &Arc<str>) -> Option<E> {
        self.engine.close(digest.clone()).await;
        let (taken, back) = oneshot::channel();
        self.order(Order::Take { digest: digest.clone(), taken }).await.ok()?;
        back.await.ok().map(|resident| resident.encoder)
    }

    async fn order(&self, order: Order<E>) -> Result<(), EncodeError> {
        self.orders.send(order).await.map_err(|_| gone())
    }
}

/// A checkpoint on the device, as the warm-up sees it.
struct Stage<'a, E> {
    orders: &'a mpsc::Sender<Order<E>>,
    digest: &'a Arc<str>,
}

impl<E: Encode> Rehearse for Stage<'_, E> {
    async fn run(&mut self, batch: Vec<Sequence>) -> Result<Duration, EncodeError> {
        let (took, told) = oneshot::channel();
        let order = Order::Try { digest: self.digest.clone(), batch, took };
        self.orders.send(order).await.map_err(|_| gone())?;
        told.await.map_err(|_| gone())?
    }
}

/// The process is about to end, and says why itself.
fn gone() -> EncodeError {
    EncodeError::Failed("the device has ended".to_owned())
}
