//! Health, metrics, and the API's own description.

use serde_json::Value;
use sluice_shared::api::{Health, HealthStatus};

use super::TWO_ACCOUNTS;
use crate::harness::{Cluster, Mode, on_every_mode, prompt};

on_every_mode!(
    health_tells_how_each_plane_is_doing,
    metrics_count_what_happens,
    the_api_describes_itself,
);

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
