//! What the API says when it says no: problem documents (RFC 9457) with stable codes.

use std::{any::Any, borrow::Cow, fmt};

use axum::{
    Json,
    http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use sluice_shared::{
    api::{FieldError, Problem, Scope},
    domain::{Span, Time, quota::Violation},
};

use crate::{store::StoreError, submitter::SubmitError};

/// Where each code is explained; see [`super::docs`].
pub(super) const PAGE: &str = "/docs/problems";

/// Fields named in one problem, at most.
pub(super) const MOST_FIELDS: usize = 50;

/// Seconds after which a client may try again whose jobs do not fit into its backlog.
const BACKLOG_PAUSE: u64 = 5;

/// Longest text that is repeated from a request.
const MOST_TEXT: usize = 300;

macro_rules! codes {
    ($($name:ident = $status:ident, $code:literal, $title:literal, $what:literal;)+) => {
        /// Every kind of problem. A code is for good: new ones are added, none is changed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code { $(#[doc = $what] $name,)+ }

        impl Code {
            /// Every kind.
            pub(super) const ALL: &[Code] = &[$(Code::$name),+];

            /// Its HTTP status.
            pub(super) fn status(self) -> StatusCode {
                match self { $(Code::$name => StatusCode::$status),+ }
            }

            /// Its name in the API.
            pub(super) fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code),+ }
            }

            /// The kind in a few words.
            pub(super) fn title(self) -> &'static str {
                match self { $(Code::$name => $title),+ }
            }

            /// What it means and what to do.
            pub(super) fn meaning(self) -> &'static str {
                match self { $(Code::$name => $what),+ }
            }
        }
    };
}

