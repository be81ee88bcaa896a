//! A swap for people: what is new since they last looked, and how it ended.

use proto::v1::{Comparison, Preparation, Stage, Swap, SwapEvent, SwapState};

use super::objects;
use crate::failure::Failure;
use crate::print;

/// Whether nothing that a waiting person cares for is to come.
pub(super) fn is_decided(swap: &Swap) -> bool {
    match swap.state() {
        SwapState::Unspecified | SwapState::Requested | SwapState::Preparing | SwapState::Trial => false,
        SwapState::Committed | SwapState::Retired | SwapState::Aborted | SwapState::RolledBack => true,
    }
}

/// How it ended, in a sentence; an end without a change is a refusal.
pub(super) fn conclusion(swap: &Swap) -> Result<String, Failure> {
    let (model, to) = (print::printable(&swap.model, 60), print::short(&swap.to));
    match swap.state() {
        SwapState::Committed | SwapState::Retired => {
            Ok(format!("{model} means {to} from epoch {} on", swap.epoch))
        }
        SwapState::Aborted | SwapState::RolledBack => {
            let end = if swap.state() == SwapState::Aborted { "aborted" } else { "rolled back" };
            let mut sentence = format!("the swap of {model} to {to} was {end}");
            if !swap.reason.is_empty() {
                sentence += ": ";
                sentence += &print::printable(&swap.reason, 500);
            }
            let failed = swap.workers.iter().filter(|worker| worker.stage() == Stage::Failed);
            let reasons: Vec<_> = failed.map(failure).collect();
            if !reasons.is_empty() {
                sentence += " (";
                sentence += &reasons.join("; ");
                sentence += ")";
            }
            Err(Failure::Refused(sentence))
        }
        SwapState::Unspecified | SwapState::Requested | SwapState::Preparing | SwapState::Trial => {
            Ok(headline(swap))
        }
    }
}

fn failure(worker: &Preparation) -> String {
    let (id, reason) = (print::printable(&worker.worker, 40), print::printable(&worker.reason, 40));
    format!("{id}: {reason}: {}", print::printable(&worker.detail, 300))
}

/// One line for where it stands.
pub(super) fn headline(swap: &Swap) -> String {
    let (model, to) = (print::printable(&swap.model, 60), print::short(&swap.to));
    let from = if swap.from.is_empty() { "new" } else { print::short(&swap.from) };
    let state = objects::state(swap.state()).replace('_', " ");
    let ready = format!("{} ready, {} needed", swap.ready, swap.min_ready);
    if is_decided(swap) {
        format!("{model}: {from} -> {to}: {state}")
    } else {
        format!("{model}: {from} -> {to}: {state}, {ready}")
    }
}

/// What is to be said of `new`, to somebody who has seen `old`: one line each.
pub(super) fn news(old: Option<&Swap>, new: &Swap) -> Vec<String> {
    let old = old.filter(|old| old.id == new.id);
    let mut lines = Vec::new();
    if old.is_none_or(|old| (old.state, old.ready, old.mode) != (new.state, new.ready, new.mode)) {
        lines.push(headline(new));
    }
    lines.extend(events(old, new).iter().map(|event| format!("  {}", print::printable(&event.what, 300))));
    for worker in &new.workers {
        let before = old.and_then(|old| old.workers.iter().find(|it| it.worker == worker.worker));
        if before.is_none_or(|before| before.stage != worker.stage) {
            lines.push(format!("  {}", step(worker)));
        }
    }
    lines
}

/// The events of `new` that `old`, the same swap earlier, does not have. Only the last events are kept, so they cannot
/// be told apart by their number.
pub(super) fn events<'a>(old: Option<&Swap>, new: &'a Swap) -> &'a [SwapEvent] {
    let seen = old.and_then(|old| old.events.last());
    let known = new.events.iter().rposition(|event| Some(event) == seen);
    &new.events[known.map_or(0, |known| known + 1)..]
}

/// `worker-0 downloading, 12 of 90 MiB`.
pub(super) fn step(worker: &Preparation) -> String {
    let id = print::printable(&worker.worker, 40);
    let stage = objects::stage(worker.stage());
    match worker.stage() {
        Stage::Downloading | Stage::Verifying if worker.bytes_total > 0 => {
            let (done, total) = (print::bytes(worker.bytes_done), print::bytes(worker.bytes_total));
            format!("{id} {stage}, {done} of {total}")
        }
        Stage::Failed => {
            let reason = print::printable(&worker.reason, 40);
            format!("{id} {stage}: {reason}: {}", print::printable(&worker.detail, 300))
        }
        Stage::Downloading
        | Stage::Verifying
        | Stage::Unspecified
        | Stage::Draining
        | Stage::Loading
        | Stage::Warming
        | Stage::Ready => format!("{id} {stage}"),
    }
}

