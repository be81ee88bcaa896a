//! What Prometheus is told. Labels are few: methods, codes, models, reasons and API keys, never callers without one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Freshness, Sight};
use telemetry::prometheus::collector::Collector;
use telemetry::prometheus::encoding::{DescriptorEncoder, EncodeMetric as _};
use telemetry::prometheus::metrics::counter::Counter;
use telemetry::prometheus::metrics::family::Family;
use telemetry::prometheus::metrics::gauge::ConstGauge;
use telemetry::prometheus::metrics::histogram::{Histogram, exponential_buckets};
use telemetry::prometheus::registry::Registry;
use tokio::sync::watch;

use crate::admit::{Ledger, Overloaded, Why};
use crate::fleet::{Fleet, Standing};
use crate::keys::{CallerKey, Unauthorized};
use crate::outlier::Sickness;
use crate::resolve::Pin;

type Label = (&'static str, &'static str);
type Named = (&'static str, String);

/// The gateway's counters. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<[Label; 2], Counter>,
    seconds: Family<[Label; 1], Histogram>,
    tokens: Family<[Named; 2], Counter>,
    answers: Family<[Named; 2], Counter>,
    retries: Family<[Label; 1], Counter>,
    refused: Family<[Label; 1], Counter>,
    restarted: Family<[Named; 1], Counter>,
    shadowed: Family<[Label; 1], Counter>,
    unauthorized: Family<[Label; 1], Counter>,
    keys: Family<[Named; 2], Counter>,
    key_tokens: Family<[Named; 1], Counter>,
    ejections: Family<[Label; 1], Counter>,
    hedges: Family<[Label; 1], Counter>,
}

