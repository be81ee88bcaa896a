//! `beige models watch` as somebody sees it: a table that changes in place on a terminal, lines in a pipe.

use std::path::Path;
use std::sync::Arc;

use proto::v1::{Preparation, Stage, Swap, SwapEvent, SwapState};
use tokio::sync::Semaphore;

use crate::beige;
use crate::fake::{DIGEST, Fake, OTHER_DIGEST};
use crate::terminal::Terminal;

const HEAD: &str = "mini: 111111111111 -> 222222222222: ";

fn worker(id: &str, stage: Stage) -> Preparation {
    let (bytes_done, bytes_total) = match stage {
        Stage::Downloading => (1 << 20, 4 << 20),
        Stage::Verifying => (3 << 20, 4 << 20),
        Stage::Unspecified
        | Stage::Draining
        | Stage::Loading
        | Stage::Warming
        | Stage::Ready
        | Stage::Failed => (0, 0),
    };
    Preparation { worker: id.into(), stage: stage.into(), bytes_done, bytes_total, ..Preparation::default() }
}

/// A swap that was told of so many times before, with workers that have come so far.
fn swap(state: SwapState, told: u64, workers: &[(&str, Stage)]) -> Swap {
    let ready = workers.iter().filter(|(_, stage)| *stage == Stage::Ready).count();
    Swap {
        id: "swap-1".into(),
        model: "mini".into(),
        from: DIGEST.into(),
        to: OTHER_DIGEST.into(),
        state: state.into(),
        min_ready: 2,
        ready: ready.try_into().unwrap(),
        epoch: 2,
        events: (0..=told).map(|at| SwapEvent { at_unix_ms: at, what: format!("event {at}") }).collect(),
        workers: workers.iter().map(|(id, stage)| worker(id, *stage)).collect(),
        ..Swap::default()
    }
}

/// A fake that tells `script`, each when it is let.
fn told_step_by_step(script: Vec<Swap>) -> (Fake, Arc<Semaphore>) {
    let (fake, gate) = (Fake::start(), Arc::new(Semaphore::new(0)));
    fake.state().control.script = script;
    fake.state().control.gate = Some(Arc::clone(&gate));
    (fake, gate)
}

/// Somebody watches on a terminal.
fn watch(fake: &Fake) -> Terminal {
    Terminal::run(Path::new(env!("CARGO_BIN_EXE_beige")), &fake.url(), &["models", "watch", "mini"])
}

/// The lines of the table: its headline and what follows.
fn table(screen: &[String]) -> &[String] {
    let head = screen.iter().position(|line| line.starts_with(HEAD));
    head.map_or(&[], |head| &screen[head..])
}

/// Whether the table has a headline of `state`, and these lines of workers, and nothing else.
fn shows(screen: &[String], state: &str, workers: &[&str]) -> bool {
    let squeezed = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
    match table(screen) {
        [head, rest @ ..] => {
            let rest: Vec<String> = rest.iter().map(squeezed).collect();
            head[HEAD.len()..].starts_with(state) && rest == workers
        }
        [] => false,
    }
}

#[test]
fn on_a_terminal_each_worker_has_a_line_that_changes_in_place() {
    use Stage::{Downloading, Loading, Ready, Unspecified, Verifying, Warming};
    let preparing =
        |told, first, second| swap(SwapState::Preparing, told, &[("worker-0", first), ("worker-1", second)]);
    let (fake, gate) = told_step_by_step(vec![
        preparing(0, Downloading, Unspecified),
        preparing(1, Verifying, Downloading),
        preparing(1, Loading, Verifying),
        preparing(2, Warming, Loading),
        preparing(2, Ready, Warming),
        swap(SwapState::Committed, 3, &[("worker-0", Ready), ("worker-1", Ready)]),
    ]);
    let terminal = watch(&fake);
    let bar = |stage: &str, filled: usize, percent: u32, done: &str| {
        // Thirty blocks, the one that is being filled among them.
        let cells = "█".repeat(filled) + &"░".repeat(30 - filled);
        format!("{stage} {cells} {percent} % {done} of 4.00 MiB")
    };
    let (downloads, verifies) = (bar("downloading", 7, 25, "1.00 MiB"), bar("verifying", 22, 75, "3.00 MiB"));
    for (state, first, second) in [
        ("preparing, 0 ready, 2 needed", downloads.as_str(), "waiting"),
        ("preparing, 0 ready, 2 needed", &verifies, &downloads),
        ("preparing, 0 ready, 2 needed", "loading", &verifies),
        ("preparing, 0 ready, 2 needed", "warming", "loading"),
        ("preparing, 1 ready, 2 needed", "ready", "warming"),
    ] {
        gate.add_permits(1);
        let workers = [format!("worker-0 {first}"), format!("worker-1 {second}")];
        terminal.until(|screen| shows(screen, state, &workers.each_ref().map(String::as_str)));
    }
    gate.add_permits(1);
    let (code, screen) = terminal.ended();
    assert_eq!(code, Some(0), "{screen:#?}");
    // What happened stands above the table once, and the table as it was last, and what came of it below.
    let expected =
        ["event 0", "event 1", "event 2", "event 3", "mini: 111111111111 -> 222222222222: committed"];
    assert_eq!(screen[..5], expected, "{screen:#?}");
    let rest: Vec<Vec<&str>> = screen[5..].iter().map(|line| line.split_whitespace().collect()).collect();
    let end = "mini means 222222222222 from epoch 2 on";
    assert_eq!(rest, [vec!["worker-0", "ready"], vec!["worker-1", "ready"], end.split(' ').collect()]);
}

