//! Batches: many jobs in one upload, with one id, one end and one list of results.

pub(super) mod lines;
pub(super) mod results;
pub(super) mod upload;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    extract::{RawQuery, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use sluice_shared::{
    api::{BatchPage, BatchState, BatchView, NewJob, Scope},
    clock,
    domain::{BatchId, Time},
};
use tokio::time::Instant;
use tracing::Instrument;

use self::upload::{Taken, Upload};
use super::{
    Edge,
    extract::{Caller, Id, NoParams, Params, bad_parameter, single},
    forecast,
    idempotency::{self, REPLAYED},
    problem::{ApiError, Code, clip},
};
use crate::store::{BatchRow, NewBatch};

/// Batches of this API, not of those that are compatible with others.
pub(super) const KIND: &str = "sluice";

/// Rejected lines shown with a batch, at most.
const MOST_ERRORS: u32 = 50;

const DEFAULT_LIMIT: u32 = 50;
const MOST_LIMIT: u32 = 500;

/// How long an estimate is told again: to make one takes a look at all that waits.
const ESTIMATE: Duration = Duration::from_secs(5);

/// Estimates that are kept, at most.
const MOST_ESTIMATES: usize = 1_000;

/// When batches may end, as it was estimated last.
#[derive(Debug, Default)]
pub(super) struct Estimates(Mutex<HashMap<BatchId, (Instant, Option<Time>)>>);

impl Estimates {
    fn lock(&self) -> MutexGuard<'_, HashMap<BatchId, (Instant, Option<Time>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, id: BatchId) -> Option<(Instant, Option<Time>)> {
        self.lock().get(&id).copied()
    }

    fn put(&self, id: BatchId, end: Option<Time>) {
        let mut estimates = self.lock();
        if estimates.len() >= MOST_ESTIMATES {
            estimates.clear();
        }
        estimates.insert(id, (Instant::now(), end));
    }
}

/// Submit a batch: many jobs in one upload, one JSON document a line.
///
/// The answer comes when all of them are on disk. A batch is accepted as a whole or refused as a
/// whole, with up to 50 of the lines at fault named by their numbers; with `partial=true` those
/// lines are left out and told of in the results. With an `Idempotency-Key` the same upload gives
/// the same batch again.
#[utoipa::path(
    post, path = "/api/batches", tag = "batches", security(("key" = ["submit"])),
    params(
        ("partial" = Option<bool>, Query, description = "leave out lines that are no jobs"),
        ("name" = Option<String>, Query, description = "a name for it, at most 255 characters"),
        ("Idempotency-Key" = Option<String>, Header,
            description = "1 to 255 printable characters that stand for this request"),
        ("traceparent" = Option<String>, Header, description = "the W3C trace that it belongs to"),
    ),
    request_body(content = NewJob, content_type = "application/jsonl"),
    responses(
        (status = 202, description = "Kept.", body = BatchView,
            headers(
                ("Location" = String, description = "where to ask for the batch"),
                ("Idempotency-Replayed" = String, description = "`true` when it was kept before"),
            )),
        (status = 408, description = "`request_timeout`"),
        (status = 413, description = "`body_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_batch`, `too_many_jobs`, `idempotency_key_reused`"),
        (status = 429, description = "`too_many_waiting`, `budget_spent`, `too_many_requests`"),
    )
)]
pub(super) async fn submit_batch(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Submit)?;
    let params = Params::parse(query.as_deref(), |name| ["partial", "name"].contains(&name))?;
    let partial = params
        .parsed::<bool>("partial", |text, _| {
            format!("is `{text}`; write true or false")
        })?
        .unwrap_or(false);
    let name = params.get("name").map(str::to_owned);
    if let Some(name) = &name
        && !(1..=255).contains(&name.chars().count())
    {
        return Err(bad_parameter("name", "must have 1 to 255 characters"));
    }
    let (parts, body) = request.into_parts();
    let key = idempotency::key(&parts.headers)?;
    lines_are_declared(&parts.headers)?;
    let (span, traceparent) = edge.trace(&parts.headers);
    let upload = Upload {
        key: key.map(|key| {
            (
                key,
                format!("{partial} {}", name.as_deref().unwrap_or_default()),
            )
        }),
        batch: NewBatch {
            id: BatchId::generate(),
            client: caller.0.name.as_ref().to_owned(),
            kind: KIND,
            name,
            details: "{}".into(),
        },
        partial,
        parse: Arc::new(move |line, rules| {
            let mut row = upload::job(line, rules)?;
            row.traceparent.clone_from(&traceparent);
            Ok(row)
        }),
    };
    let pieces = upload::pieces(body, edge.app.config.api.request_timeout.0);
    let Taken { id, replayed } = upload::take(&edge, upload, pieces).instrument(span).await?;
    let view = show(&edge, find(&edge, id).await?).await?;
    let mut headers = HeaderMap::new();
    let location = HeaderValue::try_from(&view.url).map_err(ApiError::internal)?;
    headers.insert(header::LOCATION, location);
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok((StatusCode::ACCEPTED, headers, Json(view)).into_response())
}

