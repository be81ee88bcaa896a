//! `beige models promote`, `rollback`, `retire`, `pin`, `gc`, `watch`: what is asked, and how swaps are shown.

use proto::v1::{Preparation, Stage, Swap, SwapEvent, SwapState};
use serde_json::json;

use crate::beige;
use crate::fake::{DIGEST, Fake, OTHER_DIGEST};

/// A swap of `mini` in some state, worker 1 failing.
pub(crate) fn swap(state: SwapState) -> Swap {
    let failed = state == SwapState::Aborted;
    let worker = |id: &str, stage: Stage| Preparation {
        worker: id.into(),
        stage: stage.into(),
        bytes_done: 1 << 20,
        bytes_total: 4 << 20,
        ..Preparation::default()
    };
    let mut workers = vec![worker("worker-0", Stage::Downloading), worker("worker-1", Stage::Loading)];
    if failed {
        workers[1].stage = Stage::Failed.into();
        workers[1].reason = "memory".into();
        workers[1].detail = "2 GiB are missing".into();
    }
    Swap {
        id: "swap-1".into(),
        model: "mini".into(),
        from: DIGEST.into(),
        to: OTHER_DIGEST.into(),
        state: state.into(),
        min_ready: 2,
        ready: u32::from(state == SwapState::Committed) * 2,
        epoch: u64::from(state == SwapState::Committed) * 2,
        reason: if failed { "1 worker is ready, and 2 are needed".into() } else { String::new() },
        events: vec![SwapEvent { at_unix_ms: state as u64, what: format!("it is {state:?}") }],
        workers,
        ..Swap::default()
    }
}

#[test]
fn a_swap_is_waited_for_and_its_end_is_told() {
    let fake = Fake::start();
    fake.state().control.script =
        [SwapState::Requested, SwapState::Preparing, SwapState::Committed].map(swap).into();
    let more = ["--min-ready", "1", "--retire-after", "0", "--shadow", "10", "--new-space"];
    let ran = beige(&fake, &[&["models", "promote", "mini", "2222"][..], &more].concat());
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "mini means 222222222222 from epoch 2 on\n"),
        "{ran:?}"
    );
    for line in [
        "mini: 111111111111 -> 222222222222: requested, 0 ready, 2 needed",
        "mini: 111111111111 -> 222222222222: preparing, 0 ready, 2 needed",
        "  worker-0 downloading, 1 MiB of 4 MiB",
        "mini: 111111111111 -> 222222222222: committed",
        "  it is Committed",
    ] {
        assert!(ran.stderr.lines().any(|told| told == line), "{line}: {ran:?}");
    }
    let asked = fake.state().control.asked[0].clone();
    for part in
        ["min_ready: Some(1)", "retire_after_seconds: Some(0)", "shadow_per_mille: 100", "new_space: true"]
    {
        assert!(asked.contains(part), "{asked}");
    }
}

#[test]
fn a_swap_that_came_to_nothing_is_a_failure_with_each_reason() {
    let fake = Fake::start();
    fake.state().control.script = [SwapState::Preparing, SwapState::Aborted].map(swap).into();
    let ran = beige(&fake, &["models", "promote", "mini", "2222"]);
    ran.failed(
        1,
        "the swap of mini to 222222222222 was aborted: 1 worker is ready, and 2 are needed \
         (worker-1: memory: 2 GiB are missing)",
    );
}

#[test]
fn a_swap_outlives_the_gateway_that_told_of_it() {
    let fake = Fake::start();
    fake.state().control.script =
        [SwapState::Preparing, SwapState::Unspecified, SwapState::Trial, SwapState::Committed]
            .map(swap)
            .into();
    let ran = beige(&fake, &["models", "watch", "mini"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains(": trial, ") && ran.stdout.ends_with("from epoch 2 on\n"), "{ran:?}");
    assert_eq!(fake.state().control.asked.len(), 2, "it was asked again");
}

#[test]
fn a_swap_is_watched_as_lines_or_as_json() {
    let fake = Fake::start();
    fake.state().control.script = [SwapState::Preparing, SwapState::Committed].map(swap).into();
    let states: Vec<_> = beige(&fake, &["models", "watch", "mini", "--json"])
        .json()
        .iter()
        .map(|it| it["state"].clone())
        .collect();
    assert_eq!(states, ["preparing", "committed"]);
    fake.state().control.script = [SwapState::Preparing, SwapState::Aborted].map(swap).into();
    let ran = beige(&fake, &["models", "watch", "mini", "--follow"]);
    ran.failed(1, "was aborted");
    assert!(ran.stdout.contains("  worker-1 failed: memory: 2 GiB are missing\n"), "{ran:?}");
    assert!(fake.state().control.asked[1].contains("follow: true"));
}

#[test]
fn what_is_asked_arrives_and_is_confirmed() {
    let fake = Fake::start();
    beige(&fake, &["models", "rollback", "mini"]).failed(1, "there is nothing to go back to");
    fake.state().control.script = vec![swap(SwapState::RolledBack)];
    let ran = beige(&fake, &["models", "rollback", "mini"]);
    assert_eq!(ran.stdout, "mini: 111111111111 -> 222222222222: rolled back\n");
    let retired = beige(&fake, &["models", "retire", "mini", "1111", "--json"]).json().remove(0);
    assert_eq!((&retired["model"], &retired["state"]), (&json!("mini"), &json!("rolled_back")));
    let detached = beige(&fake, &["models", "promote", "mini", "22", "--detach"]);
    assert_eq!(detached.code, Some(0), "{detached:?}");
    assert_eq!(
        beige(&fake, &["models", "pin", "mini", "abc"]).stdout,
        "mini@abc is kept loaded and stored\n"
    );
    assert_eq!(beige(&fake, &["models", "unpin", "mini", "abc"]).stdout, "mini@abc is no longer kept\n");
    let collected = beige(&fake, &["models", "gc", "mini", "--keep", "1", "--dry-run"]).stdout;
    assert_eq!(collected, "0 versions would be forgotten, 3 MiB would be free\n");
    let asked = fake.state().control.asked.join("\n");
    for part in ["model: \"mini\", digest: \"1111\"", "unpin: true", "keep: Some(1), dry_run: true"] {
        assert!(asked.contains(part), "{part}: {asked}");
    }
}

#[test]
fn a_share_is_a_share() {
    let fake = Fake::start();
    for wrong in ["0", "101", "a"] {
        let ran = beige(&fake, &["models", "promote", "mini", "22", "--canary", wrong]);
        ran.failed(2, "above 0 and at most 100");
    }
    beige(&fake, &["models", "promote", "mini", "22", "--canary-hold", "5"]).failed(2, "--canary");
}
