//! The provider that makes its answers up.

use std::time::{Duration, Instant};

use sluice_consumer_worker::provider::{Prompt, Provider, Sink};
use sluice_shared::domain::{JobId, Outcome, Request};
use tokio_util::sync::CancellationToken;

use crate::support::{MAX_OUTPUT, build, cancel_when, prompt, run, run_for};

async fn outcome(provider: &Provider, job: u128, attempt: u32) -> Outcome {
    let (sink, _received) = Sink::new();
    let request = Request::prompt("a b c");
    let job = JobId(uuid::Uuid::from_u128(job));
    let timeout = Duration::from_secs(60);
    let prompt = Prompt {
        job,
        attempt,
        session: None,
        request: &request,
        timeout,
    };
    provider.run(prompt, &CancellationToken::new(), &sink).await
}

#[tokio::test]
async fn without_tokens_it_echoes_and_with_them_it_writes() {
    let ran = run(
        &build("provider = \"simulated\""),
        &Request::prompt("say  it\nagain"),
    )
    .await;
    insta::assert_snapshot!(ran.line(), @r#"completed "say  it\nagain" by simulated because end_turn, 3 in (cache 0 read, 0 written), 3 out"#);
    let writer = build("provider = \"simulated\"\ntokens = 7\nseed = 5");
    let Outcome::Completed(done) = outcome(&writer, 1, 1).await else {
        panic!()
    };
    assert_eq!(done.text.split(' ').count(), 7);
    assert_eq!(done.usage.output_tokens, 7);
}

#[tokio::test]
async fn chance_is_the_same_for_the_same_seed_job_and_attempt() {
    let settings = "provider = \"simulated\"\ntokens = 9\n";
    let one = build(&format!("{settings}seed = 1"));
    let other = build(&format!("{settings}seed = 2"));
    assert_eq!(outcome(&one, 1, 1).await, outcome(&one, 1, 1).await);
    for different in [
        outcome(&one, 2, 1).await,
        outcome(&one, 1, 2).await,
        outcome(&other, 1, 1).await,
    ] {
        assert_ne!(outcome(&one, 1, 1).await, different);
    }
}

#[tokio::test]
async fn faults_come_in_their_shares() {
    let provider = build(
        "provider = \"simulated\"\n\
         faults = { failed = 0.2, throttled = 0.1, overloaded = 0.05, rejected = 0.05 }",
    );
    let mut counts = std::collections::BTreeMap::new();
    for job in 0..10_000 {
        *counts
            .entry(outcome(&provider, job, 1).await.name())
            .or_insert(0) += 1;
    }
    for (name, expected) in [
        ("failed", 2000),
        ("throttled", 1000),
        ("overloaded", 500),
        ("rejected", 500),
    ] {
        let count: i32 = counts[name];
        assert!((count - expected).abs() < expected / 5, "{counts:?}");
    }
}

#[tokio::test]
async fn an_answer_is_bounded_like_any_other() {
    let provider = build("provider = \"simulated\"");
    let ran = run(&provider, &Request::prompt("x".repeat(MAX_OUTPUT + 1))).await;
    assert_eq!(ran.failure(), "output_too_large");
}

#[tokio::test]
async fn latency_is_spread_over_the_deltas_and_has_its_jitter() {
    let provider = build(
        "provider = \"simulated\"\nlatency = \"100ms\"\nlatency_jitter = \"1s\"\ntokens = 99",
    );
    let mut took = Vec::new();
    for _ in 0..2 {
        let started = Instant::now();
        let ran = run(&provider, &Request::prompt("hi")).await;
        took.push(started.elapsed());
        assert_eq!(ran.deltas.len(), 20);
        assert_eq!(ran.deltas.concat(), ran.text());
    }
    assert!(
        took.iter().all(|took| *took >= Duration::from_millis(100)),
        "{took:?}"
    );
}

#[tokio::test]
async fn it_ends_on_cancel_and_on_timeout() {
    let provider = build("provider = \"simulated\"\nlatency = \"20m\"\ntokens = 100");
    let quick = build("provider = \"simulated\"\nlatency = \"1s\"\ntokens = 100");
    let ran = cancel_when(&quick, &Request::prompt("hi"), |text| !text.is_empty()).await;
    assert_eq!(ran.outcome, Outcome::Cancelled);
    let ran = run_for(
        &provider,
        &Request::prompt("hi"),
        Duration::from_millis(100),
    )
    .await;
    assert_eq!(ran.failure(), "timeout");
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    let (sink, _received) = Sink::new();
    let echo = build("provider = \"simulated\"");
    let request = Request::prompt("hi");
    let ended = echo
        .run(prompt(&request, Duration::from_secs(1)), &cancelled, &sink)
        .await;
    assert_eq!(ended, Outcome::Cancelled);
}

/// A worker runs many at once, on threads that it does not choose.
#[tokio::test]
async fn a_run_can_go_from_thread_to_thread() {
    fn can_go<T: Send>(work: T) -> T {
        work
    }
    let provider = build("provider = \"simulated\"");
    let (sink, _received) = Sink::new();
    let (request, cancel) = (Request::prompt("hi"), CancellationToken::new());
    let timeout = Duration::from_secs(1);
    can_go(provider.run(prompt(&request, timeout), &cancel, &sink)).await;
    can_go(provider.check()).await;
}

/// It is the benchmarks' no-op job: what it costs would be taken for the queue's own cost.
#[tokio::test]
async fn without_latency_it_costs_next_to_nothing() {
    let provider = build("provider = \"simulated\"");
    let started = Instant::now();
    for job in 0..10_000 {
        outcome(&provider, job, 1).await;
    }
    let each = started.elapsed() / 10_000;
    println!("one echo takes {each:?}");
    assert!(each < Duration::from_micros(200), "{each:?}");
}
