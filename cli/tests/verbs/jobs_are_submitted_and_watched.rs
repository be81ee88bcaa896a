//! `beige train`: what is asked, how jobs are shown, and how it ends.

use std::fs;

use proto::v1::{Job, JobEvaluation, JobEvent, JobGate, JobState, JobStep, Metric};
use serde_json::json;

use crate::fake::{DIGEST, Fake, OTHER_DIGEST};
use crate::{Ran, beige};

const SPEC: &str = "kind: embedder\nmodel: mini\ntrain_data: [train.jsonl]\n";

fn event(what: &str) -> JobEvent {
    JobEvent { at_unix_ms: 1_000, what: what.into() }
}

fn evaluation(step: u64, value: f64) -> JobEvaluation {
    JobEvaluation { step, metrics: vec![Metric { name: "ndcg_at_10".into(), value }] }
}

/// A job in some state, as far as one gets in it.
fn job(name: &str, state: JobState) -> Job {
    let queued = Job {
        name: name.into(),
        spec: SPEC.into(),
        ranks: 2,
        events: vec![event("submitted")],
        ..Job::default()
    };
    let mut job = Job { submitted_unix_ms: 1_000, ..queued };
    job.set_state(state);
    if matches!(state, JobState::Queued | JobState::Cancelled | JobState::Unspecified) {
        return job;
    }
    let step = |step: u32| JobStep {
        step: step.into(),
        loss: 1.0 / f64::from(step),
        learning_rate: 1e-5,
        grad_norm: 0.5,
    };
    job.attempt = 1;
    job.trainer = "trainer".into();
    job.started_unix_ms = 2_000;
    (job.last, job.steps, job.tokens_per_second) = (Some(step(4)), 8, 1_234.0);
    job.curve = vec![step(2), step(4)];
    job.evaluations = vec![evaluation(0, 0.5)];
    job.events.push(event("attempt 1 begins, ranks: 2"));
    job.log = vec!["rank 0: reads".into()];
    if state == JobState::Failed {
        job.reason = "rank 0: No space left on device".into();
    }
    if state == JobState::Succeeded {
        job.last = Some(step(8));
        job.evaluations.push(evaluation(8, 0.75));
        (job.model_dir, job.model_step) = ("/jobs/done/model".into(), 8);
        (job.alias, job.digest) = ("mini".into(), OTHER_DIGEST.into());
        job.gate = Some(JobGate {
            metric: "ndcg_at_10".into(),
            margin: 0.01,
            served_digest: DIGEST.into(),
            served: Some(0.5),
            trained: 0.75,
            passed: true,
        });
        job.events.push(event("done"));
    }
    job
}

/// A fake with these jobs, and whoever watches told of `script`.
fn cluster(all: &[Job], script: &[Job]) -> Fake {
    let fake = Fake::start();
    fake.state().jobs.all = all.to_vec();
    fake.state().jobs.script = script.to_vec();
    fake
}

fn submit(fake: &Fake, text: &str, more: &[&str]) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("job.yaml");
    fs::write(&file, text).unwrap();
    beige(fake, &[&["train", "submit", "first", file.to_str().unwrap()], more].concat())
}