impl Metrics {
    /// Counters that `registry` shows.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            // From half a millisecond to a minute.
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0005, 2.0, 18))),
            tokens: Family::default(),
            answers: Family::default(),
            retries: Family::default(),
            refused: Family::default(),
            restarted: Family::default(),
            shadowed: Family::default(),
            unauthorized: Family::default(),
            keys: Family::default(),
            key_tokens: Family::default(),
            ejections: Family::default(),
            hedges: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("beige_gateway");
        registry.register("requests", "Calls answered, by method and code", metrics.requests.clone());
        let help = "Seconds from a call's headers to the end of its answer";
        registry.register("request_duration_seconds", help, metrics.seconds.clone());
        registry.register("tokens", "Tokens that models read for answers", metrics.tokens.clone());
        let help = "Requests answered, by the checkpoint that answered";
        registry.register("answers", help, metrics.answers.clone());
        registry.register(
            "retries",
            "Shards sent again, by what became of them before",
            metrics.retries.clone(),
        );
        registry.register(
            "refused",
            "Calls refused for want of room, time or quota, or for the size of their headers",
            metrics.refused.clone(),
        );
        let help = "Calls begun anew because their checkpoint was retired before they were answered";
        registry.register("restarts", help, metrics.restarted.clone());
        let help = "Copies of calls for a checkpoint on trial, by what became of them";
        registry.register("shadows", help, metrics.shadowed.clone());
        let help = "Calls not let in for want of an API key or a right, by reason";
        registry.register("unauthorized", help, metrics.unauthorized.clone());
        let help = "Tokens that models read for answers, by API key";
        registry.register("key_tokens", help, metrics.key_tokens.clone());
        let help =
            "Workers left out for a while because they did worse than the others, by what was the matter";
        registry.register("ejections", help, metrics.ejections.clone());
        let help = "Small calls that a second worker was asked for, by whose answer was taken";
        registry.register("hedges", help, metrics.hedges.clone());
        registry.register("key_requests", "Calls answered, by API key and code", metrics.keys.clone());
        metrics
    }

    /// Counts a copy of a call.
    pub fn shadowed(&self, result: &'static str) {
        self.shadowed.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a call that begins anew on another checkpoint than `pin`.
    pub fn restarted(&self, pin: &Pin) {
        self.restarted.get_or_create(&[("model", pin.model.to_string())]).inc();
    }

    /// Counts a call.
    pub fn answered(&self, method: &'static str, code: &'static str, took: Duration) {
        self.requests.get_or_create(&[("method", method), ("code", code)]).inc();
        self.seconds.get_or_create(&[("method", method)]).observe(took.as_secs_f64());
    }

    /// Counts a call as one of `key`.
    pub fn answered_to(&self, key: &CallerKey, code: &'static str) {
        self.keys.get_or_create(&[("key", key.name.to_string()), ("code", code.to_owned())]).inc();
    }

    /// Counts tokens of an answer to `key`.
    pub fn read_for(&self, key: &CallerKey, tokens: u64) {
        self.key_tokens.get_or_create(&[("key", key.name.to_string())]).inc_by(tokens);
    }

    /// Counts a call that was not let in.
    pub fn unauthorized(&self, unauthorized: &Unauthorized) {
        let reason = match unauthorized {
            Unauthorized::Missing => "missing",
            Unauthorized::Malformed => "malformed",
            Unauthorized::Unknown => "unknown",
            Unauthorized::Expired { .. } => "expired",
            Unauthorized::Denied { .. } => "denied",
        };
        self.unauthorized.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts a call whose headers are too large.
    pub fn oversized(&self) {
        self.refused.get_or_create(&[("reason", "headers")]).inc();
    }

    /// Counts a worker that is left out.
    pub fn ejected(&self, sickness: Sickness) {
        self.ejections.get_or_create(&[("reason", sickness.label())]).inc();
    }

    /// Counts a call that a second worker was asked for, by whose answer was `taken`.
    pub fn hedged(&self, taken: &'static str) {
        self.hedges.get_or_create(&[("taken", taken)]).inc();
    }

    /// Counts tokens of an answer.
    pub fn read(&self, pin: &Pin, tokens: u64) {
        let labels = [("model", pin.model.to_string()), ("digest", pin.digest.to_string())];
        self.tokens.get_or_create(&labels).inc_by(tokens);
    }

    /// Counts a request that was answered.
    pub fn answered_by(&self, pin: &Pin) {
        let labels = [("model", pin.model.to_string()), ("digest", pin.digest.to_string())];
        self.answers.get_or_create(&labels).inc();
    }

    /// Counts a shard that is sent again.
    pub fn retried(&self, failure: &'static str) {
        self.retries.get_or_create(&[("reason", failure)]).inc();
    }

    /// Counts a call that was not admitted.
    pub fn refused(&self, overloaded: &Overloaded) {
        let reason = match &overloaded.why {
            Why::Full => "full",
            Why::Late => "late",
            Why::PerSecond { .. } => "tokens_per_second",
            Why::AtATime { .. } => "concurrent_tokens",
        };
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }
}

/// Numbers that are read when they are asked for.
#[derive(Debug)]
pub struct Readings {
    /// The workers.
    pub fleet: watch::Receiver<Arc<Fleet>>,
    /// How well the cluster is known.
    pub sight: watch::Receiver<Sight>,
    /// Outstanding tokens.
    pub ledger: Arc<Ledger>,
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let fleet = self.fleet.borrow().clone();
        let count = |standing| fleet.members().iter().filter(|member| member.standing == standing).count();
        let workers = [
            ("serving", count(Standing::Serving)),
            ("draining", count(Standing::Draining)),
            ("unreachable", count(Standing::Unreachable)),
        ];
        let help = "Workers by how they stand towards this gateway";
        let gauge = ConstGauge::new(0_i64);
        let mut family =
            encoder.encode_descriptor("beige_gateway_workers", help, None, gauge.metric_type())?;
        for (state, count) in workers {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(family.encode_family(&[("state", state)])?)?;
        }
        let outstanding = i64::try_from(self.ledger.outstanding()).unwrap_or(i64::MAX);
        gauge_of(&mut encoder, "outstanding_tokens", "Estimated tokens taken and not answered", outstanding)?;
        let sight = *self.sight.borrow();
        let current = i64::from(sight.freshness == Freshness::Current);
        gauge_of(&mut encoder, "view_current", "Whether the view is what etcd says now", current)?;
        let refusals = i64::try_from(sight.refusals).unwrap_or(i64::MAX);
        gauge_of(&mut encoder, "view_refusals", "Lists of etcd that were not believed", refusals)
    }
}

fn gauge_of(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: i64) -> Result<(), fmt::Error> {
    let (name, gauge) = (format!("beige_gateway_{name}"), ConstGauge::new(value));
    gauge.encode(encoder.encode_descriptor(&name, help, None, gauge.metric_type())?)
}

#[cfg(test)]
mod tests {
    use telemetry::prometheus::encoding::text;

    use super::*;

    #[test]
    fn all_of_it_is_shown() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let ledger = Arc::new(Ledger::new(1));
        let (_fleet, fleet) = watch::channel(Arc::default());
        let (_sight, sight) = watch::channel(Sight::default());
        registry.register_collector(Box::new(Readings { fleet, sight, ledger }));
        metrics.answered("beige.v1.Embeddings/Embed", "OK", Duration::from_millis(3));
        metrics.retried("lost");
        let mut shown = String::new();
        text::encode(&mut shown, &registry).unwrap();
        for line in [
            r#"beige_gateway_requests_total{method="beige.v1.Embeddings/Embed",code="OK"} 1"#,
            r#"beige_gateway_request_duration_seconds_count{method="beige.v1.Embeddings/Embed"} 1"#,
            r#"beige_gateway_retries_total{reason="lost"} 1"#,
            r#"beige_gateway_workers{state="serving"} 0"#,
            "beige_gateway_outstanding_tokens 0",
            "beige_gateway_view_current 0",
        ] {
            assert!(shown.contains(line), "{line} is not in\n{shown}");
        }
    }
}