#[test]
fn on_a_terminal_workers_come_and_go_and_say_why_they_cannot() {
    use Stage::{Failed, Loading, Ready};
    let mut failing = swap(SwapState::Preparing, 0, &[("worker-1", Loading), ("worker-2", Failed)]);
    (failing.workers[1].reason, failing.workers[1].detail) =
        ("memory".into(), "2 GiB\u{1b}[2J are missing".into());
    let mut aborted = swap(SwapState::Aborted, 0, &[("worker-1", Ready), ("worker-2", Failed)]);
    aborted.workers[1].clone_from(&failing.workers[1]);
    aborted.reason = "1 worker is ready, and 2 are needed".into();
    let (fake, gate) = told_step_by_step(vec![
        swap(SwapState::Preparing, 0, &[("worker-0", Loading), ("worker-1", Loading)]),
        failing,
        aborted,
    ]);
    let terminal = watch(&fake);
    gate.add_permits(1);
    terminal.until(|screen| shows(screen, "preparing", &["worker-0 loading", "worker-1 loading"]));
    gate.add_permits(1);
    let failed = "worker-2 failed: memory: 2 GiB [2J are missing";
    terminal.until(|screen| shows(screen, "preparing", &["worker-1 loading", failed]));
    gate.add_permits(1);
    let (code, screen) = terminal.ended();
    assert_eq!(code, Some(1), "{screen:#?}");
    assert!(screen.last().unwrap().starts_with("error: the swap of mini to 222222222222 was aborted"));
}

#[test]
fn on_a_terminal_a_large_fleet_is_shown_at_once_as_it_is() {
    use Stage::{Downloading, Loading};
    let ids: Vec<String> = (10..50).map(|number| format!("worker-{number}")).collect();
    let all = |stage| ids.iter().map(|id| (id.as_str(), stage)).collect::<Vec<_>>();
    let (fake, gate) = told_step_by_step(vec![
        swap(SwapState::Preparing, 0, &all(Downloading)),
        swap(SwapState::Preparing, 0, &all(Loading)),
        swap(SwapState::Committed, 0, &all(Stage::Ready)),
    ]);
    let terminal = watch(&fake);
    gate.add_permits(2);
    // Nothing else is told until the screen says so.
    let loading: Vec<String> = ids.iter().map(|id| format!("{id} loading")).collect();
    let loading: Vec<&str> = loading.iter().map(String::as_str).collect();
    terminal.until(|screen| shows(screen, "preparing", &loading));
    gate.add_permits(1);
    assert_eq!(terminal.ended().0, Some(0));
}

#[test]
fn in_a_pipe_each_change_is_a_line() {
    use Stage::{Loading, Ready, Unspecified, Verifying};
    let fake = Fake::start();
    fake.state().control.script = vec![
        swap(SwapState::Preparing, 0, &[("worker-0", Verifying), ("worker-1", Unspecified)]),
        swap(SwapState::Preparing, 1, &[("worker-0", Loading), ("worker-1", Unspecified)]),
        swap(SwapState::Preparing, 1, &[("worker-0", Ready), ("worker-1", Loading)]),
        swap(SwapState::Committed, 2, &[("worker-0", Ready), ("worker-1", Ready)]),
    ];
    let ran = beige(&fake, &["models", "watch", "mini"]);
    let expected = [
        "mini: 111111111111 -> 222222222222: preparing, 0 ready, 2 needed",
        "  event 0",
        "  worker-0 verifying, 3 MiB of 4 MiB",
        "  worker-1 waiting",
        "  event 1",
        "  worker-0 loading",
        "mini: 111111111111 -> 222222222222: preparing, 1 ready, 2 needed",
        "  worker-0 ready",
        "  worker-1 loading",
        "mini: 111111111111 -> 222222222222: committed",
        "  event 2",
        "  worker-1 ready",
        "mini means 222222222222 from epoch 2 on",
    ];
    assert_eq!((ran.code, ran.stdout.lines().collect::<Vec<_>>()), (Some(0), expected.to_vec()), "{ran:?}");
    assert_eq!(ran.stderr, "");
}
