//! Work that takes long and must not be felt: on a thread of its own, which gives way to those that serve.
//!
//! A checkpoint is prepared while others answer calls, on the same cores. What weighs is not how much the preparation
//! takes in all but whether a batch has to wait for it, so a thread that works beside serving is as *nice* as can
//! be: while batches run it gets about a sixtieth of a core, and whatever they leave otherwise. A batch runs on all cores
//! and ends with the slowest of them: beside a thread that was not nice, the 99th percentile of calls that take 5 ms rose
//! from 10 ms to 250 ms on two cores. It is not idle altogether, or on a machine that is busy all the time it would never
//! be done.

use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{io, thread};

use tokio::sync::oneshot;

use crate::bisect::message;

/// Against 0 of the threads that serve: each step is worth about a quarter more or less of a contended core.
const NICE: i32 = 19;

/// How much of the machine work may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// So many threads: nothing is served yet.
    All(NonZeroUsize),
    /// What serving leaves of one core.
    Spare,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// The system has no thread.
    #[error("no thread: {0}")]
    Thread(#[from] io::Error),
    /// The work panicked.
    #[error("it panicked: {0}")]
    Panicked(String),
}

/// What `work` answers, done by a thread called `name`. It goes on to its end, whoever waits for it.
///
/// # Errors
/// [`Unfinished`].
pub async fn apart<T: Send + 'static>(
    name: &str,
    effort: Effort,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let (tell, told) = oneshot::channel();
    let life = move || {
        settle(effort);
        // Nobody may wait for it any more.
        let _ = tell.send(catch_unwind(AssertUnwindSafe(work)));
    };
    thread::Builder::new().name(name.to_owned()).spawn(life)?;
    match told.await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(panic)) => Err(Unfinished::Panicked(message(&*panic).to_owned())),
        Err(_) => Err(Unfinished::Panicked("for no stated reason".to_owned())),
    }
}

/// Makes the calling thread, and those that it starts, work as hard as `effort` says.
fn settle(effort: Effort) {
    match effort {
        Effort::All(threads) => model::set_threads(threads.get()),
        Effort::Spare => {
            model::set_threads(1);
            // On Linux this is the calling thread alone; a system that refuses makes it only less considerate.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "the thread cannot give way");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        rustix::process::getpriority_process(None).unwrap()
    }

    #[tokio::test]
    async fn work_beside_serving_gives_way() {
        let before = nice();
        assert!(apart("t", Effort::Spare, nice).await.unwrap() >= NICE.max(before));
        assert_eq!(nice(), before, "and nobody else does");
        assert_eq!(apart("t", Effort::All(NonZeroUsize::MIN), nice).await.unwrap(), before);
    }

    #[tokio::test]
    async fn a_panic_is_no_result() {
        let failed = apart("t", Effort::Spare, || panic!("as told")).await;
        assert!(matches!(failed, Err(Unfinished::Panicked(reason)) if reason == "as told"));
    }
}
