//! What went wrong, before it is said in one of the dialects.

use axum::http::StatusCode;
use sluice_shared::{
    api::JobView,
    domain::{JobId, State},
};

use crate::http::problem::{ApiError, Code, clip};

/// Why a caller gets no answer.
#[derive(Debug)]
pub(in crate::http) struct Fault {
    /// As what it is told.
    pub(in crate::http) status: StatusCode,
    /// A stable code.
    pub(in crate::http) code: String,
    /// What happened, for people.
    pub(in crate::http) message: String,
    /// The field of the request at fault.
    pub(in crate::http) param: Option<String>,
    /// Seconds after which to try again.
    pub(in crate::http) retry_after: Option<u64>,
    /// To try again is of no use, though the status may suggest it: SDKs ask for this.
    pub(in crate::http) is_final: bool,
    /// The job that it is about.
    pub(in crate::http) job: Option<JobId>,
}

/// Longest wait that a caller is told to sit out: SDKs sleep as long as they are told.
const MOST_PAUSE: u64 = 60;

impl Fault {
    fn new(status: StatusCode, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            param: None,
            retry_after: None,
            is_final: false,
            job: None,
        }
    }

    /// A request that cannot be.
    pub(in crate::http) fn invalid(param: impl Into<String>, message: impl AsRef<str>) -> Self {
        let param = clip(&param.into());
        let message = format!("{param}: {}", clip(message.as_ref()));
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
        }
    }

    /// A part of the request that Sluice cannot carry to a provider.
    pub(in crate::http) fn unsupported(param: impl Into<String>, why: impl AsRef<str>) -> Self {
        Self {
            code: "unsupported_parameter".into(),
            ..Self::invalid(param, why)
        }
    }

    /// Something that is not there.
    pub(in crate::http) fn not_found(code: &str, param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::new(StatusCode::NOT_FOUND, code, message)
        }
    }

    /// This API process stops.
    pub(in crate::http) fn stopping(job: JobId) -> Self {
        Self {
            retry_after: Some(1),
            job: Some(job),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "this server is stopping; try again",
            )
        }
    }

    /// The text that was sent is not that of the answer.
    pub(in crate::http) fn void(job: JobId) -> Self {
        Self {
            job: Some(job),
            ..Self::new(
                StatusCode::BAD_GATEWAY,
                "stream_cut",
                "the provider broke off in the middle of its answer, and what it wrote is void",
            )
        }
    }

    /// Tokens were not counted, by the provider's fault or the caller's.
    pub(in crate::http) fn not_counted(
        code: &str,
        message: impl Into<String>,
        is_rejected: bool,
    ) -> Self {
        let status = if is_rejected {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::BAD_GATEWAY
        };
        Self::new(status, code, message)
    }

    /// What became of a job that has ended without an answer.
    pub(in crate::http) fn of(job: &JobView) -> Self {
        let (code, message) = job.error.as_ref().map_or(("", ""), |error| {
            (error.code.as_str(), error.message.as_str())
        });
        let last = job.attempts.as_ref().and_then(|attempts| attempts.last());
        let is_rejected = last.is_some_and(|attempt| attempt.outcome == "rejected");
        let status = match (job.state, code) {
            (State::Cancelled, _) => StatusCode::CONFLICT,
            (State::Expired, _) => StatusCode::SERVICE_UNAVAILABLE,
            (_, "model_not_found" | "not_found_error") if is_rejected => StatusCode::NOT_FOUND,
            _ if is_rejected => StatusCode::BAD_REQUEST,
            (_, "timeout") => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        let code = match (job.state, code) {
            (State::Expired, _) => "no_capacity",
            (state, "") => state.as_str(),
            (_, code) => code,
        };
        let message = match job.state {
            State::Expired => "no account was free to run it in time".to_owned(),
            _ if message.is_empty() => format!("the job ended {}", job.state),
            _ => message.to_owned(),
        };
        Self {
            // A job that failed was tried again already, as often as it may be.
            is_final: job.state != State::Expired,
            job: Some(job.id),
            ..Self::new(status, code, message)
        }
    }
}

impl From<ApiError> for Fault {
    fn from(error: ApiError) -> Self {
        let (code, message, errors, retry_after) = error.into_parts();
        let param = errors.into_iter().next().map(|error| error.field);
        let is_model = param.as_deref() == Some("model");
        let status = match code {
            Code::NoSuchLane if is_model => StatusCode::NOT_FOUND,
            _ if code.status() == StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            Code::PromptTooLarge => StatusCode::BAD_REQUEST,
            _ => code.status(),
        };
        let code = match code {
            Code::NoSuchLane if is_model => "model_not_found",
            Code::Unauthorized => "invalid_api_key",
            Code::TooManyRequests | Code::TooManyWaiting => "rate_limit_exceeded",
            Code::BudgetSpent => "insufficient_quota",
            _ => code.as_str(),
        };
        Self {
            param,
            is_final: retry_after.is_some_and(|seconds| seconds > MOST_PAUSE),
            retry_after,
            ..Self::new(status, code, message)
        }
    }
}