/// All of it, for who comes later.
pub(super) fn story(swap: &Swap) -> Result<(), Failure> {
    print::line(format_args!("last swap: {}", headline(swap)))?;
    if !swap.reason.is_empty() {
        print::line(format_args!("  {}", print::printable(&swap.reason, 500)))?;
    }
    for event in &swap.events {
        let (ago, what) = (print::ago(event.at_unix_ms), print::printable(&event.what, 300));
        print::line(format_args!("  {ago:>12}  {what}"))?;
    }
    swap.comparison.iter().flat_map(compared).try_for_each(print::line)
}

/// What a trial has shown.
fn compared(comparison: &Comparison) -> Vec<String> {
    let side = |name: &str, calls: u64, errors: u64, p99: f64| {
        format!(
            "  {name}: {}, {} failed, p99 {p99:.1} ms",
            print::count(calls, "call"),
            print::thousands(errors)
        )
    };
    let mut lines = vec![
        side("old", comparison.old_calls, comparison.old_errors, comparison.old_p99_ms),
        side("new", comparison.new_calls, comparison.new_errors, comparison.new_p99_ms),
    ];
    if comparison.shadowed_calls > 0 {
        lines.push(format!(
            "  compared: {}, {} failed; cosine {:.5} (least {:.5}), rank correlation {:.4} (least {:.4}), \
             latency times {:.2}",
            print::count(comparison.shadowed_calls, "call"),
            print::thousands(comparison.shadow_failures),
            comparison.cosine_mean,
            comparison.cosine_min,
            comparison.rank_correlation_mean,
            comparison.rank_correlation_min,
            comparison.latency_ratio,
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(id: &str, stage: Stage) -> Preparation {
        Preparation { worker: id.into(), stage: stage.into(), ..Preparation::default() }
    }

    fn swap(state: SwapState, workers: &[(&str, Stage)]) -> Swap {
        Swap {
            id: "s1".into(),
            model: "mini".into(),
            from: "a".repeat(64),
            to: "b".repeat(64),
            state: state.into(),
            min_ready: 2,
            workers: workers.iter().map(|(id, stage)| worker(id, *stage)).collect(),
            ..Swap::default()
        }
    }

    #[test]
    fn only_what_is_new_is_told() {
        let mut first = swap(SwapState::Preparing, &[("w0", Stage::Downloading), ("w1", Stage::Loading)]);
        first.workers[0].bytes_total = 3 << 20;
        first.events.push(SwapEvent { at_unix_ms: 5, what: "asked for".into() });
        let expected = [
            "mini: aaaaaaaaaaaa -> bbbbbbbbbbbb: preparing, 0 ready, 2 needed",
            "  asked for",
            "  w0 downloading, 0 KiB of 3 MiB",
            "  w1 loading",
        ];
        assert_eq!(news(None, &first), expected);
        assert_eq!(news(Some(&first), &first), [] as [&str; 0]);

        let mut second = first.clone();
        second.workers[0] = worker("w0", Stage::Failed);
        second.workers[0].reason = "disk".into();
        second.workers[0].detail = "no space left".into();
        second.events.push(SwapEvent { at_unix_ms: 9, what: "w0 cannot".into() });
        assert_eq!(news(Some(&first), &second), ["  w0 cannot", "  w0 failed: disk: no space left"]);

        let next = Swap { id: "s2".into(), ..second.clone() };
        assert_eq!(news(Some(&second), &next).len(), 5, "another swap is told from its beginning");
    }

    #[test]
    fn an_end_without_a_change_is_a_refusal_with_each_workers_reason() {
        let mut aborted = swap(SwapState::Aborted, &[("w0", Stage::Failed), ("w1", Stage::Ready)]);
        aborted.reason = "no more than 1 can be ready".into();
        aborted.workers[0].reason = "memory".into();
        aborted.workers[0].detail = "2 GiB are missing".into();
        let failure = conclusion(&aborted).unwrap_err().to_string();
        let expected = "the swap of mini to bbbbbbbbbbbb was aborted: no more than 1 can be ready \
                        (w0: memory: 2 GiB are missing)";
        assert_eq!(failure, expected);
        let committed = Swap { epoch: 4, ..swap(SwapState::Committed, &[]) };
        assert_eq!(conclusion(&committed).unwrap(), "mini means bbbbbbbbbbbb from epoch 4 on");
    }
}
