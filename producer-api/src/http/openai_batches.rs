//! OpenAI's Batch API, as its SDKs ask for it, on top of batches: a file is uploaded, a batch is
//! made of it, and its results are files.

mod files;
mod output;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, RawQuery, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sluice_shared::{
    api::Scope,
    clock,
    domain::{BatchId, Time},
};
use uuid::Uuid;

use self::files::Which;
use super::{
    Edge, batches,
    batches::upload::{self, Upload},
    conversation::{self, Seen, wrong},
    extract::{Caller, Params, bad_parameter},
    idempotency,
    problem::{ApiError, Code, clip},
};
use crate::store::{BatchRow, NewBatch};

/// Batches of this API.
const KIND: &str = "openai";

/// What the ids of batches begin with.
const BATCH: &str = "batch_";

/// The calls that a line may ask for.
const ENDPOINT: &str = "/v1/chat/completions";

/// The one `completion_window` that there is.
const WINDOW: (&str, Duration) = ("24h", Duration::from_secs(86_400));

const DEFAULT_LIMIT: u32 = 20;
const MOST_LIMIT: u32 = 100;

/// Every route.
pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v1/files", post(files::create).get(files::list))
        .route("/v1/files/{id}", get(files::retrieve).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", post(create).get(list))
        .route("/v1/batches/{id}", get(retrieve))
        .route("/v1/batches/{id}/cancel", post(cancel))
}

/// What went wrong, as OpenAI's API says it.
#[derive(Debug)]
struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, message) = (self.0.code(), self.0.detail().to_owned());
        // What cannot be is a 400 there, and what is there and cannot be changed, too.
        let status = match code.status() {
            StatusCode::UNPROCESSABLE_ENTITY | StatusCode::CONFLICT => StatusCode::BAD_REQUEST,
            status => status,
        };
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "requests",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        let whole = self.0.into_response();
        let error = json!({"error": {
            "message": message, "type": kind, "param": null, "code": code.as_str(),
        }});
        let mut answer = (status, Json(error)).into_response();
        for name in ["retry-after", "www-authenticate"] {
            if let Some(value) = whole.headers().get(name) {
                answer.headers_mut().insert(name, value.clone());
            }
        }
        answer
    }
}

/// A batch to make.
#[derive(Debug, Deserialize)]
struct Asked {
    input_file_id: String,
    endpoint: String,
    completion_window: String,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
}

/// What is kept with a batch.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Details {
    input_file_id: String,
    metadata: Option<Map<String, Value>>,
}

/// Makes a batch of a file. Its lines are checked at once: one that cannot be is told here.
async fn create(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    caller.needs(Scope::Submit)?;
    let (parts, body) = request.into_parts();
    let key = idempotency::key(&parts.headers)?;
    let payload = edge.bodies.read(&parts.headers, body).await?;
    let asked: Asked = serde_json::from_slice(&payload.bytes)
        .map_err(|error| ApiError::new(Code::InvalidBatch, format!("the body: {error}")))?;
    let refuse = |field: &str, detail: String| ApiError::field(Code::InvalidBatch, field, detail);
    if asked.endpoint != ENDPOINT {
        let detail = format!("is `{}`; there is only `{ENDPOINT}`", clip(&asked.endpoint));
        return Err(refuse("endpoint", detail).into());
    }
    if asked.completion_window != WINDOW.0 {
        return Err(refuse("completion_window", format!("must be `{}`", WINDOW.0)).into());
    }
    let Which::Uploaded(file) = Which::parse(&asked.input_file_id)? else {
        return Err(refuse("input_file_id", "is the output of a batch".into()).into());
    };
    files::find(&edge, &caller, file).await?;
    let details = Details {
        input_file_id: asked.input_file_id.clone(),
        metadata: asked.metadata,
    };
    let expires_at = clock::now() + WINDOW.1;
    let seen = Seen::default();
    let upload = Upload {
        batch: NewBatch {
            id: BatchId::generate(),
            client: caller.0.name.as_ref().to_owned(),
            kind: KIND,
            name: None,
            details: serde_json::to_string(&details).map_err(ApiError::internal)?,
        },
        partial: false,
        parse: Arc::new(move |line, rules| {
            let mut line = conversation::object(line)?;
            let custom_id = seen.custom_id(&mut line)?;
            if line.get("method").and_then(Value::as_str) != Some("POST") {
                return Err(wrong("method", "must be `POST`"));
            }
            if line.get("url").and_then(Value::as_str) != Some(ENDPOINT) {
                return Err(wrong("url", &format!("must be `{ENDPOINT}`")));
            }
            let Some(Value::Object(body)) = line.remove("body") else {
                return Err(wrong("body", "must be an object"));
            };
            conversation::job(body, custom_id, expires_at, rules)
        }),
        key: key.map(|key| (key, format!("openai {}", asked.input_file_id))),
    };
    let pieces = files::pieces(edge.clone(), file);
    let taken = upload::take(&edge, upload, pieces).await?;
    let batch = batches::find(&edge, taken.id).await?;
    Ok(Json(view(&edge, &batch).await?))
}

