//! Metrics for Prometheus. They hold no secret and no text of a client, so no key is asked for.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use metrics::Counter;
use tokio::{sync::Mutex, time::Instant};

use super::Edge;
use crate::app::App;

/// How long the database may take to be counted.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a count is good for.
const FRESH: Duration = Duration::from_secs(1);

/// What is counted when someone looks, not when it changes.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    last: Mutex<Option<Instant>>,
}

impl Gauges {
    async fn refresh(&self, app: &App) {
        let mut last = self.last.lock().await;
        if last.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        let counts = async { tokio::try_join!(app.store.backlog(), app.store.accounts()) };
        // What cannot be counted now is not a number, rather than what it was before.
        let backlog = metrics::gauge!("sluice_backlog_jobs");
        match tokio::time::timeout(PATIENCE, counts).await {
            Ok(Ok((waiting, accounts))) => {
                backlog.set(u32::try_from(waiting).unwrap_or(u32::MAX));
                for row in accounts {
                    metrics::gauge!("sluice_in_flight", "account" => row.account.id.to_string())
                        .set(row.in_flight);
                }
            }
            Ok(Err(_)) | Err(_) => backlog.set(f64::NAN),
        }
        *last = Some(Instant::now());
    }
}

/// Answers by the class of their status; counted for every request, so registered once.
#[derive(Clone)]
pub(super) struct Responses([Counter; 5]);

impl Default for Responses {
    fn default() -> Self {
        Self(
            ["1xx", "2xx", "3xx", "4xx", "5xx"]
                .map(|class| metrics::counter!("sluice_http_responses_total", "class" => class)),
        )
    }
}

impl Responses {
    pub(super) fn count(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(counter) = self.0.get(class) {
            counter.increment(1);
        }
    }
}

/// Metrics in the text format of Prometheus.
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses((status = 200, description = "Metrics.", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(edge): State<Arc<Edge>>) -> Response {
    edge.gauges.refresh(&edge.app).await;
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, edge.app.metrics.render()).into_response()
}
