//! The load generator against a whole fake.

#![allow(clippy::unwrap_used)] // A test file: clippy knows only functions marked `#[test]`.

#[allow(dead_code, unused_imports)] // Other tests use the rest.
mod fake;

use std::time::Duration;

use bench::{Arrivals, Call, Corpus, Pacing, Plan, Report};
use fake::{DIGEST, Fake, OTHER_DIGEST};
use proto::v1::{EmbedRequest, RerankRequest};
use tonic::transport::Endpoint;

fn corpus() -> Corpus {
    Corpus::parse("words", "{\"text\":\"one\"}\n{\"text\":\"one two\"}\n{\"text\":\"one two three\"}\n")
        .unwrap()
}

/// `run` connects: a channel belongs to a runtime.
fn plan(pacing: Pacing) -> Plan {
    Plan {
        connections: Vec::new(),
        authorization: None,
        call: Call::Embed(EmbedRequest { model: "mini".to_owned(), ..EmbedRequest::default() }),
        batch: 3,
        pacing,
        warmup: Duration::from_millis(100),
        window: Duration::from_millis(400),
        timeout: Duration::from_secs(20),
    }
}

fn run(fake: &Fake, plan: &Plan) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(fake.url()).unwrap();
        let connections = vec![endpoint.connect().await.unwrap(), endpoint.connect().await.unwrap()];
        bench::run(&Plan { connections, ..plan.clone() }, &corpus()).await.unwrap()
    })
}

#[test]
fn a_closed_loop_counts_texts_tokens_and_latencies() {
    let fake = Fake::start();
    let report = run(&fake, &plan(Pacing::Closed { concurrency: 4 }));
    assert!(report.calls > 0);
    assert_eq!(report.texts, report.calls * 3);
    assert_eq!(report.tokens, report.calls * (3 + 4 + 5));
    assert_eq!((report.digest.as_str(), report.digests.len()), (DIGEST, 1));
    assert!(report.latency_ms.p50 > 0.0 && report.latency_ms.p50 <= report.latency_ms.max);
    assert!(report.errors.is_empty(), "{:?}", report.errors);
}

#[test]
fn an_open_loop_makes_the_calls_that_fell_due() {
    let fake = Fake::start();
    let pacing = Pacing::Open { rate: 200.0, arrivals: Arrivals::Fixed, seed: 1, outstanding: 100 };
    let mut plan = plan(pacing);
    plan.warmup = Duration::ZERO;
    plan.batch = 1;
    run(&fake, &plan);
    // One every 5 ms, the first at 5 and the last before 400.
    assert_eq!(fake.state().texts, 79);
}

#[test]
fn a_slow_server_shows_in_the_latencies_of_an_open_loop() {
    let fake = Fake::start();
    fake.state().delay = Duration::from_millis(100);
    // One call at a time and 20 due in all: the last is sent some 1.5 s late.
    let pacing = Pacing::Open { rate: 50.0, arrivals: Arrivals::Fixed, seed: 1, outstanding: 1 };
    let report = run(&fake, &plan(pacing));
    assert!(report.latency_ms.max > 1_000.0, "{:?}", report.latency_ms);
    assert!(report.lag_p99_ms > 900.0, "{}", report.lag_p99_ms);
    assert!(report.errors.is_empty());
}

#[test]
fn calls_that_cannot_be_sent_in_time_are_errors() {
    let fake = Fake::start();
    fake.state().delay = Duration::from_millis(200);
    let pacing = Pacing::Open { rate: 100.0, arrivals: Arrivals::Poisson, seed: 1, outstanding: 1 };
    let report = run(&fake, &Plan { timeout: Duration::from_millis(250), ..plan(pacing) });
    assert!(report.errors["UNSENT"] > 0, "{:?}", report.errors);
}

#[test]
fn failures_are_reported_and_do_not_end_the_run() {
    let fake = Fake::start();
    fake.state().refusals = usize::MAX;
    let report = run(&fake, &plan(Pacing::Closed { concurrency: 2 }));
    assert_eq!(report.calls, 0);
    assert!(report.errors["RESOURCE_EXHAUSTED"] > 0);
    assert_eq!(report.first_failure.unwrap().message(), "the cluster is busy");
}

#[test]
fn a_swap_in_mid_run_is_seen() {
    let fake = Fake::start();
    fake.state().moves_at = 6;
    let report = run(&fake, &plan(Pacing::Closed { concurrency: 2 }));
    assert_eq!(report.digests, [DIGEST, OTHER_DIGEST]);
}

#[test]
fn rerank_calls_are_counted_by_their_documents() {
    let fake = Fake::with_models(&["reranker"]);
    let request = RerankRequest { model: "reranker".to_owned(), top_n: Some(1), ..RerankRequest::default() };
    let plan = Plan { call: Call::Rerank(request), ..plan(Pacing::Closed { concurrency: 1 }) };
    let report = run(&fake, &plan);
    assert!(report.calls > 0 && report.texts == report.calls * 3);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(
        (&json["call"], &json["model"], &json["mode"]),
        (&"rerank".into(), &"reranker".into(), &"closed".into())
    );
}
