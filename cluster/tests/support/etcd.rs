//! A real etcd for tests: child processes on free ports, with data directories of their own, gone when dropped.
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
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A noisy machine may take this long to start etcd, or to end it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ports to try: below those that Linux gives to outgoing connections, so that a port stays free over a restart.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What a member does that speaks TLS to its clients, as paths of PEM files.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// Its certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Whose certificates clients must show.
    pub client_authorities: PathBuf,
}

/// One member: alone in its cluster, or one of several.
#[derive(Debug)]
pub struct EtcdServer {
    name: String,
    port: u16,
    /// Plain, for its health page alone.
    health: u16,
    /// Of each member's peers, this one's own among them.
    peers: Vec<(String, u16)>,
    tls: Option<EtcdTls>,
    data: TempDir,
    child: Option<Child>,
}

impl EtcdServer {
    /// Starts etcd and waits until it serves.
    pub async fn start() -> Self {
        Self::start_all(1, None).await.pop().expect("one")
    }

    /// Starts an etcd that speaks TLS alone, and waits until it serves.
    pub async fn start_secured(tls: EtcdTls) -> Self {
        Self::start_all(1, Some(tls)).await.pop().expect("one")
    }

    /// Starts a cluster of `members` and waits until each serves.
    pub async fn start_cluster(members: usize) -> Vec<Self> {
        Self::start_all(members, None).await
    }

    async fn start_all(members: usize, tls: Option<EtcdTls>) -> Vec<Self> {
        let mut last = String::new();
        for _ in 0..20 {
            let peers: Vec<_> = (0..members).map(|i| (format!("member-{i}"), free_port())).collect();
            let plan = |(name, _): &(String, u16)| Self {
                name: name.clone(),
                port: free_port(),
                health: free_port(),
                peers: peers.clone(),
                tls: tls.clone(),
                data: empty_directory(),
                child: None,
            };
            let mut servers: Vec<Self> = peers.iter().map(plan).collect();
            // None serves before most are there.
            servers.iter_mut().for_each(Self::spawn);
            match Self::wait_for_all(&mut servers).await {
                Ok(()) => return servers,
                // Another process was quicker to take a port.
                Err(reason) => last = reason,
            }
        }
        panic!("etcd did not start on any of 20 ports; the last time: {last}")
    }

    async fn wait_for_all(servers: &mut [Self]) -> Result<(), String> {
        for server in servers {
            server.serves().await?;
        }
        Ok(())
    }

    /// `host:port` of its clients.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same port with the same data.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "etcd runs already");
        self.spawn();
        if let Err(reason) = self.serves().await {
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
        self.data = empty_directory();
    }

    /// A copy of all its data, for [`restore`](Self::restore); it must not be running.
    pub fn snapshot(&self) -> TempDir {
        assert!(self.child.is_none(), "etcd runs");
        let copy = empty_directory();
        copy_contents(self.data.path(), copy.path());
        copy
    }

    /// Puts its data back to what they were; it must not be running.
    pub fn restore(&mut self, snapshot: &TempDir) {
        self.wipe();
        copy_contents(snapshot.path(), self.data.path());
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
        shell(&format!("kill -{name} {}", child.id()));
    }

    /// What it has complained of since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.data.path().join("log")
    }

    fn spawn(&mut self) {
        match self.command().spawn() {
            Ok(child) => self.child = Some(child),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                panic!("the tests need an etcd server on PATH or in BEIGE_TEST_ETCD: run `make setup`")
            }
            Err(error) => panic!("cannot run etcd: {error}"),
        }
    }

    /// Waits until it serves; an error where it ended instead.
    async fn serves(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !is_healthy(self.health) {
            let child = self.child.as_mut().expect("spawned");
            if let Some(status) = child.try_wait().expect("a child of ours") {
                self.child = None;
                return Err(format!("{status}\n{}", self.log()));
            }
            assert!(Instant::now() < deadline, "etcd does not serve within {PATIENCE:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(std::env::var_os("BEIGE_TEST_ETCD").unwrap_or_else(|| "etcd".into()));
        let peer = |(name, port): &(String, u16)| format!("{name}=http://127.0.0.1:{port}");
        let peers: Vec<String> = self.peers.iter().map(peer).collect();
        let own = peers.iter().find_map(|peer| peer.strip_prefix(&format!("{}=", self.name))).expect("ours");
        command.args(["--name", &self.name, "--initial-cluster", &peers.join(",")]);
        command.args(["--listen-peer-urls", own, "--initial-advertise-peer-urls", own]);
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let clients = format!("{scheme}://{}", self.endpoint());
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", self.health)]);
        if let Some(EtcdTls { certificate, key, client_authorities }) = &self.tls {
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(client_authorities);
        }
        if self.peers.len() == 1 {
            // Elections are quick where there is one voter, and leases can be as short as a second.
            command.args(["--heartbeat-interval", "20", "--election-timeout", "200"]);
        }
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

fn empty_directory() -> TempDir {
    TempDir::with_prefix("beige-test-etcd-").expect("a temporary directory")
}

fn copy_contents(from: &Path, to: &Path) {
    shell(&format!("cp -R '{}/.' '{}'", from.display(), to.display()));
}

fn shell(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().expect("a shell");
    assert!(status.success(), "{command}: {status}");
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
