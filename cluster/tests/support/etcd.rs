//! A real etcd for tests: a child process on a free port, with a data directory of its own, gone when it is dropped.
//!
//! The program is the `etcd` on PATH, or the one that `BEIGE_TEST_ETCD` names. Needs nothing but the standard library,
//! `tokio` and `tempfile`, so that other crates can include this file by its path.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each crate includes it where it likes, and uses what it likes"
)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A noisy machine may take this long to start etcd, or to end it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ports to try: below those that Linux gives to outgoing connections, so that a port stays free over a restart.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// One member that is its own cluster.
#[derive(Debug)]
pub struct EtcdServer {
    port: u16,
    data: TempDir,
    child: Option<Child>,
}

impl EtcdServer {
    /// Starts etcd and waits until it serves.
    pub async fn start() -> Self {
        let mut last = String::new();
        for _ in 0..20 {
            let data = TempDir::with_prefix("beige-test-etcd-").expect("a temporary directory");
            let mut server = Self { port: free_port(), data, child: None };
            match server.launch().await {
                Ok(()) => return server,
                // Another process was quicker to take the port.
                Err(reason) => last = reason,
            }
        }
        panic!("etcd did not start on any of 20 ports; the last time: {last}")
    }

    /// `host:port` of its clients.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same port with the same data.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "etcd runs already");
        if let Err(reason) = self.launch().await {
            panic!("etcd did not start again on port {}: {reason}", self.port);
        }
    }

    /// Ends it as an operator would, and waits for the end.
    pub async fn stop(&mut self) {
        self.signal("TERM");
        let mut child = self.child.take().expect("etcd runs");
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().expect("a child of ours").is_none() {
            assert!(Instant::now() < deadline, "etcd does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Removes all its data; it must not be running.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none(), "etcd runs");
        self.data = TempDir::with_prefix("beige-test-etcd-").expect("a temporary directory");
    }

    /// Stops its threads: connections stay open and nothing is answered.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let child = self.child.as_ref().expect("etcd runs");
        // The shell's own `kill`, because a bare machine has no other.
        let command = format!("kill -{name} {}", child.id());
        let status = Command::new("sh").args(["-c", &command]).status().expect("a shell");
        assert!(status.success(), "{command}: {status}");
    }

    /// What it has complained of since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.data.path().join("log")
    }

    async fn launch(&mut self) -> Result<(), String> {
        let mut child = match self.command().spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!("the tests need an etcd server on PATH or in BEIGE_TEST_ETCD: run `make setup`")
            }
            Err(error) => panic!("cannot run etcd: {error}"),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                return Err(format!("{status}\n{}", self.log()));
            }
            if is_healthy(self.port) {
                self.child = Some(child);
                return Ok(());
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("etcd does not serve within {PATIENCE:?}\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn command(&self) -> Command {
        let clients = format!("http://{}", self.endpoint());
        // Alone in its cluster, it talks to no peers: any port will do.
        let peers = "http://127.0.0.1:0";
        let mut command = Command::new(std::env::var_os("BEIGE_TEST_ETCD").unwrap_or_else(|| "etcd".into()));
        command.args(["--name", "alone", "--initial-cluster", &format!("alone={peers}")]);
        command.args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]);
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        // Elections are quick where there is one voter, and leases can be as short as a second.
        command.args(["--heartbeat-interval", "20", "--election-timeout", "200"]);
        command.args(["--logger", "zap", "--log-level", "error"]);
        command.arg("--data-dir").arg(self.data.path().join("data"));
        // What the machine's administrator set for another etcd is not for this one.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
            command.env_remove(name);
        }
        let log = File::create(self.log_file()).expect("a file in a directory of ours");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }
}

impl Drop for EtcdServer {
    /// Also when the test panics.
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    static TRIES: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Test processes that run side by side begin at different places.
    let start = u16::try_from(std::process::id() * 101 % u32::from(span)).expect("below the span");
    for _ in 0..span {
        let port = PORTS.start + (start + TRIES.fetch_add(1, Ordering::Relaxed) % span) % span;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {} and {}", PORTS.start, PORTS.end)
}

/// Asks etcd's health page, which wants a leader and a write that went through.
fn is_healthy(port: u16) -> bool {
    let ask = || -> io::Result<String> {
        let limit = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}
