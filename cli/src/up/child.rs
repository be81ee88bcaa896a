//! One child process over all its lives.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::failure::Failure;
use crate::print;

use super::http;
use super::logs::Log;
use super::restarts::{Death, Restarts, Verdict};

/// How often a child that is not ready yet is asked.
const ASK_EVERY: Duration = Duration::from_millis(25);
/// How long to wait for the end of the output of a child that is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// What people call it.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Where it says that it is ready: an address and a path.
    pub(crate) health: (SocketAddr, &'static str),
    pub(crate) leash: Leash,
}

/// How a child learns that this process is gone, even by SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leash {
    /// Its standard input ends: this process holds the other end.
    Stdin,
    /// The kernel sends it a signal, as its command line has arranged; or it has none.
    Signal,
}

/// A child that is not started again.
#[derive(Debug)]
pub(crate) struct GaveUp {
    sentence: String,
    last_lines: Vec<String>,
}

impl GaveUp {
    /// The sentence, and below it what the child said last.
    pub(crate) fn into_failure(self) -> Failure {
        let heading = if self.last_lines.is_empty() { "" } else { "; its last lines:" };
        let lines = self.last_lines.iter().fold(String::new(), |text, line| text + "\n  " + line);
        Failure::Local(anyhow::anyhow!("{}{heading}{lines}", self.sentence))
    }
}

/// Keeps one program running.
pub(crate) struct Keeper {
    pub(crate) program: Program,
    pub(crate) log: Log,
    /// Becomes true when it is ready for the first time.
    pub(crate) ready: watch::Sender<bool>,
    /// Asks it to end.
    pub(crate) stop: CancellationToken,
    /// Ends it.
    pub(crate) kill: CancellationToken,
    /// Of the tasks that follow its output.
    pub(crate) tasks: TaskTracker,
}

/// How a life of the child ended.
enum Life {
    Died(ExitStatus),
    Stopped,
}

impl Keeper {
    /// Starts the program, again and again where it dies, until it is stopped or given up.
    pub(crate) async fn keep(self) -> Result<(), GaveUp> {
        let mut restarts = Restarts::default();
        loop {
            let begun = Instant::now();
            let (mut running, pumps) =
                self.spawn().map_err(|error| self.give_up(&format!("cannot be started: {error}")))?;
            let life = self.live(&mut running).await;
            for mut pump in pumps {
                // Its last words, before they are quoted; a child of its own may hold the pipe open.
                if time::timeout(LAST_WORDS, &mut pump).await.is_err() {
                    pump.abort();
                }
            }
            let status = match life.map_err(|error| self.give_up(&format!("is out of reach: {error}")))? {
                Life::Died(status) => status,
                Life::Stopped => return Ok(()),
            };
            let death =
                Death { code: status.code(), lived: begun.elapsed(), was_ready: *self.ready.borrow() };
            let Verdict::Again(pause) = restarts.judge(death) else {
                return Err(self.give_up(&format!("ended with {status} and is not started again")));
            };
            let seconds = pause.as_secs_f64();
            print::note(format_args!(
                "{} ended with {status}, it is started again in {seconds} s",
                self.program.name
            ));
            if self.stop.run_until_cancelled(time::sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
    }

    fn give_up(&self, fault: &str) -> GaveUp {
        GaveUp { sentence: format!("{} {fault}", self.program.name), last_lines: self.log.last_lines() }
    }

    fn spawn(&self) -> io::Result<(Running, [JoinHandle<()>; 2])> {
        let mut command = Command::new(&self.program.path);
        command.args(&self.program.args).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        // A group of its own: Ctrl-C in a terminal reaches this process alone, which then ends them in order.
        command.process_group(0).stdin(match self.program.leash {
            Leash::Stdin => Stdio::piped(),
            Leash::Signal => Stdio::null(),
        });
        let mut child = command.spawn()?;
        let missing = || io::Error::other("the pipe is missing");
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr = child.stderr.take().ok_or_else(missing)?;
        let pumps = [
            self.tasks.spawn(self.log.clone().follow(stdout)),
            self.tasks.spawn(self.log.clone().follow(stderr)),
        ];
        let leash = child.stdin.take();
        Ok((Running { child, _leash: leash }, pumps))
    }

    async fn live(&self, running: &mut Running) -> io::Result<Life> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => {}
            status = running.child.wait() => return status.map(Life::Died),
            never = self.watch_readiness() => match never {},
        }
        running.end(&self.kill).await?;
        Ok(Life::Stopped)
    }

    async fn watch_readiness(&self) -> Infallible {
        let (address, path) = self.program.health;
        while !http::is_ok(address, path).await {
            time::sleep(ASK_EVERY).await;
        }
        self.ready.send_replace(true);
        std::future::pending().await
    }
}

/// A child process; dropping it kills it.
struct Running {
    child: Child,
    /// While it is open the child knows that this process lives.
    _leash: Option<ChildStdin>,
}

impl Running {
    /// Asks the child to end and waits, until `kill` ends it.
    async fn end(&mut self, kill: &CancellationToken) -> io::Result<()> {
        // Without an id it has been waited for, and its number may be another's.
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            // It may have ended in this moment; the wait below tells.
            let _ = kill_process(pid, Signal::TERM);
        }
        tokio::select! {
            biased;
            () = kill.cancelled() => self.child.kill().await,
            status = self.child.wait() => status.map(drop),
        }
    }
}