codes! {
    BadBody = BAD_REQUEST, "bad_body", "The body cannot be read",
        "The body broke off or breaks the rules of HTTP.";
    BadCursor = BAD_REQUEST, "bad_cursor", "Not a cursor",
        "Give `next_cursor` of the page before, unchanged.";
    BadHeader = BAD_REQUEST, "bad_header", "A header cannot be read",
        "The header named in `errors` does not have the form it must have.";
    BadId = BAD_REQUEST, "bad_id", "Not an id",
        "Ids are UUIDs, as the receipt gave them.";
    BadParameter = BAD_REQUEST, "bad_parameter", "A query parameter is wrong",
        "Each parameter at fault is named in `errors`: unknown, given twice, or out of range.";
    DuplicateHeader = BAD_REQUEST, "duplicate_header", "A header came twice",
        "The header named in `errors` may be given once.";
    MalformedJson = BAD_REQUEST, "malformed_json", "Not JSON",
        "The body is no JSON document; line and column say where it goes wrong.";
    Unauthorized = UNAUTHORIZED, "unauthorized", "A key is needed",
        "Send a valid API key as `Authorization: Bearer KEY`.";
    Forbidden = FORBIDDEN, "forbidden", "The key may not do this",
        "The key is valid and lacks the scope that is named, or the job is not its own.";
    CrossSite = FORBIDDEN, "cross_site", "Not from the dashboard",
        "A request with the cookie of a sign-in must come with the header `Sluice-Dashboard`, unless it is a GET.";
    NoSuchRoute = NOT_FOUND, "no_such_route", "There is nothing here",
        "The path is not one of the API; /docs lists them.";
    NoSuchJob = NOT_FOUND, "no_such_job", "No such job",
        "There is no job with this id.";
    NoSuchBatch = NOT_FOUND, "no_such_batch", "No such batch",
        "There is no batch with this id.";
    NoSuchSchedule = NOT_FOUND, "no_such_schedule", "No such schedule",
        "There is no schedule with this id.";
    NoSuchFile = NOT_FOUND, "no_such_file", "No such file",
        "There is no file with this id.";
    NoSuchAccount = NOT_FOUND, "no_such_account", "No such account",
        "There is no account of this name.";
    NoSuchKey = NOT_FOUND, "no_such_key", "No such key",
        "There is no key with this id, or it is revoked already.";
    NoSuchWebhook = NOT_FOUND, "no_such_webhook", "No such webhook",
        "There is no endpoint with this id.";
    NoSuchDelivery = NOT_FOUND, "no_such_delivery", "No such delivery",
        "There is no delivery with this id; old ones are forgotten after `webhooks.keep`.";
    MethodNotAllowed = METHOD_NOT_ALLOWED, "method_not_allowed", "Not by this method",
        "The path is right and the method is not; `Allow` names those that are.";
    RequestTimeout = REQUEST_TIMEOUT, "request_timeout", "The request took too long to come",
        "Headers and body must come within `api.request_timeout`.";
    AlreadyEnded = CONFLICT, "already_ended", "The job has ended",
        "A job that has ended cannot be cancelled.";
    NotEnded = CONFLICT, "not_ended", "The job has not ended",
        "Only a job that has ended can be retried; cancel it first.";
    AccountExists = CONFLICT, "account_exists", "There is one of this name",
        "Change the account that is there, or take another name.";
    AccountConfigured = CONFLICT, "account_configured", "The configuration made it",
        "This account stands in the configuration: change it there. It can be paused and drained here.";
    AccountBusy = CONFLICT, "account_busy", "The account is not empty",
        "Attempts of it are in flight, or someone else changes it: drain it, and try again.";
    NoMasterKey = CONFLICT, "no_master_key", "There is no master key",
        "Accounts and the secrets of webhooks are sealed with it: start the API and the workers with the same `SLUICE_MASTER_KEY`.";
    NoWorker = CONFLICT, "no_worker", "No worker serves it",
        "Start a worker that serves the account, or mend what keeps one from it.";
    WebhookDisabled = CONFLICT, "webhook_disabled", "The webhook is disabled",
        "It gets nothing until it is enabled; `disabled_reason` says why.";
    LastAdminKey = CONFLICT, "last_admin_key", "The last admin key",
        "Without it nobody could make keys any more; make another admin key first.";
    BodyTooLarge = PAYLOAD_TOO_LARGE, "body_too_large", "The body is too large",
        "The body is longer than `api.max_body_bytes`, or an upload than `batches.max_bytes`; submit in smaller parts.";
    PromptTooLarge = PAYLOAD_TOO_LARGE, "prompt_too_large", "The prompt is too large",
        "All texts of a job together are longer than `api.max_prompt_bytes`.";
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Not sent as JSON",
        "Send `Content-Type: application/json`, uncompressed.";
    InvalidJob = UNPROCESSABLE_ENTITY, "invalid_job", "The job cannot be",
        "Each field at fault is named in `errors`; of an array nothing was accepted.";
    InvalidBatch = UNPROCESSABLE_ENTITY, "invalid_batch", "The batch cannot be",
        "Each line at fault is named in `errors`, up to 50 of them; nothing was accepted. With `partial=true` the other lines are.";
    InvalidSchedule = UNPROCESSABLE_ENTITY, "invalid_schedule", "The schedule cannot be",
        "Each field at fault is named in `errors`.";
    InvalidAccount = UNPROCESSABLE_ENTITY, "invalid_account", "The account cannot be",
        "Each setting at fault is named in `errors`; docs/configuration.md lists them all.";
    InvalidSession = UNPROCESSABLE_ENTITY, "invalid_session", "Nobody can be signed in by this",
        "Give either `key` or `link`.";
    InvalidKey = UNPROCESSABLE_ENTITY, "invalid_key", "The key cannot be",
        "Each field at fault is named in `errors`.";
    InvalidWebhook = UNPROCESSABLE_ENTITY, "invalid_webhook", "The webhook cannot be",
        "Each field at fault is named in `errors`; private addresses need `webhooks.allow_networks`.";
    InvalidRouting = UNPROCESSABLE_ENTITY, "invalid_routing", "The routing cannot be",
        "Each field at fault is named in `errors`; the strategies are those of docs/routing.md.";
    InvalidCharacter = UNPROCESSABLE_ENTITY, "invalid_character", "A character that cannot be kept",
        "The NUL character (U+0000) cannot be kept; the fields that hold one are named.";
    TooManyJobs = UNPROCESSABLE_ENTITY, "too_many_jobs", "Too many jobs at once",
        "The array has more jobs than `api.max_jobs_per_submit`, or the upload more than `batches.max_jobs`; submit it in parts.";
    NoSuchLane = UNPROCESSABLE_ENTITY, "no_such_lane", "No account could ever run it",
        "No configured account fits the account, model and tags that the job asks for.";
    IdempotencyKeyReused = UNPROCESSABLE_ENTITY, "idempotency_key_reused", "The key stands for another request",
        "This Idempotency-Key came with another request before; take a new one.";
    TooManyRequests = TOO_MANY_REQUESTS, "too_many_requests", "Too many requests",
        "The key's `requests_per_minute` is used up; try again after `Retry-After`.";
    TooManyWaiting = TOO_MANY_REQUESTS, "too_many_waiting", "Too many jobs waiting",
        "With these jobs the client would have more waiting than its `max_waiting`; nothing was accepted. Try again when some have ended, or in smaller arrays.";
    BudgetSpent = TOO_MANY_REQUESTS, "budget_spent", "The budget is spent",
        "The client has used up the budget named in `violated-policies`; `resets_at` says when it starts anew.";
    TooManySignIns = TOO_MANY_REQUESTS, "too_many_sign_ins", "Too many sign-ins were refused",
        "From this address; try again after `Retry-After`.";
    Internal = INTERNAL_SERVER_ERROR, "internal", "A fault of ours",
        "Something went wrong inside; the log says what.";
    Busy = SERVICE_UNAVAILABLE, "busy", "Too much at once",
        "More came than can be taken in now; try again after `Retry-After`.";
    TruthUnavailable = SERVICE_UNAVAILABLE, "truth_unavailable", "The database cannot be reached",
        "Try again after `Retry-After`; with an Idempotency-Key that is safe for submits, too.";
}