#[test]
fn the_example_is_a_document_to_start_from() {
    let fake = Fake::start();
    let ran = beige(&fake, &["train", "example"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for line in ["kind: embedder", "train_group_size: 8", "ranks: 1"] {
        assert!(ran.stdout.lines().any(|told| told == line), "{line}: {ran:?}");
    }
}

#[test]
fn a_document_is_submitted_as_it_is() {
    let fake = Fake::start();
    let ran = submit(&fake, SPEC, &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "first is queued\n"), "{ran:?}");
    assert_eq!(fake.state().jobs.all[0].spec, SPEC);
    let shown = submit(&fake, SPEC, &["--json"]).json().remove(0);
    assert_eq!((&shown["name"], &shown["state"]), (&json!("first"), &json!("queued")));
    fake.state().jobs.all = vec![job("first", JobState::Succeeded)];
    assert_eq!(submit(&fake, SPEC, &[]).stdout, "first had ended before: succeeded\n");
    beige(&fake, &["train", "submit", "first", "/nowhere/job.yaml"])
        .failed(2, "cannot read /nowhere/job.yaml");
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let fake = Fake::start();
    fake.state().jobs.faults = vec![("ranks", "it is 9"), ("model", "it is missing")];
    let ran = submit(&fake, SPEC, &["--watch"]);
    ran.failed(1, "the job has several faults:\n  ranks: it is 9\n  model: it is missing\n");
    assert_eq!((ran.stdout.as_str(), fake.state().jobs.watched), ("", 0));
    fake.state().jobs.faults = vec![("ranks", "it is 9")];
    assert_eq!(submit(&fake, SPEC, &[]).stderr, "error: ranks: it is 9\n");
}

#[test]
fn jobs_are_listed_with_what_came_of_them() {
    let jobs = [
        job("done", JobState::Succeeded),
        job("broken", JobState::Failed),
        job("going", JobState::Running),
        job("next", JobState::Queued),
    ];
    let fake = cluster(&jobs, &[]);
    let ran = beige(&fake, &["train", "ls"]);
    let rows: Vec<Vec<&str>> = ran.stdout.lines().map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        ["JOB", "STATE", "RANKS", "STEP", "LOSS", "SUBMITTED", "QUALITY", "RESULT"],
        "{ran:?}"
    );
    assert_eq!(rows[1][..5], ["done", "succeeded", "2", "8/8", "0.1250"]);
    assert!(ran.stdout.lines().nth(1).unwrap().ends_with("ndcg_at_10 0.5000 to 0.7500  mini@222222222222"));
    assert!(ran.stdout.lines().nth(2).unwrap().ends_with("rank 0: No space left on device"), "{ran:?}");
    assert_eq!(rows[3][..5], ["going", "running", "2", "4/8", "0.2500"]);
    assert_eq!(rows[4][..5], ["next", "queued", "2", "-", "-"]);
    assert_eq!(beige(&fake, &["train"]).stdout, ran.stdout, "it is what is meant where nothing is said");
    let listed = beige(&fake, &["train", "ls", "--json"]).json().remove(0);
    assert_eq!(listed["jobs"][1]["reason"], json!("rank 0: No space left on device"));
}

