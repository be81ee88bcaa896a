//! All children together: started in one order, ended in the other.

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::failure::Failure;
use crate::print;

use super::child::{GaveUp, Keeper, Program};
use super::logs::Logs;
use super::signals::Signals;

/// What a child is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Etcd,
    Gateway,
    Worker,
    Trainer,
}

/// The trainer first: it hands its jobs back. Then the gateway: it takes no more calls and finishes those it has, for which it needs the workers.
/// Then the workers, which take their names out of etcd. Then etcd.
const STOP_ORDER: [Role; 4] = [Role::Trainer, Role::Gateway, Role::Worker, Role::Etcd];

/// The children of this process.
pub(crate) struct Supervisor {
    logs: Logs,
    members: Vec<Member>,
    tasks: TaskTracker,
    kill: CancellationToken,
    beyond_help: mpsc::Sender<GaveUp>,
}

struct Member {
    role: Role,
    name: String,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Supervisor {
    /// No children yet, and where to hear of those that are beyond help.
    pub(crate) fn new(log_dir: Option<PathBuf>) -> Result<(Self, mpsc::Receiver<GaveUp>), Failure> {
        let (beyond_help, heard) = mpsc::channel(8);
        let logs = Logs::new(log_dir)?;
        let (tasks, kill) = (TaskTracker::new(), CancellationToken::new());
        Ok((Self { logs, members: Vec::new(), tasks, kill, beyond_help }, heard))
    }

    /// Starts a child and keeps it running.
    pub(crate) fn start(&mut self, role: Role, program: Program) -> Result<(), Failure> {
        let (ready, is_ready) = watch::channel(false);
        let (name, stop) = (program.name.clone(), CancellationToken::new());
        let keeper = Keeper {
            log: self.logs.of(&name)?,
            program,
            ready,
            stop: stop.clone(),
            kill: self.kill.clone(),
            tasks: self.tasks.clone(),
        };
        let beyond_help = self.beyond_help.clone();
        let keeper = self.tasks.spawn(async move {
            if let Err(gave_up) = keeper.keep().await {
                // One is enough to end everything: those that find no room are of no interest.
                let _ = beyond_help.try_send(gave_up);
            }
        });
        self.members.push(Member { role, name, ready: is_ready, stop, keeper });
        Ok(())
    }

    /// Waits until every child so far has been ready once. Does not end where one is beyond help.
    pub(crate) async fn all_ready(&mut self) {
        for member in &mut self.members {
            if member.ready.wait_for(|ready| *ready).await.is_err() {
                std::future::pending::<()>().await; // Its keeper has given up and said so.
            }
        }
    }

    /// Ends the children in order, and kills what is left when `grace` is over or a second signal comes.
    /// Says whether all ended by themselves.
    pub(crate) async fn stop(mut self, signals: &mut Signals, grace: Duration) -> bool {
        let kill = self.kill.clone();
        let hurry = async {
            tokio::select! {
                () = signals.next() => print::note("killing what is left"),
                () = time::sleep(grace) => print::note(format_args!("{} s are over, killing what is left", grace.as_secs())),
            }
            kill.cancel();
            std::future::pending::<()>().await;
        };
        let orderly = async {
            for role in STOP_ORDER {
                stop_all(self.members.iter_mut().filter(|member| member.role == role)).await;
            }
        };
        tokio::select! {
            () = orderly => {}
            () = hurry => {}
        }
        self.tasks.close();
        self.tasks.wait().await;
        !self.kill.is_cancelled()
    }
}

async fn stop_all(members: impl Iterator<Item = &mut Member>) {
    let members: Vec<_> = members.inspect(|member| member.stop.cancel()).collect();
    for member in members {
        if (&mut member.keeper).await.is_err() {
            print::note(format_args!("the supervision of {} has failed", member.name));
        }
    }
}