/// A refusal on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError(Box<Refusal>);

#[derive(Debug)]
struct Refusal {
    code: Code,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    header: Option<(HeaderName, HeaderValue)>,
    policy: Option<&'static str>,
    resets_at: Option<Time>,
}

impl ApiError {
    /// A refusal with what was wrong this time.
    pub(super) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = match code {
            Code::Busy => Some("1"),
            Code::TruthUnavailable => Some("2"),
            _ => None,
        };
        let header =
            retry_after.map(|seconds| (header::RETRY_AFTER, HeaderValue::from_static(seconds)));
        Self(Box::new(Refusal {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            header,
            policy: None,
            resets_at: None,
        }))
    }

    /// A refusal for one field, with that field's words as the whole's.
    pub(super) fn field(code: Code, field: &str, detail: impl fmt::Display) -> Self {
        let detail = clip(&detail.to_string());
        let whole = format!("{}: {detail}", clip(field));
        Self::new(code, whole).with(vec![FieldError {
            field: clip(field),
            detail,
        }])
    }

    /// Names the fields at fault.
    pub(super) fn with(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    /// Says which rule of a quota stands against it, when that starts anew, and in how many
    /// seconds to try again.
    pub(super) fn over(
        mut self,
        policy: &'static str,
        resets_at: Option<Time>,
        retry_after: u64,
    ) -> Self {
        self.0.policy = Some(policy);
        self.0.resets_at = resets_at;
        self.0.header = Some((header::RETRY_AFTER, HeaderValue::from(retry_after)));
        self
    }

    /// A submit that its client's quota does not allow.
    pub(super) fn over_quota(violation: &Violation, jobs: Option<usize>, now: Time) -> Self {
        let Violation {
            policy,
            limit,
            used,
            resets_at,
        } = *violation;
        let name = policy.as_str();
        match resets_at {
            None => {
                let jobs = jobs.map_or("those of the upload".into(), |jobs| format!("{jobs} more"));
                let detail = format!(
                    "{used} of at most {limit} jobs wait already; {jobs} do not fit, and none \
                     was accepted"
                );
                Self::new(Code::TooManyWaiting, detail).over(name, None, BACKLOG_PAUSE)
            }
            Some(reset) => {
                let detail =
                    format!("{used} of {name} {limit} are used; it starts anew at {reset}");
                let wait = super::rate::seconds(Span(reset.since(now)));
                Self::new(Code::BudgetSpent, detail).over(name, resets_at, wait)
            }
        }
    }

    /// A fault of ours: its cause goes to the log, and only there.
    pub(super) fn internal(cause: impl fmt::Display) -> Self {
        tracing::error!(error = %cause, "a request failed by a fault of ours");
        Self::hidden()
    }

    /// A fault of ours whose cause is in the log already.
    fn hidden() -> Self {
        Self::new(
            Code::Internal,
            "Something went wrong inside Sluice; its log says what.",
        )
    }

    /// No valid key came with the request.
    pub(super) fn unauthorized(detail: &'static str) -> Self {
        let mut error = Self::new(Code::Unauthorized, detail);
        error.0.header = Some((
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static(r#"Bearer realm="sluice""#),
        ));
        error
    }

    /// Too many sign-ins were refused.
    pub(super) fn too_many_sign_ins(wait: std::time::Duration) -> Self {
        let seconds = wait.as_secs() + 1;
        let detail = format!("too many sign-ins were refused; try again in {seconds} s");
        let mut error = Self::new(Code::TooManySignIns, detail);
        error.0.header = Some((header::RETRY_AFTER, HeaderValue::from(seconds)));
        error
    }

    /// The key lacks a scope.
    pub(super) fn forbidden(needed: Scope) -> Self {
        let needed = scope_name(needed);
        Self::new(
            Code::Forbidden,
            format!("this needs a key with the scope `{needed}`"),
        )
    }

    /// Its code, its words, the fields at fault, and in how many seconds to try again.
    pub(super) fn into_parts(self) -> (Code, String, Vec<FieldError>, Option<u64>) {
        let Refusal {
            code,
            detail,
            errors,
            header,
            ..
        } = *self.0;
        let retry_after = header
            .filter(|(name, _)| *name == header::RETRY_AFTER)
            .and_then(|(_, value)| value.to_str().ok()?.parse().ok());
        (code, detail.into_owned(), errors, retry_after)
    }

    /// What kind it is.
    pub(super) fn code(&self) -> Code {
        self.0.code
    }

    /// What was wrong this time.
    pub(super) fn detail(&self) -> &str {
        &self.0.detail
    }

    #[cfg(test)]
    pub(super) fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => {
                // Health says it once; saying it for every request would bury all else.
                tracing::debug!(
                    cause,
                    "a request was refused: the database cannot be reached"
                );
                Self::new(
                    Code::TruthUnavailable,
                    "The database cannot be reached now; try again.",
                )
            }
            StoreError::Internal(_) | StoreError::Config(_) => Self::internal(error),
        }
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Unavailable(cause) => {
                tracing::debug!(
                    cause,
                    "a submit was refused: the database cannot be reached"
                );
                Self::submit_unknown()
            }
            SubmitError::Busy => Self::new(
                Code::Busy,
                "More jobs came at once than can be kept in time; try again.",
            ),
            SubmitError::Internal(_) => Self::hidden(),
        }
    }
}

