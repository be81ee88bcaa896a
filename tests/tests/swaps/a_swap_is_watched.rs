//! `beige models watch` at a cluster that swaps: a table on a terminal, lines in a pipe.

use std::process::{Command, Stdio};

use proto::v1::SwapPlan;
use tests::program;
use tokio::task::spawn_blocking;

use crate::support::{MODEL, plan, stage};
use crate::terminal::Terminal;

/// The lines of the table that is being shown: the last headline, and what follows.
fn table(screen: &[String]) -> &[String] {
    let head = screen.iter().rposition(|line| line.starts_with(&format!("{MODEL}: ")));
    head.map_or(&[], |head| &screen[head..])
}

/// Whether the table says that the swap is in `state`, and that both workers are ready.
fn shows(screen: &[String], state: &str) -> bool {
    let words = |line: &String| line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>();
    match table(screen) {
        [head, first, second, ..] => {
            head.contains(&format!(": {state}"))
                && words(first) == ["worker-0", "ready"]
                && words(second) == ["worker-1", "ready"]
        }
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_is_watched_on_a_terminal_and_in_a_pipe() {
    let mut stage = stage(plan(2)).await;
    let target = format!("http://{}", stage.cluster.gateways[0].address);
    // Held until somebody says that it is enough.
    let plan = SwapPlan { shadow_per_mille: 10, shadow_seconds: Some(3_600), ..SwapPlan::default() };
    stage.promote(1, plan).await;
    let args = ["models", "watch", MODEL];
    let terminal = Terminal::run(&program("beige"), &target, &args);
    let piped = Command::new(program("beige"))
        .args(args)
        .env("BEIGE_TARGET", &target)
        .env_remove("BEIGE_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let terminal = spawn_blocking(move || {
        terminal.until(|screen| shows(screen, "trial, 2 ready"));
        terminal
    });
    let terminal = terminal.await.unwrap();

    stage.promote_on_trial(1).await;
    let ((code, screen), piped) =
        spawn_blocking(move || (terminal.ended(), piped.wait_with_output().unwrap())).await.unwrap();
    let swap = stage.committed().await;
    let end = format!("{MODEL} means {} from epoch {} on", &swap.to[..12], swap.epoch);
    assert_eq!((code, screen.last()), (Some(0), Some(&end)), "{screen:#?}");
    assert!(shows(&screen, "committed"), "the table stays: {screen:#?}");
    let happened = screen.iter().filter(|line| line.contains("on trial at epoch")).count();
    assert_eq!(happened, 1, "what happened is told once: {screen:#?}");

    let lines = String::from_utf8(piped.stdout).unwrap();
    assert!(piped.status.success() && piped.stderr.is_empty() && !lines.contains('\u{1b}'), "{lines}");
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines.last(), Some(&end.as_str()));
    for told in ["  worker-0 ready", "  worker-1 ready"] {
        assert_eq!(lines.iter().filter(|line| **line == told).count(), 1, "{lines:#?}");
    }
    assert!(lines.iter().any(|line| line.starts_with(MODEL) && line.ends_with(": committed")), "{lines:#?}");
    stage.calls(100).await;
    stage.flawless().await;
}
