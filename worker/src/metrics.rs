//! What Prometheus is told. Labels are few: the models of one worker, and a handful of reasons; never callers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use telemetry::prometheus::collector::Collector;
use telemetry::prometheus::encoding::{DescriptorEncoder, EncodeMetric as _};
use telemetry::prometheus::metrics::counter::Counter;
use telemetry::prometheus::metrics::family::Family;
use telemetry::prometheus::metrics::gauge::ConstGauge;
use telemetry::prometheus::metrics::histogram::{Histogram, exponential_buckets};
use telemetry::prometheus::registry::Registry;

use crate::call::Call;
use crate::catalogue::{Catalogue, Id};
use crate::load::{Load, Shortage};
use crate::memory;

type Label = (&'static str, &'static str);
type Checkpoint = [(&'static str, String); 2];

/// Why a text was not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// Its caller went away.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

/// The worker's counters. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    tokens: Family<Checkpoint, Counter>,
    batches: Family<Checkpoint, Counter>,
    batch_tokens: Histogram,
    wait: Histogram,
    run: Histogram,
    dropped: Family<[Label; 1], Counter>,
    refused: Family<[Label; 1], Counter>,
    failed_runs: Counter,
    failed_texts: Counter,
    out_of_memory: Counter,
    prepared: Family<[Label; 1], Counter>,
    preparation: Histogram,
    downloaded: Counter,
}

impl Metrics {
    /// Counters that `registry` shows, and what `load` and `catalogue` say when they are asked.
    pub fn register(registry: &mut Registry, load: Arc<Load>, catalogue: Catalogue) -> Self {
        // From half a millisecond to a minute.
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 18));
        let metrics = Self {
            tokens: Family::default(),
            batches: Family::default(),
            batch_tokens: Histogram::new(exponential_buckets(16.0, 2.0, 14)),
            wait: seconds(),
            run: seconds(),
            dropped: Family::default(),
            refused: Family::default(),
            failed_runs: Counter::default(),
            failed_texts: Counter::default(),
            out_of_memory: Counter::default(),
            prepared: Family::default(),
            // From a tenth of a second to an hour.
            preparation: Histogram::new(exponential_buckets(0.1, 2.0, 16)),
            downloaded: Counter::default(),
        };
        let registry = registry.sub_registry_with_prefix("beige_worker");
        registry.register("tokens", "Tokens run", metrics.tokens.clone());
        registry.register("batches", "Batches run", metrics.batches.clone());
        registry.register("batch_tokens", "Tokens of a batch", metrics.batch_tokens.clone());
        registry.register(
            "queue_wait_seconds",
            "How long texts waited for their batch",
            metrics.wait.clone(),
        );
        registry.register("run_seconds", "How long batches took", metrics.run.clone());
        registry.register("dropped", "Texts dropped before they were run", metrics.dropped.clone());
        registry.register("refused", "Calls refused for want of room or time", metrics.refused.clone());
        registry.register("failed_runs", "Runs of a model that failed", metrics.failed_runs.clone());
        registry.register("failed_texts", "Texts that a model fails on", metrics.failed_texts.clone());
        let help = "Batches for which memory ran out";
        registry.register("out_of_memory", help, metrics.out_of_memory.clone());
        let help = "Checkpoints made ready beside others, or not, by how that ended";
        registry.register("preparations", help, metrics.prepared.clone());
        let help = "How long it took to make a checkpoint ready";
        registry.register("preparation_seconds", help, metrics.preparation.clone());
        let help = "Bytes of checkpoints that came from the store";
        registry.register("downloaded_bytes", help, metrics.downloaded.clone());
        registry.register_collector(Box::new(Gauges(load, catalogue)));
        metrics
    }

    /// Counts a batch of `tokens` for the checkpoint of `call`, which took so long.
    pub fn ran(&self, call: &Call, tokens: usize, took: Duration) {
        let checkpoint = [("model", call.model.to_string()), ("digest", call.digest.to_string())];
        self.tokens.get_or_create(&checkpoint).inc_by(tokens as u64);
        self.batches.get_or_create(&checkpoint).inc();
        #[allow(clippy::cast_precision_loss)] // A batch is small.
        self.batch_tokens.observe(tokens as f64);
        self.run.observe(took.as_secs_f64());
    }

    /// Counts the wait of a text that is run now.
    pub fn waited(&self, wait: Duration) {
        self.wait.observe(wait.as_secs_f64());
    }

    /// Counts texts that were not run.
    pub fn dropped(&self, why: Dropped, texts: usize) {
        let reason = match why {
            Dropped::Cancelled => "cancelled",
            Dropped::Expired => "expired",
        };
        if texts > 0 {
            self.dropped.get_or_create(&[("reason", reason)]).inc_by(texts as u64);
        }
    }

    /// Counts a call that was not taken.
    pub fn refused(&self, why: &Shortage) {
        let reason = match why {
            Shortage::Room { .. } => "full",
            Shortage::Time { .. } => "late",
            Shortage::Memory { .. } => "memory",
        };
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts runs without rows, and texts that stayed without one.
    pub fn failed(&self, runs: u64, texts: u64) {
        self.failed_runs.inc_by(runs);
        self.failed_texts.inc_by(texts);
    }

    /// Counts a preparation by how it ended, and how long it took where it came to something.
    pub fn prepared(&self, outcome: &'static str, took: Option<Duration>) {
        self.prepared.get_or_create(&[("outcome", outcome)]).inc();
        if let Some(took) = took {
            self.preparation.observe(took.as_secs_f64());
        }
    }

    /// Counts bytes that came from the store.
    pub fn downloaded(&self, bytes: u64) {
        self.downloaded.inc_by(bytes);
    }

    /// Forgets a checkpoint that is gone: a worker sees many in its life.
    pub fn unloaded(&self, id: &Id) {
        let checkpoint = [("model", id.model.clone()), ("digest", id.digest.clone())];
        self.tokens.remove(&checkpoint);
        self.batches.remove(&checkpoint);
    }

    /// Counts a batch for which memory ran out.
    pub fn ran_out_of_memory(&self) {
        self.out_of_memory.inc();
    }
}