#[test]
fn a_job_is_shown_whole() {
    let fake = cluster(&[job("done", JobState::Succeeded), job("next", JobState::Queued)], &[]);
    let ran = beige(&fake, &["train", "show", "done"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for line in [
        "state        succeeded",
        "trainer      trainer",
        "step         8 of 8",
        "loss         0.1250, gradient norm 0.500, learning rate 1.00e-5",
        "model        /jobs/done/model",
        &format!("version      mini@{OTHER_DIGEST}"),
        "gate         passed: ndcg_at_10 0.7500, that of what was served 0.5000, margin 0.01",
        "  step 8        ndcg_at_10 0.7500",
        "  rank 0: reads",
    ] {
        assert!(ran.stdout.lines().any(|told| told == line), "{line}: {ran:?}");
    }
    let queued = beige(&fake, &["train", "show", "next"]).stdout;
    for absent in ["attempt", "trainer", "step", "evaluations", "log"] {
        assert!(!queued.lines().any(|line| line.starts_with(absent)), "{absent}: {queued}");
    }
    let shown = beige(&fake, &["train", "show", "done", "--json"]).json().remove(0);
    assert_eq!((&shown["curve"][1]["step"], &shown["gate"]["passed"]), (&json!(4), &json!(true)));
    beige(&fake, &["train", "show", "other"]).failed(1, "there is no job other");
}

#[test]
fn a_job_that_succeeds_is_watched_to_0() {
    let script = [JobState::Queued, JobState::Running, JobState::Succeeded].map(|state| job("first", state));
    let fake = cluster(&script[..1], &script);
    let ran = beige(&fake, &["train", "watch", "first"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines[..2], ["submitted", "attempt 1 begins, ranks: 2"]);
    assert!(lines[2].starts_with("step 4 of 8: loss 0.2500  lr 1.00e-5  grad norm 0.500  1234 tokens/s"));
    let end = format!(
        "first succeeded: mini@{OTHER_DIGEST}; gate passed: ndcg_at_10 0.7500, that of what was served 0.5000, \
         margin 0.01"
    );
    assert_eq!(lines[3..], ["done", &end]);

    fake.state().jobs.script = script.to_vec();
    let states: Vec<_> = beige(&fake, &["train", "watch", "first", "--json"])
        .json()
        .iter()
        .map(|it| it["state"].clone())
        .collect();
    assert_eq!(states, ["queued", "running", "succeeded"]);
    fake.state().jobs.script = script.to_vec();
    let ran = submit(&fake, SPEC, &["--watch"]);
    assert_eq!((ran.code, ran.stdout.lines().last()), (Some(0), Some(end.as_str())), "{ran:?}");
}

#[test]
fn a_job_that_does_not_is_watched_to_1() {
    for (state, part) in [
        (JobState::Failed, "error: first failed: rank 0: No space left on device"),
        (JobState::Cancelled, "error: first was cancelled"),
    ] {
        let fake = cluster(&[job("first", state)], &[job("first", state)]);
        beige(&fake, &["train", "watch", "first"]).failed(1, part);
    }
    let fake = Fake::start();
    beige(&fake, &["train", "watch", "first"]).failed(1, "there is no job first");
}

#[test]
fn a_job_outlives_the_trainer_that_told_of_it() {
    let script = [JobState::Running, JobState::Unspecified, JobState::Running, JobState::Succeeded];
    let fake = cluster(&[job("first", JobState::Running)], &script.map(|state| job("first", state)));
    let ran = beige(&fake, &["train", "watch", "first"]);
    assert_eq!((ran.code, fake.state().jobs.watched), (Some(0), 2), "{ran:?}");
    assert_eq!(ran.stdout.matches("submitted").count(), 1, "what was told is not told again: {ran:?}");
}

#[test]
fn to_cancel_says_what_becomes_of_the_job() {
    let jobs = [JobState::Queued, JobState::Running, JobState::Succeeded]
        .map(|state| job(&format!("{state:?}"), state));
    let fake = cluster(&jobs, &[]);
    for (name, said) in [
        ("Queued", "Queued is cancelled\n"),
        ("Running", "Running is being cancelled\n"),
        ("Succeeded", "Succeeded had ended before: succeeded\n"),
    ] {
        assert_eq!(beige(&fake, &["train", "cancel", name]).stdout, said);
    }
    let shown = beige(&fake, &["train", "cancel", "Queued", "--json"]).json().remove(0);
    assert_eq!(shown["state"], json!("cancelled"));
    beige(&fake, &["train", "cancel", "other"]).failed(1, "there is no job other");
}

#[test]
fn what_has_ended_is_removed() {
    let fake = cluster(&[job("done", JobState::Succeeded), job("going", JobState::Running)], &[]);
    beige(&fake, &["train", "rm", "going"]).failed(1, "job going has not ended");
    let ran = beige(&fake, &["train", "rm", "done"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "done is removed\n"), "{ran:?}");
    assert_eq!(fake.state().jobs.all.len(), 1);
    beige(&fake, &["train", "rm", "done"]).failed(1, "there is no job done");
}

#[test]
fn a_report_is_one_page() {
    let (fake, directory) = (cluster(&[job("done", JobState::Succeeded)], &[]), tempfile::tempdir().unwrap());
    let page = directory.path().join("page.html");
    let ran = beige(&fake, &["train", "report", "done", "--output", page.to_str().unwrap()]);
    assert_eq!((ran.code, ran.stdout), (Some(0), format!("{}\n", page.display())));
    let text = fs::read_to_string(&page).unwrap();
    for part in ["<h1>done: succeeded</h1>", "<polyline", "+0.2500", "train_data: [train.jsonl]"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    beige(&fake, &["train", "report", "done", "--output", "/nowhere/page.html"])
        .failed(1, "cannot write /nowhere/page.html");
}
