//! `beige embed --output`: what an interruption costs, and what `--resume` refuses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::fake::{DIGEST, Fake, OTHER_DIGEST};
use crate::{Ran, beige, command};

const TEXTS: usize = 400;

/// A fake, a file of texts and a place for their vectors.
struct Scene {
    fake: Fake,
    directory: TempDir,
    output: &'static str,
    flags: &'static [&'static str],
}

impl Scene {
    fn new(output: &'static str, flags: &'static [&'static str]) -> Self {
        let scene = Self { fake: Fake::start(), directory: tempfile::tempdir().unwrap(), output, flags };
        let lines: Vec<String> = (0..TEXTS).map(|i| format!("text {i}")).collect();
        fs::write(scene.path("texts.txt"), lines.join("\n")).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn args(&self, output: &str, more: &[&str]) -> Vec<String> {
        let (input, output) = (self.path("texts.txt"), self.path(output));
        let fixed = ["embed", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
        let batches = ["--batch-texts", "4", "--in-flight", "3"];
        [&fixed[..], &batches, self.flags, more].concat().into_iter().map(str::to_owned).collect()
    }

    fn run(&self, output: &str, more: &[&str]) -> Ran {
        let args = self.args(output, more);
        beige(&self.fake, &args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts the run, kills it as soon as a part of its output is safe, and says how many texts that is.
    fn interrupt(&self) -> u64 {
        // All of it would take much longer than this waits for its first part.
        self.fake.state().delay = Duration::from_millis(300);
        let args = self.args(self.output, &[]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = command(&self.fake, &args).stderr(Stdio::null()).spawn().unwrap();
        let mark = self.path(&format!("{}.partial.json", self.output));
        while count(&mark).unwrap_or(0) == 0 {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        self.fake.state().delay = Duration::ZERO;
        assert!(!self.path(self.output).exists());
        count(&mark).unwrap()
    }
}

fn count(mark: &Path) -> Option<u64> {
    let mark: Value = serde_json::from_str(&fs::read_to_string(mark).ok()?).ok()?;
    mark["count"].as_u64()
}

#[track_caller]
fn resumes(output: &'static str, flags: &'static [&'static str]) {
    let scene = Scene::new(output, flags);
    let done = scene.interrupt();
    assert!(0 < done && done < TEXTS as u64);
    scene.fake.state().texts = 0;
    let ran = scene.run(output, &["--resume"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("texts done already"), "{ran:?}");
    assert_eq!(scene.fake.state().texts as u64, TEXTS as u64 - done);
    let whole = format!("whole-{output}");
    assert_eq!(scene.run(&whole, &[]).code, Some(0));
    assert_eq!(fs::read(scene.path(output)).unwrap(), fs::read(scene.path(&whole)).unwrap());
    let scales = |name: &str| fs::read(scene.path(name).with_extension("scales.npy")).ok();
    assert_eq!(scales(output), scales(&whole));
    let left = fs::read_dir(scene.directory.path()).unwrap();
    let partial = |name: String| name.contains(".partial");
    assert!(!left.into_iter().any(|entry| partial(entry.unwrap().file_name().into_string().unwrap())));
}

#[test]
fn the_file_is_the_one_that_an_undisturbed_run_writes() {
    resumes("out.jsonl", &[]);
    resumes("out.npy", &[]);
    resumes("out.npy", &["--encoding", "int8"]);
    resumes("out.safetensors", &["--encoding", "int8"]);
}

#[test]
fn every_call_after_the_first_requires_the_first_ones_checkpoint() {
    let scene = Scene::new("out.npy", &[]);
    assert_eq!(scene.run("out.npy", &[]).code, Some(0));
    let required = scene.fake.state().required.clone();
    assert_eq!((required.len(), required[0].as_str()), (TEXTS / 4, ""));
    assert!(required[1..].iter().all(|digest| digest == DIGEST));
}

#[test]
fn another_checkpoint_is_never_mixed_in() {
    let scene = Scene::new("out.npy", &[]);
    let done = scene.interrupt();
    OTHER_DIGEST.clone_into(&mut scene.fake.state().models[0].1);
    let ran = scene.run("out.npy", &["--resume"]);
    ran.failed(
        1,
        "the checkpoint has changed: mini@111111111111, which made the vectors so far, is no longer served",
    );
    ran.failed(1, "(the model is now 222222222222)");
    // Nothing is lost: when the checkpoint is back, so is the work.
    DIGEST.clone_into(&mut scene.fake.state().models[0].1);
    scene.fake.state().texts = 0;
    assert_eq!(scene.run("out.npy", &["--resume"]).code, Some(0));
    assert_eq!(scene.fake.state().texts as u64, TEXTS as u64 - done);
}

#[test]
fn a_swap_in_mid_run_ends_the_run_and_keeps_its_part() {
    let scene = Scene::new("out.jsonl", &[]);
    scene.fake.state().delay = Duration::from_millis(200);
    let args = scene.args("out.jsonl", &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let child = command(&scene.fake, &args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    while scene.fake.state().texts < 40 {
        std::thread::sleep(Duration::from_millis(5));
    }
    OTHER_DIGEST.clone_into(&mut scene.fake.state().models[0].1);
    Ran::from(child.wait_with_output().unwrap()).failed(1, "the checkpoint has changed");
    let part = fs::read_to_string(scene.path("out.jsonl.partial")).unwrap();
    assert_eq!(part.lines().count() as u64, count(&scene.path("out.jsonl.partial.json")).unwrap());
    assert!(part.lines().count() >= 20 && part.lines().all(|line| line.contains(DIGEST)));
}

#[test]
fn a_part_is_neither_lost_nor_misused_by_accident() {
    let scene = Scene::new("out.npy", &[]);
    scene.interrupt();
    scene.run("out.npy", &[]).failed(2, "go on with --resume, or begin anew with --overwrite");
    scene.run("out.npy", &["--resume", "--dimensions", "4"]).failed(2, "was begun with other settings");
    let texts = fs::read_to_string(scene.path("texts.txt")).unwrap();
    fs::write(scene.path("texts.txt"), texts.replacen("text 0", "text zero", 1)).unwrap();
    scene.run("out.npy", &["--resume"]).failed(2, "are not those that the output was begun with");
    fs::write(scene.path("texts.txt"), texts).unwrap();
    fs::write(scene.path("out.npy.partial"), "cut short").unwrap();
    scene.run("out.npy", &["--resume"]).failed(1, "it is shorter than its record says");
    scene.fake.state().texts = 0;
    assert_eq!(scene.run("out.npy", &["--overwrite"]).code, Some(0));
    assert_eq!(scene.fake.state().texts, TEXTS);
}

#[test]
fn resuming_what_is_complete_does_nothing() {
    let scene = Scene::new("out.npy", &[]);
    assert_eq!(scene.run("out.npy", &["--resume"]).code, Some(0));
    scene.fake.state().texts = 0;
    let ran = scene.run("out.npy", &["--resume"]);
    assert_eq!((ran.code, scene.fake.state().texts), (Some(0), 0));
    assert!(ran.stderr.contains("is complete, there is nothing to resume"), "{ran:?}");
}

#[test]
fn two_runs_do_not_write_one_output() {
    let scene = Scene::new("out.npy", &[]);
    // Until the other one has ended.
    scene.fake.state().delay = Duration::from_millis(500);
    let args = scene.args("out.npy", &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut first = command(&scene.fake, &args).stderr(Stdio::null()).spawn().unwrap();
    while scene.fake.state().texts == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    scene.run("out.npy", &["--overwrite"]).failed(2, "another process is writing");
    scene.fake.state().delay = Duration::ZERO;
    assert!(first.wait().unwrap().success());
}

#[test]
fn a_gateway_that_is_replaced_is_waited_for() {
    let mut scene = Scene::new("out.npy", &[]);
    scene.fake.state().delay = Duration::from_millis(20);
    let args = scene.args("out.npy", &[]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let child = command(&scene.fake, &args).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    while scene.fake.state().texts < 40 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let address = scene.fake.url().trim_start_matches("http://").to_owned();
    // Any port will do for a moment: what was there is gone before it is served again.
    drop(std::mem::replace(&mut scene.fake, Fake::start()));
    scene.fake = Fake::serve(&address, &["mini"]);
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(scene.run("whole.npy", &[]).code, Some(0));
    assert_eq!(fs::read(scene.path("out.npy")).unwrap(), fs::read(scene.path("whole.npy")).unwrap());
}
