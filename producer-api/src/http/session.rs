//! Sign-ins of the dashboard: a cookie that a script cannot read stands for an API key.
//!
//! A page of another site cannot use it: the cookie is `SameSite=Strict`, and whatever changes
//! something must come with a header that such a page cannot send.

use std::{
    collections::HashMap,
    marker::PhantomData,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use sluice_shared::{
    api::{NewSession, SessionView},
    clock,
    domain::Time,
};

use super::{
    Edge,
    extract::{Caller, NoParams},
    json,
    problem::{ApiError, Code},
};
use crate::auth::{Client, SESSION};

const COOKIE: &str = "sluice_session";

/// The header that a page of another site cannot send.
const OURS: &str = "sluice-dashboard";

/// Refused sign-ins of one address in a minute, after which it waits for the next.
const MOST_REFUSED: u32 = 10;
const MINUTE: Duration = Duration::from_secs(60);

/// Addresses remembered, at most.
const MOST_ADDRESSES: usize = 10_000;

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// Refused sign-ins, by address.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<HashMap<IpAddr, (Time, u32)>>);

impl Refusals {
    /// How long the address has to wait before it may try again.
    fn wait(&self, address: IpAddr, now: Time) -> Option<Duration> {
        let refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, count) = refusals.get(&address)?;
        let over = now.since(*from);
        (*count >= MOST_REFUSED && over < MINUTE).then(|| MINUTE.saturating_sub(over))
    }

    fn add(&self, address: IpAddr, now: Time) {
        let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() >= MOST_ADDRESSES {
            refusals.retain(|_, (from, _)| now.since(*from) < MINUTE);
        }
        if refusals.len() >= MOST_ADDRESSES {
            refusals.clear();
        }
        let entry = refusals.entry(address).or_insert((now, 0));
        if now.since(entry.0) >= MINUTE {
            *entry = (now, 0);
        }
        entry.1 += 1;
    }
}

/// Sign in, with an API key or by a link.
///
/// The answer sets an http-only cookie that stands for the key, for 7 days or until the key is
/// revoked. With it, whatever is not a GET must come with the header `Sluice-Dashboard`.
#[utoipa::path(
    post, path = "/api/session", tag = "session",
    params(("Sluice-Dashboard" = String, Header, description = "anything, such as `1`")),
    request_body(content = NewSession, content_type = "application/json"),
    responses(
        (status = 201, description = "Signed in.", body = SessionView,
            headers(("Set-Cookie" = String, description = "the session"))),
        (status = 401, description = "`unauthorized`"),
        (status = 403, description = "`cross_site`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_session`"),
        (status = 429, description = "`too_many_sign_ins`"),
    )
)]
pub(super) async fn sign_in(
    State(edge): State<Arc<Edge>>,
    _: NoParams,
    request: Request,
) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let payload = edge.bodies.read(&parts.headers, body).await?;
    is_ours(&parts.headers)?;
    let asked = json::parse(
        &payload.bytes,
        PhantomData::<NewSession>,
        Code::InvalidSession,
    )?;
    let peer = parts.extensions.get::<Peer>();
    let address = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0);
    if let Some(wait) = edge.refusals.wait(address, clock::now()) {
        return Err(ApiError::too_many_sign_ins(wait));
    }
    let (keys, store) = (&edge.app.keys, &edge.app.store);
    let (client, refused) = match (&asked.key, &asked.link) {
        (Some(key), None) => {
            let client = edge.truth(keys.client(store, key.trim())).await?;
            (client, "this API key is unknown or revoked")
        }
        (None, Some(link)) => {
            let client = edge.truth(keys.take_link(store, link)).await?;
            (client, "this link was used before, or is too old")
        }
        _ => {
            let detail = "give either `key` or `link`";
            return Err(ApiError::new(Code::InvalidSession, detail));
        }
    };
    let Some(client) = client else {
        edge.refusals.add(address, clock::now());
        return Err(ApiError::unauthorized(refused));
    };
    let token = edge.truth(keys.sign_in(store, &client)).await?;
    tracing::info!(client = %client.name, %address, "signed in");
    let cookie = cookie(&parts.headers, &token, SESSION)?;
    let headers = [(header::SET_COOKIE, cookie)];
    Ok((StatusCode::CREATED, headers, Json(view(&client))).into_response())
}

/// Who asks, and what they may do.
#[utoipa::path(
    get, path = "/api/session", tag = "session", security(("key" = ["read"])),
    responses((status = 200, description = "The client.", body = SessionView))
)]
pub(super) async fn get_session(caller: Caller, _: NoParams) -> Json<SessionView> {
    Json(view(&caller.0))
}

/// Sign out.
#[utoipa::path(
    delete, path = "/api/session", tag = "session", security(("key" = ["read"])),
    responses((status = 204, description = "The session has ended."))
)]
pub(super) async fn sign_out(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    _: NoParams,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if let Some(token) = token(&headers) {
        edge.truth(edge.app.keys.sign_out(&edge.app.store, token))
            .await?;
    }
    let cookie = cookie(&headers, "", Duration::ZERO)?;
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Who asks, by the cookie of a sign-in; `None` without one.
pub(super) async fn caller(parts: &Parts, edge: &Edge) -> Result<Option<Client>, ApiError> {
    let Some(token) = token(&parts.headers) else {
        return Ok(None);
    };
    if !parts.method.is_safe() {
        is_ours(&parts.headers)?;
    }
    let client = edge.app.keys.signed_in(&edge.app.store, token);
    match edge.truth(client).await? {
        Some(client) => Ok(Some(client)),
        None => Err(ApiError::unauthorized(
            "the session has ended; sign in again",
        )),
    }
}

fn is_ours(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(OURS) {
        return Ok(());
    }
    let detail = "a request with the cookie of a sign-in needs the header `Sluice-Dashboard`";
    Err(ApiError::new(Code::CrossSite, detail))
}

/// The token in the cookie.
fn token(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, value)| *name == COOKIE && !value.is_empty())
        .map(|(_, token)| token)
}

/// The cookie for a page that was loaded by TLS is sent by TLS only.
fn cookie(headers: &HeaderMap, token: &str, age: Duration) -> Result<HeaderValue, ApiError> {
    let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
    let is_secure = origin.is_some_and(|origin| origin.starts_with(b"https://"));
    let secure = if is_secure { "; Secure" } else { "" };
    let age = age.as_secs();
    let cookie =
        format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age={age}{secure}");
    HeaderValue::try_from(cookie).map_err(ApiError::internal)
}

fn view(client: &Client) -> SessionView {
    SessionView {
        key: client.key,
        client: client.name.as_ref().to_owned(),
        scope: client.scope,
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_address_and_minute() {
        let (refusals, start) = (Refusals::default(), Time::from_millis(0));
        let [one, other] = [1, 2].map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)));
        for _ in 0..MOST_REFUSED {
            assert_eq!(refusals.wait(one, start), None);
            refusals.add(one, start);
        }
        assert_eq!(refusals.wait(one, start), Some(MINUTE));
        assert_eq!(refusals.wait(other, start), None);
        assert_eq!(refusals.wait(one, start + MINUTE), None);
        refusals.add(one, start + MINUTE);
        assert_eq!(refusals.wait(one, start + MINUTE), None);
    }
}
