//! Anthropic's API, as far as its SDKs ask for it: a call is a job.

mod answer;
pub(super) mod count;
pub(super) mod messages;
mod stream;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    gateway::{
        fault::Fault,
        headers::{OfJob, retries},
    },
    problem::ApiError,
};

/// What went wrong, as Anthropic's API says it.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) Fault);

impl Refusal {
    fn body(&self) -> Value {
        let fault = &self.0;
        let kind = match fault.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        json!({
            "type": "error",
            "error": {"type": kind, "message": fault.message},
            "request_id": fault.job.map(|job| format!("req_{}", job.0.simple())),
        })
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.0.status, Json(self.body())).into_response();
        retries(response.headers_mut(), &self.0);
        if let Some(job) = self.0.job {
            response.extensions_mut().insert(OfJob(job));
        }
        response
    }
}
