//! What a measurement found.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;
use tonic::Status;

use crate::tally::Tally;
use crate::{Call, Corpus, Pacing, Plan};

/// The outcome of a run. Its JSON form is one flat object with two maps in it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The model asked for.
    pub model: String,
    /// The checkpoint that gave most answers; empty where there was no answer.
    pub digest: String,
    /// Every checkpoint that answered, warm-up included.
    pub digests: Vec<String>,
    /// `embed` or `rerank`.
    pub call: &'static str,
    /// Where the texts came from.
    pub corpus: String,
    /// Texts per call.
    pub batch: usize,
    /// `closed` or `open`.
    pub mode: &'static str,
    /// Callers of a closed loop.
    pub concurrency: Option<usize>,
    /// Calls per second asked of an open loop.
    pub rate: Option<f64>,
    /// Connections.
    pub connections: usize,
    /// Calls answered within the window.
    pub calls: u64,
    /// Texts in those calls.
    pub texts: u64,
    /// Tokens in those calls, as the server counted them.
    pub tokens: u64,
    /// Length of the window.
    pub seconds: f64,
    /// `texts` over `seconds`.
    pub texts_per_s: f64,
    /// `tokens` over `seconds`.
    pub tokens_per_s: f64,
    /// From due to answered, of the calls due within the window.
    pub latency_ms: Latencies,
    /// How late the generator itself sent calls, 99th percentile, milliseconds. Where it is not far below
    /// the latencies, this machine or the bound on open calls is what was measured.
    pub lag_p99_ms: f64,
    /// Calls due within the window that failed, by code; `UNSENT` are those an open loop never got to send.
    pub errors: BTreeMap<&'static str, u64>,
    /// The first failure, for people.
    #[serde(skip)]
    pub first_failure: Option<Status>,
}

/// Percentiles in milliseconds; all zero where nothing was answered.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latencies {
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Latencies {
    fn of(microseconds: &Histogram<u64>) -> Self {
        let at = |quantile| milliseconds(microseconds.value_at_quantile(quantile));
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: milliseconds(microseconds.max()),
        }
    }
}

#[allow(clippy::cast_precision_loss)] // Latencies stay below an hour.
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1_000.0
}

#[allow(clippy::cast_precision_loss)] // Counts stay far below 2^53.
fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

impl Report {
    pub(crate) fn new(plan: &Plan, corpus: &Corpus, tally: Tally) -> Self {
        let seconds = plan.window.as_secs_f64();
        let (mode, concurrency, rate) = match plan.pacing {
            Pacing::Closed { concurrency } => ("closed", Some(concurrency), None),
            Pacing::Open { rate, arrivals: _, seed: _, outstanding: _ } => ("open", None, Some(rate)),
        };
        let most = tally.digests.iter().max_by_key(|(_, answers)| **answers);
        Self {
            model: plan.call.model().to_owned(),
            digest: most.map(|(digest, _)| digest.clone()).unwrap_or_default(),
            digests: tally.digests.keys().cloned().collect(),
            call: match plan.call {
                Call::Embed(_) => "embed",
                Call::Rerank(_) => "rerank",
            },
            corpus: corpus.name().to_owned(),
            batch: plan.batch,
            mode,
            concurrency,
            rate,
            connections: plan.connections.len(),
            calls: tally.calls,
            texts: tally.texts,
            tokens: tally.tokens,
            seconds,
            texts_per_s: per_second(tally.texts, seconds),
            tokens_per_s: per_second(tally.tokens, seconds),
            latency_ms: Latencies::of(&tally.latencies),
            lag_p99_ms: milliseconds(tally.lags.value_at_quantile(0.99)),
            errors: tally.errors,
            first_failure: tally.first_failure,
        }
    }
}