/// What is read when it is asked for.
#[derive(Debug)]
struct Gauges(Arc<Load>, Catalogue);

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        #[allow(clippy::cast_precision_loss)] // Below 2^53.
        let (queued, memory) = (self.0.waiting() as f64, memory::resident() as f64);
        gauge("queue_tokens", "Tokens that wait, run or are being made.", queued)?;
        let speed = self.0.tokens_per_second();
        gauge("tokens_per_second", "Tokens per second while busy, lately.", speed)?;
        gauge("memory_bytes", "Resident memory of the process.", memory)?;
        #[allow(clippy::cast_precision_loss)] // A handful.
        let checkpoints = self.1.len() as f64;
        gauge("checkpoints", "Checkpoints that may be asked for, by name.", checkpoints)
    }
}

#[cfg(test)]
mod tests {
    use telemetry::prometheus::encoding::text;

    use super::*;
    use crate::call::Class;
    use crate::load::Limits;

    #[test]
    fn gauges_are_read_when_asked_for() {
        let load = Load::new(Limits { tokens: 100, wait: Duration::from_secs(1) });
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, load.clone(), Catalogue::default());
        let _held = load.admit(Class::Interactive, 42, None).unwrap();
        metrics.dropped(Dropped::Expired, 3);
        metrics.dropped(Dropped::Cancelled, 0);
        metrics.prepared("golden", None);
        metrics.downloaded(7);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        assert!(page.contains("\nbeige_worker_queue_tokens 42.0\n"), "{page}");
        assert!(page.contains("\nbeige_worker_dropped_total{reason=\"expired\"} 3\n"), "{page}");
        assert!(!page.contains("cancelled"), "{page}");
        assert!(page.contains("\nbeige_worker_checkpoints 0.0\n"), "{page}");
        assert!(page.contains("\nbeige_worker_preparations_total{outcome=\"golden\"} 1\n"), "{page}");
        assert!(page.contains("\nbeige_worker_downloaded_bytes_total 7\n"), "{page}");
    }
}
