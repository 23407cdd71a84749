//! Health, metrics, and the API's own description.

use reqwest::Method;
use serde_json::{Value, json};
use sluice_shared::api::{Health, HealthStatus, Receipt};

use super::TWO_ACCOUNTS;
use crate::{
    harness::{Cluster, Mode, bounded, eventually, on_every_mode, prompt},
    stub::{Play, Stub},
};

on_every_mode!(
    health_tells_how_each_plane_is_doing,
    metrics_count_what_happens,
    the_api_describes_itself,
    a_trace_follows_a_job_from_its_client_to_its_provider,
);

#[tokio::test]
async fn a_worker_tells_how_it_is_doing() {
    bounded(async {
        let cluster = Cluster::start(Mode::Distributed, TWO_ACCOUNTS).await;
        let ids = cluster.submit_many(&vec![prompt("x"); 30]).await;
        cluster.wait_all(&ids).await;
        let mut completed = 0.0;
        for (number, worker) in (1..).zip(cluster.worker_health()) {
            assert_eq!(worker.get("/health/live").await.status, 200);
            assert_eq!(worker.get("/health/ready").await.status, 200);
            let health: Value = worker.get("/health").await.is(200);
            assert_eq!(health["worker"], format!("worker-{number}"));
            assert_eq!(
                (&health["broker"], &health["live"]),
                (&json!("up"), &json!("up"))
            );
            completed += worker.metric("sluice_worker_attempts_total").await;
        }
        assert!((completed - 30.0).abs() < 0.5, "{completed} of 30");
    })
    .await;
}

async fn health_tells_how_each_plane_is_doing(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let kinds = match mode {
        Mode::Embedded => ["memory", "sqlite", "in-process"],
        Mode::Distributed => ["redis", "postgres", "rabbitmq"],
    };
    for api in cluster.apis() {
        let stranger = api.with_key("");
        assert_eq!(stranger.get("/health/live").await.status, 200);
        assert_eq!(stranger.get("/health/ready").await.status, 200);
        let health: Health = stranger.get("/health").await.is(200);
        assert_eq!(
            (health.status, health.version.as_str()),
            (HealthStatus::Ok, env!("CARGO_PKG_VERSION"))
        );
        let planes: Vec<&str> = health.planes.keys().map(AsRef::as_ref).collect();
        assert_eq!(planes, ["live", "truth", "work"]);
        let found: Vec<&str> = health
            .planes
            .values()
            .map(|plane| plane.kind.as_str())
            .collect();
        assert_eq!(found, kinds);
        assert!(
            health
                .planes
                .values()
                .all(|plane| plane.up && plane.error.is_none())
        );
    }
}

async fn metrics_count_what_happens(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let ids = cluster.submit_many(&vec![prompt("count me"); 25]).await;
    cluster.wait_all(&ids).await;
    for (name, expected) in [
        ("sluice_jobs_submitted_total", 25.0),
        ("sluice_jobs_finished_total", 25.0),
        ("sluice_attempts_dispatched_total", 25.0),
        ("sluice_attempts_total", 25.0),
    ] {
        let mut counted = 0.0;
        for api in cluster.apis() {
            counted += api.metric(name).await;
        }
        assert!((counted - expected).abs() < 0.5, "{name}: {counted}");
    }
    let answer = cluster.api().get("/metrics").await;
    assert!(
        answer
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain"))
    );
    // A job's id or a client's words would make a series of each job.
    assert!(!answer.body.contains("count me") && !answer.body.contains(&ids[0].to_string()));
}

async fn the_api_describes_itself(mode: Mode) {
    let cluster = Cluster::start(mode, TWO_ACCOUNTS).await;
    let stranger = cluster.api().with_key("");
    let document: Value = stranger.get("/api/openapi.json").await.is(200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    for path in [
        "/api/jobs",
        "/api/jobs/{id}",
        "/api/jobs/{id}/cancel",
        "/api/jobs/{id}/retry",
        "/api/accounts",
        "/api/keys",
    ] {
        assert!(
            document["paths"][path].is_object(),
            "{path} is not described"
        );
    }
    for schema in ["NewJob", "JobView", "Problem"] {
        assert!(
            document["components"]["schemas"][schema].is_object(),
            "{schema}"
        );
    }
    let page = stranger.get("/docs").await;
    let page = match page.header("location").map(str::to_owned) {
        Some(location) => stranger.get(&location).await,
        None => page,
    };
    assert_eq!(page.status, 200);
    assert!(
        page.body.contains("<html") || page.body.contains("<!DOCTYPE html>"),
        "{}",
        page.body
    );
}

/// Spans are sent as protobuf, where the trace's id stands as its bytes.
async fn a_trace_follows_a_job_from_its_client_to_its_provider(mode: Mode) {
    let collector = Stub::start(|_| Play::Answer(String::new())).await;
    let config = format!(
        "[telemetry]\notlp_endpoint = \"{}/v1/traces\"\n{TWO_ACCOUNTS}",
        collector.url()
    );
    let cluster = Cluster::start(mode, &config).await;
    let api = cluster.api();
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128;
    let request = api
        .request(Method::POST, "/api/jobs")
        .header(
            "traceparent",
            format!("00-{trace:032x}-00f067aa0ba902b7-01"),
        )
        .json(&prompt("follow me"));
    let receipt: Receipt = api.send(request).await.is(202);
    cluster.wait(receipt.id).await;
    let services = match mode {
        Mode::Embedded => vec!["sluice-up"],
        Mode::Distributed => vec!["sluice-api", "sluice-worker"],
    };
    for service in services {
        eventually(
            &format!("{service} sends its spans of the trace"),
            async || {
                let exports = collector.exports();
                let of_both = |export: &&Vec<u8>| {
                    let holds = |part: &[u8]| export.windows(part.len()).any(|bytes| bytes == part);
                    holds(&trace.to_be_bytes()) && holds(service.as_bytes())
                };
                exports.iter().find(of_both).map(drop)
            },
        )
        .await;
    }
}
