//! `beige up`: a real etcd, and fakes in the places of the gateway and the workers.
//!
//! The fakes are this very test binary, started again by small scripts beside a copy of `beige`: see
//! [`service`].

mod service;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Ran;

/// A directory with `beige`, fake services, a model, and a file in which the services say what they do.
struct Scene {
    directory: TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { directory: tempfile::tempdir().unwrap() };
        for directory in ["bin", "mini", "tmp"] {
            fs::create_dir(scene.path(directory)).unwrap();
        }
        fs::write(scene.path("mini/config.json"), "{}").unwrap();
        fs::copy(env!("CARGO_BIN_EXE_beige"), scene.path("bin/beige")).unwrap();
        for name in ["beige-gateway", "beige-trainer", "beige-worker"] {
            scene.install(
                name,
                &format!("FAKE_SERVICE={name} FAKE_ARGS=\"$*\" exec '{}' {}", this(), service::TEST),
            );
        }
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn install(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, flags: &[&str]) -> Command {
        self.command_at("127.0.0.1:0", flags)
    }

    fn command_at(&self, listen: &str, flags: &[&str]) -> Command {
        let model = self.path("mini");
        let mut command = Command::new(self.path("bin/beige"));
        command.args(["up", "--listen", listen, "--admin", "127.0.0.1:0", "--json", "--model"]);
        command.arg(&model).args(flags);
        command.env("FAKE_EVENTS", self.path("events")).env("TMPDIR", self.path("tmp")).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn up(&self, flags: &[&str]) -> Up {
        let mut child = self.command(flags).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let Ok(ready) = serde_json::from_str(&line) else {
            panic!("it does not come up: {:?}", Ran::from(child.wait_with_output().unwrap()));
        };
        Up { child, _stdout: stdout, ready }
    }

    /// What the services have said so far, line by line.
    fn events(&self) -> Vec<Vec<String>> {
        let events = fs::read_to_string(self.path("events")).unwrap_or_default();
        events.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    /// The process ids of all starts of a service.
    fn starts(&self, name: &str) -> Vec<String> {
        let starts = |event: &Vec<String>| event[0] == "started" && event[1] == name;
        self.events().into_iter().filter(starts).map(|event| event[2].clone()).collect()
    }

    /// The services that ended by themselves, in that order.
    fn stops(&self) -> Vec<String> {
        self.events()
            .into_iter()
            .filter(|event| event[0] == "stopped")
            .map(|event| event[1].clone())
            .collect()
    }
}

fn this() -> String {
    std::env::current_exe().unwrap().to_str().unwrap().to_owned()
}

/// A cluster that has said that it is ready.
struct Up {
    child: Child,
    _stdout: BufReader<ChildStdout>,
    ready: Value,
}

impl Up {
    fn send(&self, signal: &str) {
        kill(signal, &self.child.id().to_string());
    }

    fn end(self) -> Ran {
        self.child.wait_with_output().unwrap().into()
    }

    fn etcd_answers(&self) -> bool {
        TcpStream::connect(self.ready["etcd"].as_str().unwrap().trim_start_matches("http://")).is_ok()
    }
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args(["-s", signal, pid]).status().unwrap().success());
}

/// A noisy machine may take this long for anything that happens at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for something that happens sooner or later.
#[track_caller]
fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < PATIENCE, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn a_cluster_comes_up_is_used_and_ends_in_order() {
    let scene = Scene::new();
    let up = scene.up(&["--workers", "2", "--device", "cpu", "--dtype", "f32", "--threads", "3"]);
    assert_eq!(up.ready["models"], json!(["mini"]));
    let address = up.ready["address"].as_str().unwrap();
    let models =
        Command::new(scene.path("bin/beige")).args(["models", "--target", address]).output().unwrap();
    assert!(String::from_utf8(models.stdout).unwrap().contains("mini"));
    let workers: Vec<&str> =
        up.ready["workers"].as_array().unwrap().iter().map(|worker| worker["id"].as_str().unwrap()).collect();
    assert_eq!(workers, ["worker-0", "worker-1"]);
    let started = scene.events().into_iter().find(|event| event[1] == "worker-1").unwrap().join(" ");
    for part in ["--device cpu", "--dtype f32", "--threads 3", "--cluster local", "--exit-on-stdin-eof"] {
        assert!(started.contains(part), "{started}");
    }
    assert!(started.contains(&format!("--model mini={}", scene.path("mini").display())), "{started}");
    up.send("TERM");
    let ran = up.end();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let stops = scene.stops();
    assert_eq!(
        (stops.len(), &stops[..2]),
        (4, &["trainer".to_owned(), "gateway".to_owned()][..]),
        "{stops:?}"
    );
    assert_eq!(fs::read_dir(scene.path("tmp")).unwrap().count(), 0, "etcd's data is left over");
    assert!(ran.stderr.contains("worker-0 | "), "{ran:?}");
}

#[test]
fn a_process_that_dies_is_named_and_started_again() {
    let scene = Scene::new();
    let up = scene.up(&[]);
    kill("KILL", &scene.starts("worker-1")[0]);
    eventually("a second start", || scene.starts("worker-1").len() == 2);
    assert_eq!((scene.starts("worker-0").len(), scene.starts("gateway").len()), (1, 1));
    up.send("INT");
    let ran = up.end();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.stderr.contains("worker-1 ended with signal: 9 (SIGKILL), it is started again in 0.25 s"),
        "{ran:?}"
    );
}

#[test]
fn nothing_outlives_a_supervisor_that_is_killed() {
    let scene = Scene::new();
    let mut up = scene.up(&[]);
    assert!(up.etcd_answers());
    up.send("KILL");
    up.child.wait().unwrap();
    eventually("the end of the services", || scene.stops().len() == 4);
    eventually("the end of etcd", || !up.etcd_answers());
}

