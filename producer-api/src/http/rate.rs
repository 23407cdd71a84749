//! Requests per minute of an API key, and the headers that tell where it stands
//! (draft-ietf-httpapi-ratelimit-headers).
//!
//! What is left is kept in the live plane and shared by all API processes. When the live plane is
//! away nobody is refused: the limit protects the API from a client that runs wild, and an API
//! that refused everyone would be the greater harm.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use axum::{
    extract::Request,
    http::{Extensions, HeaderName, HeaderValue, Response},
    middleware::Next,
};
use sluice_shared::{
    clock,
    domain::{Span, quota::Policy},
    live::{Live, Taken},
};

use super::problem::{ApiError, Code};
use crate::auth::Client;

const WINDOW: Span = Span::seconds(60);

/// How long a request waits for the live plane to count it.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long nothing is counted after the live plane did not answer, so that its being away delays
/// one request and not all.
const REST: Duration = Duration::from_secs(2);

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Counts requests.
#[derive(Debug, Default)]
pub(super) struct Rates {
    rests_until: AtomicI64,
}

/// Where the count of a request is put for its answer's headers.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot(Arc<OnceLock<(u32, Taken)>>);

impl Slot {
    /// The client's quota and where it stands; `None` for one without a quota.
    pub(super) fn count(&self) -> Option<(u32, Taken)> {
        self.0.get().copied()
    }
}

impl Rates {
    /// Counts a request of this client.
    ///
    /// # Errors
    /// When it has none left in this minute.
    pub(super) async fn count(
        &self,
        live: &Live,
        client: &Client,
        extensions: &Extensions,
    ) -> Result<(), ApiError> {
        let Some(quota) = client.requests_per_minute else {
            return Ok(());
        };
        if clock::now().as_millis() < self.rests_until.load(Ordering::Relaxed) {
            return Ok(());
        }
        let taken = tokio::time::timeout(PATIENCE, live.take(&client.name, quota, WINDOW)).await;
        let Ok(Ok(taken)) = taken else {
            let until = (clock::now() + REST).as_millis();
            self.rests_until.store(until, Ordering::Relaxed);
            metrics::counter!("sluice_rate_limits_skipped_total").increment(1);
            tracing::debug!("requests are not counted: the live plane does not answer");
            return Ok(());
        };
        if let Some(slot) = extensions.get::<Slot>() {
            slot.0.get_or_init(|| (quota, taken));
        }
        if taken.left.is_some() {
            return Ok(());
        }
        let detail = format!("this key may make {quota} requests in a minute");
        Err(ApiError::new(Code::TooManyRequests, detail).over(
            Policy::Requests.as_str(),
            Some(clock::now() + taken.resets_in.0),
            seconds(taken.resets_in),
        ))
    }
}

/// Whole seconds, rounded up: a client that waits them has waited long enough.
pub(super) fn seconds(span: Span) -> u64 {
    span.0
        .as_millis()
        .div_ceil(1000)
        .try_into()
        .unwrap_or(u64::MAX)
}

/// Tells a client with a limit where it stands, with every answer.
pub(super) async fn tell(mut request: Request, next: Next) -> Response<axum::body::Body> {
    let slot = Slot::default();
    request.extensions_mut().insert(slot.clone());
    let mut response = next.run(request).await;
    if let Some((quota, taken)) = slot.0.get() {
        let name = Policy::Requests.as_str();
        let policy = format!("\"{name}\";q={quota};w={}", seconds(WINDOW));
        let left = taken.left.unwrap_or(0);
        let state = format!("\"{name}\";r={left};t={}", seconds(taken.resets_in));
        let headers = response.headers_mut();
        for (name, value) in [(POLICY, policy), (STATE, state)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
    }
    response
}