impl ApiError {
    /// The database went away under a submit: the commit may have come through or not.
    pub(super) fn submit_unknown() -> Self {
        Self::new(
            Code::TruthUnavailable,
            "The database cannot be reached now, and nothing is known to have been kept; try \
             again. With an Idempotency-Key that never submits twice.",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Refusal {
            code,
            detail,
            errors,
            header,
            policy,
            resets_at,
        } = *self.0;
        let problem = Problem {
            r#type: format!("{PAGE}#{}", code.as_str()),
            title: code.title().into(),
            status: code.status().as_u16(),
            detail: detail.into_owned(),
            code: code.as_str().into(),
            errors,
            violated_policies: policy.into_iter().map(str::to_owned).collect(),
            resets_at,
        };
        let mut response = (code.status(), Json(problem)).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        headers.extend(header);
        response
    }
}

/// The name of a scope in the API.
pub(super) fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Scope::Read => "read",
        Scope::Submit => "submit",
        Scope::Operate => "operate",
        Scope::Admin => "admin",
    }
}

/// A text of the client's, cut to what is worth repeating.
pub(super) fn clip(text: &str) -> String {
    match text.char_indices().nth(MOST_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The answer for a path that is none.
pub(super) fn no_such_route(uri: &Uri) -> ApiError {
    let path = clip(uri.path());
    ApiError::new(
        Code::NoSuchRoute,
        format!("there is nothing at {path}; /docs lists what is"),
    )
}

/// The answer for a path with another method; the router adds `Allow`.
pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let (method, path) = (clip(method.as_str()), clip(uri.path()));
    ApiError::new(Code::MethodNotAllowed, format!("{path} knows no {method}"))
}

/// The answer when a handler panicked.
#[expect(
    clippy::needless_pass_by_value,
    reason = "tower-http gives it by value"
)]
pub(super) fn panicked(cause: Box<dyn Any + Send>) -> Response {
    let text = cause
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| cause.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    ApiError::internal(format!("a handler panicked: {text}")).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_stands_for_one_problem() {
        let mut seen = HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code:?}");
            assert!(code.status().is_client_error() || code.status().is_server_error());
        }
    }

    #[test]
    fn a_text_of_the_client_is_cut_at_a_character() {
        let text = "ü".repeat(MOST_TEXT + 1);
        assert_eq!(clip(&text).chars().count(), MOST_TEXT + 1);
        assert_eq!(clip("short"), "short");
    }
}
