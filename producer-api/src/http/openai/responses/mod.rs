//! `/v1/responses`: a call that is waited for, or one in the background that is asked for later.

mod answer;
mod ask;
mod stream;

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, RawQuery, Request, State},
    response::{IntoResponse, Response},
};
use sluice_shared::{
    api::{JobView, Scope},
    clock,
    domain::JobId,
};

use self::answer::Known;
use super::Refusal;
use crate::http::{
    Edge,
    extract::{Caller, Params},
    gateway::{
        fault::Fault,
        headers::OfJob,
        live::Follow,
        run::{self, Running},
    },
    jobs,
    problem::{ApiError, clip},
};

/// How long a cancel waits for the worker to stop, so that it can say that it has.
const STOPS: Duration = Duration::from_secs(5);

/// Asks for a response.
pub(in crate::http) async fn create(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    request: Request,
) -> Result<Response, Refusal> {
    let caller = caller?;
    let (parts, body) = request.into_parts();
    let asked = ask::ask(run::read(&edge, &caller, &parts, body).await?)?;
    let known = Known {
        background: asked.background,
        model: asked.model,
        instructions: asked.job.system.clone(),
        metadata: asked.job.metadata.clone(),
        params: asked.job.params.clone(),
    };
    let mut running = if asked.background {
        Running::submit_unbounded(&edge, &caller, &parts.headers, asked.job).await?
    } else {
        Running::submit(&edge, &caller, &parts.headers, asked.job).await?
    };
    let (id, since) = (running.job, running.since);
    let mut response = if asked.background {
        running.keep();
        Json(answer::begun(id, since, &known, "queued")).into_response()
    } else if asked.streamed {
        stream::answer(Follow::new(running)?, known).await?
    } else {
        let completion = running.answer().await?;
        let ended = clock::now();
        Json(answer::ended(id, since, ended, &known, &completion)).into_response()
    };
    response.extensions_mut().insert(OfJob(id));
    Ok(response)
}

/// Looks at a response.
pub(in crate::http) async fn retrieve(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let caller = caller?;
    let params = Params::parse(query.as_deref(), |_| true)?;
    if params.get("stream") == Some("true") {
        let why = "a response that was begun is not streamed; ask for it without";
        return Err(Fault::unsupported("stream", why).into());
    }
    let job = find(&edge, &caller, &id, Scope::Read).await?;
    Ok(show(&job))
}

/// Cancels a response; one that has ended stays as it is.
pub(in crate::http) async fn cancel(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let caller = caller?;
    let job = find(&edge, &caller, &id, Scope::Submit).await?;
    if job.state.is_terminal() {
        return Ok(show(&job));
    }
    let mut waiter = edge.app.waiters.wait_for(job.id);
    if jobs::end(&edge, job.id).await.is_ok() {
        waiter.wait(STOPS).await;
    }
    let job = find(&edge, &caller, &id, Scope::Submit).await?;
    Ok(show(&job))
}

fn show(job: &JobView) -> Response {
    let mut response = Json(answer::of(job)).into_response();
    response.extensions_mut().insert(OfJob(job.id));
    response
}

/// The job of a response, for its own client or an operator.
async fn find(edge: &Edge, caller: &Caller, id: &str, needed: Scope) -> Result<JobView, Fault> {
    caller.needs(needed)?;
    let missing = || {
        let message = format!("there is no response `{}`", clip(id));
        Fault::not_found("not_found", "response_id", message)
    };
    let job: JobId = id
        .strip_prefix(answer::PREFIX)
        .and_then(|id| id.parse().ok())
        .ok_or_else(missing)?;
    let job = edge
        .truth(edge.app.store.job(job))
        .await?
        .ok_or_else(missing)?;
    if *job.client != *caller.0.name && !caller.0.may(Scope::Operate) {
        return Err(missing());
    }
    Ok(job)
}
