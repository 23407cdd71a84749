//! Anthropic's Message Batches API, as its SDKs ask for it, on top of batches.

mod elements;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, RawQuery, Request, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use serde_json::{Value, json};
use sluice_shared::{
    api::Scope,
    clock,
    domain::{BatchId, Completion, State as JobState, Time},
};
use uuid::Uuid;

use self::elements::Elements;
use super::{
    Edge, batches,
    batches::{
        results::Write,
        upload::{self, Upload},
    },
    conversation::{self, CUSTOM_ID, Seen, wrong},
    extract::{Caller, Params, bad_parameter},
    idempotency,
    problem::{ApiError, Code, clip},
};
use crate::store::{BatchRow, LineOutcome, NewBatch};

/// Batches of this API.
const KIND: &str = "anthropic";

/// What the ids of batches begin with.
const BATCH: &str = "msgbatch_";

/// How long a job of a batch may wait.
const WINDOW: Duration = Duration::from_secs(86_400);

const DEFAULT_LIMIT: u32 = 20;
const MOST_LIMIT: u32 = 1_000;

/// Every route.
pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v1/messages/batches", post(create).get(list))
        .route("/v1/messages/batches/{id}", get(retrieve))
        .route("/v1/messages/batches/{id}/cancel", post(cancel))
        .route("/v1/messages/batches/{id}/results", get(results))
}

/// What went wrong, as Anthropic's API says it.
#[derive(Debug)]
struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let message = self.0.detail().to_owned();
        let status = match self.0.code().status() {
            StatusCode::UNPROCESSABLE_ENTITY | StatusCode::CONFLICT => StatusCode::BAD_REQUEST,
            status => status,
        };
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        let whole = self.0.into_response();
        let mut answer = (status, Json(error_of(kind, &message))).into_response();
        if let Some(value) = whole.headers().get(header::RETRY_AFTER) {
            let headers = answer.headers_mut();
            headers.insert(header::RETRY_AFTER, value.clone());
        }
        answer
    }
}

fn error_of(kind: &str, message: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": null})
}

async fn create(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    caller.needs(Scope::Submit)?;
    let (parts, body) = request.into_parts();
    let key = idempotency::key(&parts.headers)?;
    let expires_at = clock::now() + WINDOW;
    let seen = Seen::default();
    let upload = Upload {
        batch: NewBatch {
            id: BatchId::generate(),
            client: caller.0.name.as_ref().to_owned(),
            kind: KIND,
            name: None,
            details: "{}".into(),
        },
        partial: false,
        parse: Arc::new(move |line, rules| {
            let mut line = conversation::object(line)?;
            let custom_id = seen.custom_id(&mut line)?;
            let Some(Value::Object(mut params)) = line.remove("params") else {
                return Err(wrong("params", "must be an object"));
            };
            // What Anthropic calls so says who asks, and is nothing to be kept as notes.
            params.remove("metadata");
            conversation::job(params, custom_id, expires_at, rules)
        }),
        key: key.map(|key| (key, KIND.into())),
    };
    let pieces = upload::pieces(body, edge.app.config.api.request_timeout.0);
    let taken = upload::take(&edge, upload, lines(pieces)).await?;
    let batch = batches::find(&edge, taken.id).await?;
    Ok(Json(view(&edge, &batch).await?))
}

/// The requests of a body, one a line.
fn lines(
    pieces: impl Stream<Item = Result<Bytes, ApiError>> + Send + Unpin,
) -> impl Stream<Item = Result<Bytes, ApiError>> + Send + Unpin {
    let start = (pieces, Elements::new(), false);
    Box::pin(stream::try_unfold(
        start,
        |(mut pieces, mut elements, ended)| async move {
            if ended {
                return Ok(None);
            }
            let bad =
                |error: elements::NoRequests| ApiError::new(Code::InvalidBatch, error.to_string());
            let Some(piece) = pieces.next().await else {
                elements.finish().map_err(bad)?;
                return Ok(Some((Bytes::new(), (pieces, elements, true))));
            };
            let mut lines = Vec::new();
            elements.push(&piece?, &mut lines).map_err(bad)?;
            Ok(Some((lines.into(), (pieces, elements, false))))
        },
    ))
}

async fn retrieve(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let batch = find(&edge, &caller?, &id).await?;
    Ok(Json(view(&edge, &batch).await?))
}

async fn list(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    let params = Params::parse(query.as_deref(), |name| {
        ["limit", "after_id"].contains(&name)
    })?;
    let limit = params
        .parsed::<u32>("limit", |text, _| format!("is `{text}`, not a number"))?
        .unwrap_or(DEFAULT_LIMIT);
    if !(1..=MOST_LIMIT).contains(&limit) {
        let detail = format!("is {limit}; it goes from 1 to {MOST_LIMIT}");
        return Err(bad_parameter("limit", &detail).into());
    }
    let after = params.get("after_id").map(id_of).transpose()?;
    let found = edge
        .app
        .store
        .batches(Some(KIND), Some(&caller.0.name), after, limit + 1);
    let mut found = edge.truth(found).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let mut data = Vec::with_capacity(found.len());
    for batch in &found {
        data.push(view(&edge, batch).await?);
    }
    let id = |value: Option<&Value>| value.map_or(Value::Null, |value| value["id"].clone());
    Ok(Json(json!({
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": more,
        "data": data,
    })))
}

