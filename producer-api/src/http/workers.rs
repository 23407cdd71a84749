//! Workers: who is there.

use std::sync::Arc;

use axum::{Json, extract::State};
use sluice_shared::{
    api::{AttemptInHand, WorkerList, WorkerView},
    live::Presence,
};

use super::{
    Edge,
    extract::{Caller, NoParams},
    problem::ApiError,
};

/// Attempts that are named, at most.
const MOST_ATTEMPTS: usize = 100;

/// List the workers.
///
/// One that falls silent is left out after 10 seconds.
#[utoipa::path(
    get, path = "/api/workers", tag = "workers", security(("key" = ["read"])),
    responses((status = 200, description = "The workers that are there, by name.", body = WorkerList))
)]
pub(super) async fn list_workers(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    _: NoParams,
) -> Result<Json<WorkerList>, ApiError> {
    let mut workers: Vec<WorkerView> = edge
        .app
        .workers
        .last_heard()
        .into_iter()
        .map(view)
        .collect();
    workers.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    Ok(Json(WorkerList {
        workers,
        current: edge.app.workers.is_current(),
    }))
}

fn view(presence: Presence) -> WorkerView {
    let attempts = presence.in_flight.iter().take(MOST_ATTEMPTS);
    WorkerView {
        id: presence.worker,
        host: presence.host,
        pid: presence.pid,
        version: presence.version,
        since: presence.since,
        last_heartbeat: presence.beat_at,
        accounts: presence.accounts,
        serves_all: presence.serves_all,
        in_flight: u32::try_from(presence.in_flight.len()).unwrap_or(u32::MAX),
        attempts: attempts
            .map(|(job, attempt)| AttemptInHand {
                job: *job,
                attempt: *attempt,
            })
            .collect(),
        troubles: presence.troubles,
    }
}
