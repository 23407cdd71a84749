//! What every answer of these endpoints tells: its id, and where the caller's quota stands, in
//! headers of the caller's dialect.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Response, header},
    middleware::Next,
};
use sluice_shared::{clock, domain::JobId, live::Taken};

use super::{Dialect, fault::Fault};
use crate::http::rate::{self, Slot};

/// The job of an answer.
const JOB: HeaderName = HeaderName::from_static("sluice-job");

/// What SDKs of both makers obey, whatever the status.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The job that an answer is of, on its way to the headers.
#[derive(Clone, Copy, Debug)]
pub(in crate::http) struct OfJob(pub(in crate::http) JobId);

/// Adds the headers.
pub(super) async fn tell(request: Request, next: Next) -> Response<Body> {
    let dialect = Dialect::of(request.uri(), request.headers());
    let slot = request.extensions().get::<Slot>().cloned();
    let mut response = next.run(request).await;
    let job = response.extensions().get::<OfJob>().copied();
    let headers = response.headers_mut();
    let id = match job {
        Some(OfJob(job)) => {
            set(headers, JOB, job.to_string());
            job.0
        }
        None => JobId::generate().0,
    };
    let name = match dialect {
        Dialect::OpenAi => "x-request-id",
        Dialect::Anthropic => "request-id",
    };
    set(
        headers,
        HeaderName::from_static(name),
        format!("req_{}", id.simple()),
    );
    if let Some((quota, taken)) = slot.and_then(|slot| slot.count()) {
        standing(headers, dialect, quota, taken);
    }
    response
}

/// Requests in a minute, as each maker's API tells them.
fn standing(headers: &mut HeaderMap, dialect: Dialect, quota: u32, taken: Taken) {
    let left = taken.left.unwrap_or(0).to_string();
    let names = match dialect {
        Dialect::OpenAi => [
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ],
        Dialect::Anthropic => [
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
            "anthropic-ratelimit-requests-reset",
        ],
    };
    let reset = match dialect {
        Dialect::OpenAi => format!("{}s", rate::seconds(taken.resets_in)),
        Dialect::Anthropic => (clock::now() + taken.resets_in.0).to_string(),
    };
    for (name, value) in names.into_iter().zip([quota.to_string(), left, reset]) {
        set(headers, HeaderName::from_static(name), value);
    }
}

/// When to try again, if at all.
pub(in crate::http) fn retries(headers: &mut HeaderMap, fault: &Fault) {
    if let Some(seconds) = fault.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if fault.is_final {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