/// List batches, newest first.
#[utoipa::path(
    get, path = "/api/batches", tag = "batches", security(("key" = ["read"])),
    params(
        ("client" = Option<String>, Query, description = "only of this client"),
        ("limit" = Option<u32>, Query, description = "batches in the page, 1 to 500, default 50",
            minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "A page of batches.", body = BatchPage))
)]
pub(super) async fn list_batches(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<BatchPage>, ApiError> {
    let params = Params::parse(query.as_deref(), |name| {
        ["client", "limit", "cursor"].contains(&name)
    })?;
    let limit = params
        .parsed::<u32>("limit", |text, _| format!("is `{text}`, not a number"))?
        .unwrap_or(DEFAULT_LIMIT);
    if !(1..=MOST_LIMIT).contains(&limit) {
        let detail = format!("is {limit}; it goes from 1 to {MOST_LIMIT}");
        return Err(bad_parameter("limit", &detail));
    }
    let cursor = params.get("cursor").map(str::parse).transpose();
    let cursor = cursor.map_err(|_| {
        ApiError::new(
            Code::BadCursor,
            "the cursor is not one of a list of batches",
        )
    })?;
    let batches = edge
        .app
        .store
        .batches(None, params.get("client"), cursor, limit + 1);
    let mut rows = edge.truth(batches).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next_cursor = rows.last().filter(|_| more).map(|row| row.id.to_string());
    let mut batches = Vec::with_capacity(rows.len());
    for row in rows {
        batches.push(view(&edge, row).await?);
    }
    Ok(Json(BatchPage {
        batches,
        next_cursor,
    }))
}

/// Get a batch: how far it has come, and when it may end.
#[utoipa::path(
    get, path = "/api/batches/{id}", tag = "batches", security(("key" = ["read"])),
    params(("id" = BatchId, Path, description = "the batch")),
    responses(
        (status = 200, description = "The batch as it is now.", body = BatchView),
        (status = 404, description = "`no_such_batch`"),
    )
)]
pub(super) async fn get_batch(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    id: Id,
    _: NoParams,
) -> Result<Json<BatchView>, ApiError> {
    let batch = find(&edge, BatchId(id.0)).await?;
    show(&edge, batch).await.map(Json)
}

/// Cancel a batch.
///
/// Its jobs that wait end soon, those that run when their workers have stopped them. What has
/// ended keeps its result.
#[utoipa::path(
    post, path = "/api/batches/{id}/cancel", tag = "batches", security(("key" = ["submit"])),
    params(("id" = BatchId, Path, description = "the batch")),
    responses(
        (status = 202, description = "Its jobs are being cancelled.", body = BatchView),
        (status = 404, description = "`no_such_batch`"),
        (status = 409, description = "`already_ended`"),
    )
)]
pub(super) async fn cancel_batch(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    id: Id,
    _: NoParams,
) -> Result<(StatusCode, Json<BatchView>), ApiError> {
    let batch = cancel(&edge, &caller, BatchId(id.0)).await?;
    Ok((StatusCode::ACCEPTED, Json(view(&edge, batch).await?)))
}

/// Asks for a batch's end, for its own client or an operator. Gives it as it is then.
pub(super) async fn cancel(
    edge: &Edge,
    caller: &Caller,
    id: BatchId,
) -> Result<BatchRow, ApiError> {
    caller.needs(Scope::Submit)?;
    let batch = find(edge, id).await?;
    if *batch.client != *caller.0.name {
        caller.needs(Scope::Operate)?;
    }
    let cancelled = edge.app.store.cancel_batch(id, clock::now());
    if !edge.truth(cancelled).await? {
        return Err(ApiError::new(Code::AlreadyEnded, "the batch has ended"));
    }
    edge.app.batches.wake();
    find(edge, id).await
}