async fn retrieve(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let batch = find(&edge, &caller?, id_of(&id)?).await?;
    Ok(Json(view(&edge, &batch).await?))
}

async fn list(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    let asked = page(query.as_deref(), &[])?;
    let after = asked.after.as_deref().map(id_of).transpose()?;
    let found = edge
        .app
        .store
        .batches(Some(KIND), Some(&caller.0.name), after, asked.limit + 1);
    let mut found = edge.truth(found).await?;
    let more = found.len() > asked.limit as usize;
    found.truncate(asked.limit as usize);
    let mut data = Vec::with_capacity(found.len());
    for batch in &found {
        data.push(view(&edge, batch).await?);
    }
    Ok(Json(list_of(data, more)))
}

async fn cancel(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let caller = caller?;
    let batch = find(&edge, &caller, id_of(&id)?).await?;
    let batch = batches::cancel(&edge, &caller, batch.id).await?;
    Ok(Json(view(&edge, &batch).await?))
}

/// A batch of this caller; what is others' is not there for it.
async fn find(edge: &Edge, caller: &Caller, id: BatchId) -> Result<BatchRow, ApiError> {
    let batch = batches::find(edge, id).await?;
    let own = *batch.client == *caller.0.name || caller.0.may(Scope::Operate);
    if own && batch.kind == KIND {
        Ok(batch)
    } else {
        Err(no_such_batch(&format!("{BATCH}{}", id.0.simple())))
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
    let details: Details = serde_json::from_str(&batch.details).map_err(ApiError::internal)?;
    let status = match (batch.ended_at, batch.cancel_requested_at) {
        (None, None) => "in_progress",
        (None, Some(_)) => "cancelling",
        (Some(_), Some(_)) => "cancelled",
        (Some(_), None) if counts.expired > 0 => "expired",
        (Some(_), None) => "completed",
    };
    let ended_as = |name: &str| batch.ended_at.filter(|_| status == name).map(seconds);
    let file = |which: Which, lines: u64| batch.ended_at.filter(|_| lines > 0).map(|_| which.id());
    let failed = counts.failed + counts.expired + counts.cancelled;
    Ok(json!({
        "id": format!("{BATCH}{}", batch.id.0.simple()),
        "object": "batch",
        "endpoint": ENDPOINT,
        "errors": null,
        "input_file_id": details.input_file_id,
        "completion_window": WINDOW.0,
        "status": status,
        "output_file_id": file(Which::Output(batch.id), counts.succeeded),
        "error_file_id": file(Which::Errors(batch.id), failed),
        "created_at": seconds(batch.created_at),
        "in_progress_at": seconds(batch.created_at),
        "expires_at": seconds(batch.created_at + WINDOW.1),
        "finalizing_at": ended_as("completed"),
        "completed_at": ended_as("completed"),
        "failed_at": null,
        "expired_at": ended_as("expired"),
        "cancelling_at": batch.cancel_requested_at.map(seconds),
        "cancelled_at": ended_as("cancelled"),
        "request_counts": {
            "total": batch.total,
            "completed": counts.succeeded,
            "failed": failed,
        },
        "metadata": details.metadata,
    }))
}

/// A page that is asked for.
struct Page {
    after: Option<String>,
    limit: u32,
}

/// Reads the query of a list; `others` are names that make no difference here.
fn page(query: Option<&str>, others: &[&str]) -> Result<Page, ApiError> {
    let params = Params::parse(query, |name| {
        ["after", "limit"].contains(&name) || others.contains(&name)
    })?;
    let limit = params
        .parsed::<u32>("limit", |text, _| format!("is `{text}`, not a number"))?
        .unwrap_or(DEFAULT_LIMIT);
    if limit == 0 {
        return Err(bad_parameter("limit", "must be at least 1"));
    }
    Ok(Page {
        after: params.get("after").map(str::to_owned),
        limit: limit.min(MOST_LIMIT),
    })
}

fn list_of(data: Vec<Value>, has_more: bool) -> Value {
    let id = |value: Option<&Value>| value.map_or(Value::Null, |value| value["id"].clone());
    json!({
        "object": "list",
        "first_id": id(data.first()),
        "last_id": id(data.last()),
        "has_more": has_more,
        "data": data,
    })
}

fn seconds(time: Time) -> i64 {
    time.as_millis().div_euclid(1_000)
}