async fn cancel(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    let batch = find(&edge, &caller, &id).await?;
    let batch = batches::cancel(&edge, &caller, batch.id).await?;
    Ok(Json(view(&edge, &batch).await?))
}

async fn results(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let batch = find(&edge, &caller?, &id).await?;
    if batch.ended_at.is_none() {
        let detail = "the batch has not ended; its results are there when it has";
        return Err(ApiError::new(Code::NotEnded, detail).into());
    }
    let write: Write = Arc::new(line);
    let body: Body = batches::results::stream(edge, batch, 0, None, write);
    let mut answer = body.into_response();
    let kind = HeaderValue::from_static("application/x-jsonl");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(answer)
}

/// A batch of this caller; what is others' is not there for it.
async fn find(edge: &Edge, caller: &Caller, id: &str) -> Result<BatchRow, ApiError> {
    let batch = batches::find(edge, id_of(id)?).await?;
    let own = *batch.client == *caller.0.name || caller.0.may(Scope::Operate);
    if own && batch.kind == KIND {
        Ok(batch)
    } else {
        Err(no_such_batch(id))
    }
}

fn id_of(text: &str) -> Result<BatchId, ApiError> {
    let id = text
        .strip_prefix(BATCH)
        .and_then(|id| Uuid::try_parse(id).ok());
    id.map(BatchId).ok_or_else(|| no_such_batch(text))
}

fn no_such_batch(id: &str) -> ApiError {
    ApiError::new(Code::NoSuchBatch, format!("there is no batch {}", clip(id)))
}

async fn view(edge: &Edge, batch: &BatchRow) -> Result<Value, ApiError> {
    let counts = edge.truth(edge.app.store.batch_counts(batch)).await?;
    let id = format!("{BATCH}{}", batch.id.0.simple());
    let status = match (batch.ended_at, batch.cancel_requested_at) {
        (Some(_), _) => "ended",
        (None, Some(_)) => "canceling",
        (None, None) => "in_progress",
    };
    let results_url = format!("/v1/messages/batches/{id}/results");
    Ok(json!({
        "id": id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": {
            "processing": counts.unfinished(),
            "succeeded": counts.succeeded,
            "errored": counts.failed,
            "canceled": counts.cancelled,
            "expired": counts.expired,
        },
        "created_at": batch.created_at,
        "expires_at": batch.created_at + WINDOW,
        "ended_at": batch.ended_at,
        "cancel_initiated_at": batch.cancel_requested_at,
        "archived_at": Option::<Time>::None,
        "results_url": batch.ended_at.map(|_| results_url),
    }))
}

fn line(_: &BatchRow, outcome: &LineOutcome, page: &mut Vec<u8>) -> Result<(), ApiError> {
    let notes: Value = serde_json::from_str(&outcome.metadata).map_err(ApiError::internal)?;
    let result = match (&outcome.answer, outcome.job) {
        (Some(answer), Some((job, _))) => {
            let answer: Completion = serde_json::from_str(answer).map_err(ApiError::internal)?;
            json!({"type": "succeeded", "message": {
                "id": format!("msg_{}", job.0.simple()),
                "type": "message",
                "role": "assistant",
                "model": answer.model.unwrap_or_default(),
                "content": [{"type": "text", "text": answer.text}],
                "stop_reason": stop_reason(answer.stop_reason.as_deref()),
                "stop_sequence": null,
                "usage": {
                    "input_tokens": answer.usage.input_tokens,
                    "output_tokens": answer.usage.output_tokens,
                },
            }})
        }
        (_, Some((_, JobState::Cancelled))) => json!({"type": "canceled"}),
        (_, Some((_, JobState::Expired))) => json!({"type": "expired"}),
        _ => {
            let (code, words) = outcome.error.clone().unwrap_or_default();
            let error = error_of("api_error", &format!("{code}: {words}"));
            json!({"type": "errored", "error": error})
        }
    };
    let line = json!({"custom_id": notes[CUSTOM_ID], "result": result});
    serde_json::to_writer(&mut *page, &line).map_err(ApiError::internal)?;
    page.push(b'\n');
    Ok(())
}

fn stop_reason(reason: Option<&str>) -> &str {
    match reason {
        Some("length") => "max_tokens",
        Some(reason @ ("max_tokens" | "stop_sequence" | "refusal")) => reason,
        _ => "end_turn",
    }
}
