//! How the whole is doing, for load balancers and people. No key is asked for, so that only
//! whether a plane answers is said; why not may hold an address, and goes to the log.

use std::{borrow::Cow, collections::BTreeMap, fmt, future::Future, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use sluice_shared::{
    api::{Health, HealthStatus, PlaneHealth},
    broker::Broker,
    live::Live,
};
use tokio::{sync::Mutex, time::Instant};

use super::Edge;
use crate::app::App;

/// How long a plane may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long an answer is good for, so that asking often costs nothing.
const FRESH: Duration = Duration::from_secs(1);

/// The plane without which nothing can be accepted.
const TRUTH: &str = "truth";

/// Looks at the planes, and remembers for a moment what it saw.
#[derive(Debug, Default)]
pub(super) struct Checkup {
    last: Mutex<Option<(Instant, Health)>>,
}

impl Checkup {
    /// How all is. Who asks while another look is under way gets that one's result.
    async fn health(&self, app: &App) -> Health {
        let mut last = self.last.lock().await;
        if let Some((at, health)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return health.clone();
        }
        let before = last.as_ref().map(|(_, health)| health);
        let health = look(app, before).await;
        *last = Some((Instant::now(), health.clone()));
        health
    }
}

async fn look(app: &App, before: Option<&Health>) -> Health {
    let broker = match &app.broker {
        Broker::Rabbit(_) => "rabbitmq",
        Broker::InProcess(_) => "in-process",
    };
    let live = match &app.live {
        Live::Redis(_) => "redis",
        Live::Memory(_) => "memory",
    };
    let was_up = |name: &str| {
        before.is_none_or(|health| health.planes.get(name).is_none_or(|plane| plane.up))
    };
    let (truth, work, live) = tokio::join!(
        plane(TRUTH, app.store.kind(), was_up(TRUTH), app.store.ready()),
        plane("work", broker, was_up("work"), app.broker.ready()),
        plane("live", live, was_up("live"), app.live.ready()),
    );
    let status = match (truth.1.up, work.1.up && live.1.up) {
        (false, _) => HealthStatus::Down,
        (true, false) => HealthStatus::Degraded,
        (true, true) => HealthStatus::Ok,
    };
    let planes = BTreeMap::from([truth, work, live]);
    Health {
        status,
        planes,
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

async fn plane<E: fmt::Display>(
    name: &'static str,
    kind: &str,
    was_up: bool,
    ready: impl Future<Output = Result<(), E>>,
) -> (Cow<'static, str>, PlaneHealth) {
    let problem = match tokio::time::timeout(PATIENCE, ready).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(("cannot be used; the log says why", error.to_string())),
        Err(_) => Some(("does not answer", "no answer in time".into())),
    };
    match &problem {
        Some((_, cause)) if was_up => tracing::warn!(plane = name, kind, cause, "a plane is down"),
        None if !was_up => tracing::info!(plane = name, kind, "a plane is up again"),
        _ => {}
    }
    let error = problem.map(|(words, _)| words.to_owned());
    (
        name.into(),
        PlaneHealth {
            kind: kind.into(),
            up: error.is_none(),
            error,
        },
    )
}

/// Whether the process runs at all.
#[utoipa::path(
    get, path = "/health/live", tag = "health",
    responses((status = 200, description = "It runs."))
)]
pub(super) async fn live() -> StatusCode {
    StatusCode::OK
}

/// Whether jobs can be accepted: the truth plane is up.
#[utoipa::path(
    get, path = "/health/ready", tag = "health",
    responses(
        (status = 200, description = "Jobs are accepted.", body = Health),
        (status = 503, description = "Not now; `planes` says what is down.", body = Health),
    )
)]
pub(super) async fn ready(State(edge): State<Arc<Edge>>) -> Response {
    answer(edge.checkup.health(&edge.app).await)
}

/// How all is.
///
/// `ok`; `degraded` when something is down that submits can do without; `down` (503) otherwise.
#[utoipa::path(
    get, path = "/health", tag = "health",
    responses(
        (status = 200, description = "`ok` or `degraded`.", body = Health),
        (status = 503, description = "`down`.", body = Health),
    )
)]
pub(super) async fn health(State(edge): State<Arc<Edge>>) -> Response {
    answer(edge.checkup.health(&edge.app).await)
}

fn answer(health: Health) -> Response {
    match health.status {
        HealthStatus::Ok | HealthStatus::Degraded => Json(health).into_response(),
        HealthStatus::Down => {
            let headers = [(header::RETRY_AFTER, "2")];
            (StatusCode::SERVICE_UNAVAILABLE, headers, Json(health)).into_response()
        }
    }
}
