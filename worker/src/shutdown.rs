//! Leaving without a failed call: *forgotten, settled, drained, gone*.

use std::thread;
use std::time::Duration;

use telemetry::admin::Readiness;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bisect::Broken;
use crate::engine::Engine;
use crate::health::State;
use crate::prepare::steward::Stewardship;

/// What is told to gateways arrives within this time: they listen all the while.
const HEARD: Duration = Duration::from_millis(100);
/// What the device may take for its last batch, and tasks for their end, when no call waits for them any more.
const LAST_STEPS: Duration = Duration::from_secs(5);

/// Why a worker ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    /// Calls were still running when grace was over.
    #[error("grace was over before the last call")]
    Late,
    /// The socket does not do what sockets do.
    #[error("the socket failed: {0}")]
    Socket(#[from] tonic::transport::Error),
    /// The device does not run what it ran before.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The device thread panicked outside of any batch.
    #[error("the device thread panicked")]
    Panicked,
}

/// All that has to end.
#[derive(Debug)]
pub struct Running {
    /// What health streams tell.
    pub state: watch::Sender<State>,
    /// What operators are told.
    pub readiness: watch::Sender<Readiness>,
    /// Who owns what is loaded, and has the place in the cluster, where there is one.
    pub steward: Option<Stewardship>,
    /// Ends the server, once its calls are answered.
    pub stop: CancellationToken,
    /// The server.
    pub server: JoinHandle<Result<(), tonic::transport::Error>>,
    /// The last mailbox of the queue, beside the server's.
    pub engine: Engine,
    /// How the device thread ended.
    pub device: oneshot::Receiver<Result<(), Broken>>,
    /// The device thread.
    pub thread: thread::JoinHandle<()>,
    /// All tasks.
    pub tasks: TaskTracker,
    /// Ends those that outlive the calls.
    pub ended: CancellationToken,
}

impl Running {
    /// Waits until the worker cannot go on, which it should for ever.
    pub async fn fails(&mut self) -> Exit {
        // Cancel safe, all of them.
        tokio::select! {
            ended = &mut self.device => match ended {
                Ok(Err(broken)) => broken.into(),
                // It ends without an error only when its mailbox is gone, and here that is held.
                Ok(Ok(())) | Err(_) => Exit::Panicked,
            },
            served = &mut self.server => match served {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) | Err(_) => Exit::Panicked,
            },
        }
    }

    /// Leaves: says so, goes on for `settle`, and has its calls end within `grace`.
    ///
    /// # Errors
    /// [`Exit::Late`] when some have not; what the device ended with.
    pub async fn leave(mut self, settle: Duration, grace: Duration) -> Result<(), Exit> {
        self.say_goodbye(settle).await;

        self.stop.cancel();
        match time::timeout(grace, &mut self.server).await {
            Ok(Ok(served)) => served?,
            Ok(Err(_)) => return Err(Exit::Panicked),
            Err(_) => return Err(Exit::Late),
        }

        drop(self.engine); // The last mailbox: the queue's task ends, and the device thread runs dry.
        match time::timeout(LAST_STEPS, self.device).await {
            Ok(Ok(ended)) => ended?,
            Ok(Err(_)) => return Err(Exit::Panicked),
            Err(_) => return Err(Exit::Late),
        }
        // It has said its last word, so this does not block.
        self.thread.join().map_err(|_| Exit::Panicked)?;
        self.ended.cancel();
        self.tasks.close();
        time::timeout(LAST_STEPS, self.tasks.wait()).await.map_err(|_| Exit::Late)
    }

    /// Gives up at once what cannot go on; gateways are told, so that they go elsewhere.
    pub async fn give_up(mut self) {
        self.say_goodbye(HEARD).await;
        self.stop.cancel();
    }

    /// Is forgotten, and lets that settle.
    async fn say_goodbye(&mut self, settle: Duration) {
        self.state.send_modify(|state| state.draining = true);
        let forgotten = async {
            // From here on no checkpoint comes or goes. It ends at once.
            let member = match self.steward.take() {
                Some(steward) => steward.end().await,
                None => None,
            };
            self.readiness.send_replace(Readiness::NotReady("leaving".to_owned()));
            let Some(member) = member else { return };
            member.say();
            // A gateway should hear of it from us before it misses the registration.
            time::sleep(HEARD.min(settle)).await;
            member.leave().await;
        };
        tokio::join!(forgotten, time::sleep(settle));
    }
}