#[test]
fn a_second_signal_kills_what_does_not_end() {
    let scene = Scene::new();
    scene.install(
        "beige-gateway",
        &format!("FAKE_SERVICE=stubborn FAKE_ARGS=\"$*\" exec '{}' {}", this(), service::TEST),
    );
    let up = scene.up(&[]);
    up.send("INT");
    eventually("the signal's arrival", || scene.events().iter().any(|event| event[0] == "ignored"));
    up.send("INT");
    let ran = up.end();
    ran.failed(1, "not every process ended by itself");
    assert!(ran.stderr.contains("killing what is left"), "{ran:?}");
}

#[test]
fn data_that_is_kept_is_found_again() {
    let scene = Scene::new();
    let data = scene.path("data");
    for _ in 0..2 {
        let up = scene.up(&["--data", data.to_str().unwrap()]);
        up.send("TERM");
        assert_eq!(up.end().code, Some(0));
        assert!(data.join("etcd/member/wal").is_dir());
    }
}

#[test]
fn gateways_and_workers_share_a_store() {
    let scene = Scene::new();
    let data = scene.path("data");
    let up = scene.up(&["--data", data.to_str().unwrap(), "--gateways", "2", "--workers", "1"]);
    let store = format!("file://{}", data.canonicalize().unwrap().join("store").display());
    assert_eq!(up.ready["store"], json!(store));
    let gateways = up.ready["gateways"].as_array().unwrap();
    assert_eq!(gateways.len(), 2, "{gateways:?}");
    assert_eq!(gateways[0]["address"], up.ready["address"]);
    assert_ne!(gateways[0]["address"], gateways[1]["address"]);
    let started: Vec<_> = scene.events().into_iter().filter(|event| event[0] == "started").collect();
    for name in ["gateway", "gateway-1", "worker-0"] {
        let line = started.iter().find(|event| event[1] == name).unwrap().join(" ");
        assert!(line.contains(&format!("--store {store}")), "{line}");
        assert_eq!(line.contains("--cache "), name == "worker-0", "{line}");
    }
    up.send("TERM");
    assert_eq!(up.end().code, Some(0));
}

#[test]
fn a_grandchild_does_not_hold_the_end_up() {
    let scene = Scene::new();
    scene.install("beige-worker", "sleep 30 & echo bad >&2; exit 64");
    let ran = Ran::from(scene.command(&["--workers", "1"]).output().unwrap());
    ran.failed(1, "its last lines:\n  bad");
}

#[test]
fn grace_is_bounded() {
    let scene = Scene::new();
    scene.install(
        "beige-gateway",
        &format!("FAKE_SERVICE=stubborn FAKE_ARGS=\"$*\" exec '{}' {}", this(), service::TEST),
    );
    let up = scene.up(&["--grace", "1"]);
    up.send("TERM");
    let ran = up.end();
    ran.failed(1, "not every process ended by itself");
    assert!(ran.stderr.contains("1 s are over, killing what is left"), "{ran:?}");
}

#[test]
fn bad_configuration_ends_everything_at_once() {
    let scene = Scene::new();
    scene.install("beige-worker", "echo 'mini/model.safetensors is truncated' >&2; exit 64");
    let logs = scene.path("logs");
    let ran =
        Ran::from(scene.command(&["--workers", "1", "--log-dir", logs.to_str().unwrap()]).output().unwrap());
    ran.failed(1, "ended with exit status: 64 and is not started again; its last lines:\n  mini/model.safetensors is truncated");
    assert_eq!(
        fs::read_to_string(logs.join("worker-0.log")).unwrap(),
        "mini/model.safetensors is truncated\n"
    );
    assert_eq!(fs::read_dir(scene.path("tmp")).unwrap().count(), 0);
}

#[test]
fn who_never_gets_ready_is_given_up() {
    let scene = Scene::new();
    scene.install("beige-worker", "echo start >> \"$FAKE_EVENTS.starts\"; exit 3");
    let ran = Ran::from(scene.command(&["--workers", "1"]).output().unwrap());
    ran.failed(1, "worker-0 ended with exit status: 3 and is not started again");
    assert_eq!(fs::read_to_string(scene.path("events.starts")).unwrap().lines().count(), 3);
}

#[test]
fn what_cannot_work_is_refused_before_anything_starts() {
    let scene = Scene::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = scene.command_at(&held.local_addr().unwrap().to_string(), &[]).output().unwrap();
    Ran::from(busy).failed(1, "choose another with --listen");
    let refused = |flags: &[&str], code, part: &str| {
        Ran::from(scene.command(flags).output().unwrap()).failed(code, part);
    };
    let again = scene.path("mini").display().to_string();
    refused(&["--model", &again], 2, "two models are called mini; name them, as NAME=DIR");
    refused(&["--model", "/nowhere"], 2, "there is no directory /nowhere");
    let empty = scene.path("bin").display().to_string();
    refused(&["--model", &empty], 2, "has no config.json, so it holds no model");
    refused(&["--model", "x,pooling=max"], 2, "pooling is cls, mean or last");
    refused(&["--device", "gpu"], 2, "a device is auto, cpu or cuda:K");
    refused(&["--workers", "0"], 2, "--workers");
    fs::remove_file(scene.path("bin/beige-worker")).unwrap();
    refused(&[], 1, "the program beige-worker is missing: build it");
    let mut bare = Command::new(scene.path("bin/beige"));
    bare.arg("up").env("BEIGE_CACHE", scene.path("tmp"));
    Ran::from(bare.output().unwrap()).failed(2, "there is no model to serve: name one with --model DIR");
}
