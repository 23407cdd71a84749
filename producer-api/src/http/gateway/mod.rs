//! What the endpoints for the SDKs of other APIs share: a call becomes a job like any other, with
//! a priority before those that nobody waits for, and its answer goes back in the caller's dialect.
//!
//! `run` submits and waits, `live` follows the text as it comes, `fields` takes foreign requests
//! apart, `fault` is what went wrong in no dialect yet, and `headers` tells the caller where it
//! stands. The dialects themselves are [`super::openai`] and [`super::anthropic`].

pub(super) mod fault;
pub(super) mod fields;
pub(super) mod headers;
pub(super) mod live;
pub(super) mod models;
pub(super) mod options;
pub(super) mod run;
pub(super) mod sse;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderName, Method, Uri, request::Parts},
    middleware,
    response::{IntoResponse, Response},
    routing::{any, get, post},
};

use self::fault::Fault;
use super::{
    Edge, anthropic,
    extract::single,
    openai,
    problem::{self, ApiError},
};

/// Below it stands everything that other APIs define.
const ROOT: &str = "/v1/";

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// Whose API a caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    /// Some paths are in both APIs; only callers of Anthropic's name its version.
    pub(super) fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let is_messages = uri.path().starts_with("/v1/messages");
        if is_messages || headers.contains_key(ANTHROPIC_VERSION) {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }

    /// What went wrong, as this API says it.
    pub(super) fn refuse(self, fault: Fault) -> Response {
        match self {
            Self::OpenAi => openai::Refusal(fault).into_response(),
            Self::Anthropic => anthropic::Refusal(fault).into_response(),
        }
    }
}

/// The routes of both APIs. They are not in the API's document: they follow those of their makers.
pub(super) fn routes() -> Router<Arc<Edge>> {
    Router::new()
        .route("/v1/chat/completions", post(openai::chat::create))
        .route("/v1/responses", post(openai::responses::create))
        .route("/v1/responses/{id}", get(openai::responses::retrieve))
        .route("/v1/responses/{id}/cancel", post(openai::responses::cancel))
        .route("/v1/messages", post(anthropic::messages::create))
        .route("/v1/messages/count_tokens", post(anthropic::count::count))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::retrieve))
        .route("/v1/{*rest}", any(no_such_route))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(headers::tell))
}

async fn no_such_route(request: Request) -> Response {
    let dialect = Dialect::of(request.uri(), request.headers());
    dialect.refuse(problem::no_such_route(request.uri()).into())
}

async fn method_not_allowed(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let dialect = Dialect::of(&uri, &headers);
    dialect.refuse(problem::method_not_allowed(method, uri).await.into())
}

/// The key of a caller that sends it as Anthropic's API has it.
pub(super) fn api_key(parts: &Parts) -> Result<Option<String>, ApiError> {
    if !parts.uri.path().starts_with(ROOT) {
        return Ok(None);
    }
    let Some(value) = single(&parts.headers, API_KEY)? else {
        return Ok(None);
    };
    let secret = value.to_str().map(str::trim).unwrap_or_default();
    if secret.is_empty() {
        return Err(ApiError::unauthorized("the x-api-key header holds no key"));
    }
    Ok(Some(secret.to_owned()))
}
