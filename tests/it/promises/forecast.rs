//! Forecasts, and what then happens.

use sluice_shared::{
    api::{Forecast, JobView},
    domain::Time,
};

use crate::harness::{Cluster, Mode, on_every_mode, prompt};

on_every_mode!(
    a_batch_ends_when_it_was_forecast_to,
    a_waiting_job_starts_when_it_was_forecast_to,
);

/// Slow enough that what a busy machine adds to each job is little beside it.
const THREE_SPEEDS: &str = r#"
[accounts.quick]
provider = "simulated"
latency = "1s"
max_concurrency = 4
[accounts.middling]
provider = "simulated"
latency = "2s"
max_concurrency = 4
[accounts.slow]
provider = "simulated"
latency = "4s"
max_concurrency = 4
"#;

/// Lets every account run a few jobs, for their durations to be known.
async fn warm_up(cluster: &Cluster) {
    let ids = cluster.submit_many(&vec![prompt("warm up"); 16]).await;
    cluster.wait_all(&ids).await;
}

fn millis(from: Time, to: Time) -> f64 {
    (to.as_millis() - from.as_millis()) as f64
}

async fn a_batch_ends_when_it_was_forecast_to(mode: Mode) {
    let cluster = Cluster::start(mode, THREE_SPEEDS).await;
    warm_up(&cluster).await;
    let api = &cluster.apis()[0];
    let forecast: Forecast = api.get("/api/forecast?jobs=80").await.is(200);
    assert_eq!(forecast.accounts.len(), 3);
    assert!(
        forecast.accounts.iter().all(|account| account.measured > 0),
        "{forecast:?}"
    );
    assert_eq!(forecast.bottleneck.as_ref().unwrap().kind, "slots");
    let ids = cluster.submit_many(&vec![prompt("batch"); 80]).await;
    let jobs = cluster.wait_all(&ids).await;
    let start = jobs.iter().map(|job| job.created_at).min().unwrap();
    let end = jobs.iter().filter_map(|job| job.finished_at).max().unwrap();
    let (real, told) = (
        millis(start, end),
        millis(forecast.starts_at.unwrap(), forecast.done_at.unwrap()),
    );
    assert!(
        (told / real - 1.0).abs() <= 0.15,
        "{told} ms were told and it took {real}"
    );
}

async fn a_waiting_job_starts_when_it_was_forecast_to(mode: Mode) {
    let cluster = Cluster::start(mode, THREE_SPEEDS).await;
    warm_up(&cluster).await;
    let ids = cluster.submit_many(&vec![prompt("batch"); 80]).await;
    let last = *ids.last().unwrap();
    let asked: JobView = cluster.job(last).await;
    let told = asked.estimated_start_at.expect("it waits");
    assert!((60..=80).contains(&asked.position.unwrap()), "{asked:?}");
    let job = cluster.wait(last).await;
    let (real, told) = (
        millis(job.created_at, job.started_at.unwrap()),
        millis(job.created_at, told),
    );
    assert!(
        (told / real - 1.0).abs() <= 0.2,
        "{told} ms were told and it took {real}"
    );
    assert_eq!((job.position, job.estimated_start_at), (None, None));
}
