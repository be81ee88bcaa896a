//! The table of a swap on a terminal: a headline and a line per worker, which change in place.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::v1::{Preparation, Stage, Swap};

use crate::models::{objects, swap};
use crate::print;

/// The table.
#[derive(Default)]
pub(super) struct Live {
    lines: MultiProgress,
    head: Option<ProgressBar>,
    workers: BTreeMap<String, ProgressBar>,
    seen: Option<Swap>,
}

impl Live {
    pub(super) fn update(&mut self, swap: &Swap) {
        if self.seen.as_ref().is_none_or(|seen| seen.id != swap.id) {
            self.workers.values().for_each(ProgressBar::finish_and_clear);
            self.workers.clear();
        }
        // What happened scrolls away above; what is stays below.
        let seen = self.seen.as_ref().filter(|seen| seen.id == swap.id);
        for event in swap::events(seen, swap) {
            let _ = self.lines.println(print::printable(&event.what, 300));
        }
        let lines = &self.lines;
        let head = self.head.get_or_insert_with(|| lines.add(ProgressBar::new(0).with_style(style("{msg}"))));
        head.set_message(swap::headline(swap));
        head.force_draw();
        for worker in &swap.workers {
            let new = || lines.add(ProgressBar::new(0));
            let line = self.workers.entry(worker.worker.clone()).or_insert_with(new);
            if seen.is_none_or(|seen| !seen.workers.contains(worker)) {
                show(line, worker);
                // Of many changes at a time only the first are drawn, and nobody draws the others until the next one.
                line.force_draw();
            }
        }
        self.workers.retain(|id, line| {
            let stays = swap.workers.iter().any(|worker| worker.worker == *id);
            if !stays {
                line.finish_and_clear();
            }
            stays
        });
        self.seen = Some(swap.clone());
    }

    /// Leaves the table as it is.
    pub(super) fn finish(&self) {
        self.workers.values().chain(&self.head).for_each(ProgressBar::abandon);
    }
}

fn show(line: &ProgressBar, worker: &Preparation) {
    let moving = match worker.stage() {
        Stage::Downloading | Stage::Verifying => worker.bytes_total > 0,
        Stage::Unspecified
        | Stage::Draining
        | Stage::Loading
        | Stage::Warming
        | Stage::Ready
        | Stage::Failed => false,
    };
    if moving {
        line.set_style(style("  {prefix:<24} {msg:<12} {bar:30} {percent:>3} %  {bytes} of {total_bytes}"));
        line.set_length(worker.bytes_total);
        line.set_position(worker.bytes_done);
        line.set_message(objects::stage(worker.stage()));
    } else {
        line.set_style(style("  {prefix:<24} {msg}"));
        let step = swap::step(worker);
        let id = print::printable(&worker.worker, 40);
        line.set_message(step.strip_prefix(&format!("{id} ")).unwrap_or(&step).to_owned());
    }
    line.set_prefix(print::printable(&worker.worker, 24));
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
