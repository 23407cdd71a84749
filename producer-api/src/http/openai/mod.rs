//! OpenAI's API, as far as its SDKs ask for it: a call is a job.

mod answer;
pub(super) mod chat;
pub(super) mod responses;
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

/// What went wrong, as OpenAI's API says it.
#[derive(Debug)]
pub(super) struct Refusal(pub(super) Fault);

impl Refusal {
    fn body(&self) -> Value {
        let fault = &self.0;
        let kind = match fault.status {
            StatusCode::TOO_MANY_REQUESTS if fault.code == "insufficient_quota" => {
                "insufficient_quota"
            }
            StatusCode::TOO_MANY_REQUESTS => "requests",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {
            "message": fault.message,
            "type": kind,
            "param": fault.param,
            "code": fault.code,
        }})
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