/// The batch with this id.
pub(super) async fn find(edge: &Edge, id: BatchId) -> Result<BatchRow, ApiError> {
    let batch = edge.truth(edge.app.store.batch(id)).await?;
    batch.ok_or_else(|| ApiError::new(Code::NoSuchBatch, format!("there is no batch {id}")))
}

pub(super) fn state_of(batch: &BatchRow) -> BatchState {
    match (batch.ended_at, batch.cancel_requested_at) {
        (Some(_), _) => BatchState::Ended,
        (None, Some(_)) => BatchState::Cancelling,
        (None, None) => BatchState::Running,
    }
}

async fn view(edge: &Edge, batch: BatchRow) -> Result<BatchView, ApiError> {
    let counts = edge.truth(edge.app.store.batch_counts(&batch)).await?;
    let state = state_of(&batch);
    let url = format!("/api/batches/{}", batch.id);
    Ok(BatchView {
        id: batch.id,
        state,
        name: batch.name,
        client: batch.client,
        total: batch.total,
        rejected: batch.rejected,
        counts,
        created_at: batch.created_at,
        cancel_requested_at: batch.cancel_requested_at,
        ended_at: batch.ended_at,
        estimated_end_at: None,
        errors: Vec::new(),
        results_url: format!("{url}/results"),
        url,
    })
}

/// As [`view`], with what is told of one batch alone.
async fn show(edge: &Arc<Edge>, batch: BatchRow) -> Result<BatchView, ApiError> {
    let mut view = view(edge, batch).await?;
    if view.rejected > 0 {
        let rejects = edge.app.store.batch_rejects(view.id, 0, MOST_ERRORS);
        view.errors = edge.truth(rejects).await?;
    }
    if view.state == BatchState::Running {
        view.estimated_end_at = estimate(edge, &view).await?;
    }
    Ok(view)
}

/// When it may end. One that was told before is told again while a new one is made, so that who asks
/// for the progress does not wait for a look at all that waits.
async fn estimate(edge: &Arc<Edge>, batch: &BatchView) -> Result<Option<Time>, ApiError> {
    let known = edge.estimates.get(batch.id);
    let Some((at, end)) = known else {
        return estimate_anew(edge, batch).await;
    };
    if at.elapsed() >= ESTIMATE {
        // The next one to ask finds it fresh, and makes none as well.
        edge.estimates.put(batch.id, end);
        let (chores, edge, batch) = (edge.chores.clone(), edge.clone(), batch.clone());
        chores.spawn(async move {
            if let Err(error) = estimate_anew(&edge, &batch).await {
                tracing::debug!(batch = %batch.id, ?error, "its end could not be estimated");
            }
        });
    }
    Ok(end)
}

async fn estimate_anew(edge: &Edge, batch: &BatchView) -> Result<Option<Time>, ApiError> {
    let Some((lane, priority)) = edge.truth(edge.app.store.batch_tail(batch.id)).await? else {
        return Ok(None);
    };
    let end = forecast::end_of(
        edge,
        &batch.client,
        &lane,
        priority,
        batch.counts.unfinished(),
    )
    .await?;
    edge.estimates.put(batch.id, end);
    Ok(end)
}

/// Refuses a body that does not say that it is JSON a line, or that is compressed.
fn lines_are_declared(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = single(headers, header::CONTENT_TYPE)?;
    let kind = kind.map_or("nothing".into(), |kind| {
        clip(&String::from_utf8_lossy(kind.as_bytes()))
    });
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let names = ["jsonl", "x-jsonlines", "x-ndjson", "ndjson"];
    let is_lines = essence
        .to_ascii_lowercase()
        .strip_prefix("application/")
        .is_some_and(|kind| names.contains(&kind));
    if !is_lines {
        let detail = format!(
            "the Content-Type is `{kind}`; send `application/jsonl` (curl: -H 'Content-Type: application/jsonl' --data-binary @FILE)"
        );
        return Err(ApiError::new(Code::UnsupportedMediaType, detail));
    }
    match single(headers, header::CONTENT_ENCODING)? {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => Err(
            ApiError::new(Code::UnsupportedMediaType, "send the body uncompressed"),
        ),
        _ => Ok(()),
    }
}
