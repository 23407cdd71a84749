//! Looking at jobs, and ending them.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{RawQuery, State},
    http::StatusCode,
};
use sluice_shared::{
    api::{JobPage, JobView, Scope},
    clock,
    domain::{JobId, State as JobState},
    message::Control,
};

use super::{
    Edge,
    extract::{self, Caller, Id, NoParams},
    forecast, list,
    problem::{ApiError, Code},
    windows,
};

/// How long a cancel tries to reach the workers at once; the reaper tells them again.
const TELL: Duration = Duration::from_secs(1);

/// Get a job, or wait for its end.
///
/// With `wait` the answer comes as soon as the job has ended, and with its current state when
/// that time is over. A job that waits for capacity says where it stands and when it may start.
#[utoipa::path(
    get, path = "/api/jobs/{id}", tag = "jobs", security(("key" = ["read"])),
    params(
        ("id" = JobId, Path, description = "the job"),
        ("wait" = Option<sluice_shared::domain::Span>, Query,
            description = "wait this long for its end, at most 60s unless configured otherwise"),
    ),
    responses(
        (status = 200, description = "The job as it is now.", body = JobView),
        (status = 404, description = "`no_such_job`"),
    )
)]
pub(super) async fn get_job(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    id: Id,
    RawQuery(query): RawQuery,
) -> Result<Json<JobView>, ApiError> {
    let wait = extract::wait(query.as_deref(), edge.app.config.api.max_wait)?;
    let Some(wait) = wait else {
        return forecast::found(&edge, id.job()).await.map(Json);
    };
    // Before looking, or its end may be missed.
    let mut waiter = edge.app.waiters.wait_for(id.job());
    let job = find(&edge, id.job()).await?;
    if job.state.is_terminal() {
        return Ok(Json(job));
    }
    tokio::select! {
        _ = waiter.wait(wait.0) => {}
        () = edge.shutdown.cancelled() => {}
    }
    let mut job = edge
        .truth(edge.app.store.job_again(job))
        .await?
        .ok_or_else(|| no_such_job(id.job()))?;
    forecast::tell(&edge, &mut job).await?;
    Ok(Json(job))
}

/// List jobs, newest first.
///
/// All filters must hold. `state` takes several, separated by commas; `metadata.KEY=VALUE` may be
/// given for several keys.
#[utoipa::path(
    get, path = "/api/jobs", tag = "jobs", security(("key" = ["read"])),
    params(
        ("state" = Option<String>, Query, description = "only these states, separated by commas",
            example = "queued,running"),
        ("account" = Option<String>, Query, description = "only this account"),
        ("client" = Option<String>, Query, description = "only of this client"),
        ("model" = Option<String>, Query, description = "only those that ask for this model"),
        ("batch" = Option<sluice_shared::domain::BatchId>, Query, description = "only of this batch"),
        ("metadata.KEY" = Option<String>, Query,
            description = "only those with this value for KEY, which stands for a name of yours"),
        ("from" = Option<sluice_shared::domain::Time>, Query,
            description = "accepted at this time or later"),
        ("to" = Option<sluice_shared::domain::Time>, Query, description = "accepted before this time"),
        ("limit" = Option<u32>, Query, description = "jobs in the page, 1 to 500, default 50",
            minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of jobs.", body = JobPage))
)]
pub(super) async fn list_jobs(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<JobPage>, ApiError> {
    let asked = list::parse(query.as_deref())?;
    let page = edge
        .truth(
            edge.app
                .store
                .jobs(&asked.filter, asked.cursor, asked.limit),
        )
        .await?;
    Ok(Json(JobPage {
        jobs: page.jobs,
        next_cursor: page.next.map(list::cursor),
    }))
}

/// Cancel a job.
///
/// A queued job ends at once (200). One in flight ends when its worker has stopped it (202).
#[utoipa::path(
    post, path = "/api/jobs/{id}/cancel", tag = "jobs", security(("key" = ["submit"])),
    params(("id" = JobId, Path, description = "the job")),
    responses(
        (status = 200, description = "Cancelled.", body = JobView),
        (status = 202, description = "Its worker is being told to stop it.", body = JobView),
        (status = 404, description = "`no_such_job`"),
        (status = 409, description = "`already_ended`"),
    )
)]
pub(super) async fn cancel_job(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    id: Id,
    _: NoParams,
) -> Result<(StatusCode, Json<JobView>), ApiError> {
    let job = find_to_change(&edge, &caller, id.job()).await?.id;
    let status = end(&edge, job).await?;
    Ok((status, Json(find(&edge, job).await?)))
}

/// Asks for a job's end: 200 when it has ended, 202 when its worker is being told.
pub(super) async fn end(edge: &Edge, job: JobId) -> Result<StatusCode, ApiError> {
    let cancelled = edge.truth(edge.app.store.cancel(job, clock::now())).await?;
    let status = match cancelled.ok_or_else(|| no_such_job(job))? {
        Err(refused) => return Err(ApiError::new(Code::AlreadyEnded, refused.to_string())),
        Ok((_, _, true)) => {
            edge.app.dependents.add([job]);
            edge.app.ended(std::iter::once((job, JobState::Cancelled)));
            StatusCode::OK
        }
        Ok((_, attempt, false)) => {
            let cancel = Control::Cancel { job, attempt };
            match tokio::time::timeout(TELL, edge.app.broker.control(&cancel)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%job, %error, "a cancel will be told later"),
                Err(_) => tracing::debug!(%job, "a cancel will be told later"),
            }
            StatusCode::ACCEPTED
        }
    };
    Ok(status)
}

pub(super) async fn find(edge: &Edge, id: JobId) -> Result<JobView, ApiError> {
    let mut job = edge
        .truth(edge.app.store.job(id))
        .await?
        .ok_or_else(|| no_such_job(id))?;
    windows::explain_wait(edge, &mut job).await?;
    Ok(job)
}

/// The job, for someone who wants to change something about it: its own client, or an operator.
pub(super) async fn find_to_change(
    edge: &Edge,
    caller: &Caller,
    id: JobId,
) -> Result<JobView, ApiError> {
    caller.needs(Scope::Submit)?;
    let job = find(edge, id).await?;
    if *job.client != *caller.0.name {
        caller.needs(Scope::Operate)?;
    }
    Ok(job)
}

fn no_such_job(id: JobId) -> ApiError {
    ApiError::new(Code::NoSuchJob, format!("there is no job {id}"))
}
