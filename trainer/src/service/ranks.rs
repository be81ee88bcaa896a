//! Rank processes: started together, listened to, and ended together.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::{env, fs, io};

use model::Device;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use torch_ext::Store;

use crate::rank::Told;

/// The exit code of a rank that another attempt may do better: `EX_TEMPFAIL`.
pub const TRY_AGAIN: u8 = 75;
/// What ranks say that is not yet taken in.
const HEARD: usize = 256;
/// Longest line of a log that is kept.
const LINE: usize = 400;

/// What ranks are started with.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The job, a JSON file.
    pub(super) job: PathBuf,
    /// Where what they log is kept.
    pub(super) logs: PathBuf,
    /// What they run on, one each.
    pub(super) devices: Vec<Device>,
    /// Which attempt it is, from 1.
    pub(super) attempt: u32,
    /// Threads of each.
    pub(super) threads: usize,
    /// How long they wait for one another.
    pub(super) timeout_seconds: u64,
}

/// What is heard of ranks.
#[derive(Debug)]
pub(super) enum Heard {
    /// Rank 0 told of something.
    Told(Told),
    /// One logged a line.
    Log {
        /// Which.
        rank: usize,
        /// What.
        line: String,
    },
    /// One has ended, after all that it said.
    Ended {
        /// Which.
        rank: usize,
        /// How.
        status: ExitStatus,
    },
}

/// Ranks that run. Dropping them ends them.
#[derive(Debug)]
pub(super) struct Ranks {
    pub(super) heard: mpsc::Receiver<Heard>,
    pub(super) end: DropGuard,
}

impl Ranks {
    /// Starts all of them.
    ///
    /// # Errors
    /// Where the system has no process or no port for them.
    pub(super) fn start(plan: &Plan, tasks: &TaskTracker) -> io::Result<Self> {
        fs::create_dir_all(&plan.logs)?;
        let port = Store::reserve_port()?;
        let (tell, heard) = mpsc::channel(HEARD);
        let end = CancellationToken::new();
        for (rank, device) in plan.devices.iter().enumerate() {
            let child = command(plan, (rank, *device), port)?.spawn()?;
            let log = plan.logs.join(format!("rank-{rank}.log"));
            let readers = tasks.clone();
            tasks.spawn(attend(child, (rank, log), (tell.clone(), readers), end.clone()));
        }
        Ok(Self { heard, end: end.drop_guard() })
    }

    /// What is heard next; none once all have ended. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }
}

fn command(plan: &Plan, (rank, device): (usize, Device), port: u16) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("rank").arg(&plan.job).arg("--exit-on-stdin-eof");
    for (flag, value) in [
        ("--rank", rank.to_string()),
        ("--ranks", plan.devices.len().to_string()),
        ("--device", device.to_string()),
        ("--store-port", port.to_string()),
        ("--attempt", plan.attempt.to_string()),
        ("--timeout-seconds", plan.timeout_seconds.to_string()),
        ("--threads", plan.threads.to_string()),
    ] {
        command.arg(flag).arg(value);
    }
    command.env("TORCH_CPP_LOG_LEVEL", "ERROR").kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Listens to one rank to its end, which `end` brings about.
async fn attend(
    mut child: Child,
    (rank, log): (usize, PathBuf),
    (tell, tasks): (mpsc::Sender<Heard>, TaskTracker),
    end: CancellationToken,
) {
    // Ends with this function, and with it a rank that is still there.
    let _leash = child.stdin.take();
    let lines = child.stdout.take().map(|out| tasks.spawn(listen(out, tell.clone())));
    let logged = child.stderr.take().map(|err| tasks.spawn(keep(err, (rank, log), tell.clone())));
    let status = tokio::select! {
        status = child.wait() => status,
        () = end.cancelled() => {
            // It may have ended by itself.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    for reader in [lines, logged].into_iter().flatten() {
        join(reader).await;
    }
    if let Ok(status) = status {
        // Nobody may listen any more.
        let _ = tell.send(Heard::Ended { rank, status }).await;
    }
}

async fn join(reader: JoinHandle<()>) {
    // It neither panics nor is it cancelled; if it did, its lines are missing and nothing else.
    let _ = reader.await;
}

/// Takes in what rank 0 tells; the others tell nothing.
async fn listen(out: impl AsyncRead + Unpin, tell: mpsc::Sender<Heard>) {
    let mut lines = BufReader::new(out).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str(&line) {
            Ok(told) => {
                if tell.send(Heard::Told(told)).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, line, "a rank told what is not understood"),
        }
    }
}

/// Keeps what a rank logs, in a file and for whoever watches.
async fn keep(err: impl AsyncRead + Unpin, (rank, path): (usize, PathBuf), tell: mpsc::Sender<Heard>) {
    let mut file = OpenOptions::new().create(true).append(true).open(&path).ok();
    let mut lines = BufReader::new(err).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(open) = &mut file
            && let Err(error) = writeln!(open, "{line}")
        {
            tracing::warn!(%error, path = %path.display(), "a log is not kept any more");
            file = None;
        }
        let line = line.chars().take(LINE).collect();
        if tell.send(Heard::Log { rank, line }).await.is_err() {
            return;
        }
    }
}
