//! One of Beige's programs, running.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time;

use crate::PATIENCE;

/// A program, running until it is dropped.
#[derive(Debug)]
pub struct Process {
    /// Its name in this test.
    pub name: String,
    /// Its public port.
    pub address: SocketAddr,
    /// Its plain port.
    pub admin: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program and waits until it listens.
    pub async fn spawn(binary: &str, name: &str, arguments: &[&str], logs: &Path) -> Self {
        Self::spawn_with(binary, name, (arguments, &[]), logs).await
    }

    /// The same, with more in its environment.
    pub async fn spawn_with(
        binary: &str,
        name: &str,
        (arguments, environment): (&[&str], &[(String, String)]),
        logs: &Path,
    ) -> Self {
        let log = logs.join(format!("{name}-{}.log", std::process::id()));
        let mut command = tokio::process::Command::new(program(binary));
        command.envs(environment.iter().cloned());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child =
            command.stderr(File::options().create(true).append(true).open(&log).unwrap()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = async {
            (announced(&mut lines, "listening on ").await, announced(&mut lines, "admin on ").await)
        };
        match time::timeout(PATIENCE, listening).await {
            Ok((Some(address), Some(admin))) => Self { name: name.to_owned(), address, admin, child, log },
            _ => panic!("{name} does not listen:\n{}", std::fs::read_to_string(&log).unwrap_or_default()),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Ends it as a power cut would.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        let status = Command::new("sh").args(["-c", &format!("kill -TERM {}", self.id())]).status().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        time::timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap()
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Bytes of memory that it takes up now.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its plain port says that it is ready.
    pub async fn ready(&self) {
        let begun = Instant::now();
        while !self.page("/readyz").await.starts_with("HTTP/1.1 200") {
            assert!(begun.elapsed() < PATIENCE, "{} does not get ready:\n{}", self.name, self.log());
            time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A page of its plain port.
    pub async fn page(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of {}\n{}", self.name, self.log());
        }
    }
}

async fn announced(lines: &mut Lines<BufReader<ChildStdout>>, prefix: &str) -> Option<SocketAddr> {
    while let Some(line) = lines.next_line().await.ok()? {
        if let Some(address) = line.strip_prefix(prefix) {
            return address.parse().ok();
        }
    }
    None
}

/// One of the workspace's programs, up to date.
pub fn program(binary: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build).join(binary)
}

/// Builds what `cargo test --workspace` builds, or for a program of this crate what `make soak` and `bench/swaps` build, in
/// the same way: there nothing is left to do.
fn build() -> PathBuf {
    let mut command = Command::new(env!("CARGO"));
    if cfg!(debug_assertions) {
        command.args(["test", "--workspace", "--no-run"]);
    } else {
        command.args(["build", "--release", "-p", "cli", "-p", "gateway", "-p", "trainer", "-p", "worker"]);
        command.args(["-p", "tests"]);
        command.args(["--bins", "--examples"]);
    }
    command.args(["--locked", "--quiet"]);
    // What cargo tells a test about itself is none of the build's business: some build scripts look at it, and would
    // have everything built anew.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|own| name.starts_with(own))
        {
            command.env_remove(name.as_ref());
        }
    }
    let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "the programs do not build");
    // This program is in `target/<profile>/deps`.
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned()
}
