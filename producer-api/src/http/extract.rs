//! What handlers take out of a request: who asks, which job, which parameters.

use std::{borrow::Cow, sync::Arc};

use axum::{
    extract::{FromRequestParts, Path},
    http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts},
};
use sluice_shared::{
    api::{FieldError, Scope},
    domain::{JobId, Span},
};

use super::{
    Edge, gateway,
    problem::{ApiError, Code, clip},
    session,
};
use crate::auth::Client;

/// The header's value; more than one is a mistake or an attack, and is refused.
pub(super) fn single(
    headers: &HeaderMap,
    name: HeaderName,
) -> Result<Option<&HeaderValue>, ApiError> {
    let mut values = headers.get_all(&name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(ApiError::field(
            Code::DuplicateHeader,
            name.as_str(),
            "was given twice",
        ));
    }
    Ok(first)
}

/// Who asks, by a valid API key or a sign-in.
#[derive(Debug)]
pub(super) struct Caller(pub(super) Client);

impl Caller {
    /// Refuses a caller who may not do what needs `scope`.
    pub(super) fn needs(&self, scope: Scope) -> Result<(), ApiError> {
        if self.0.may(scope) {
            Ok(())
        } else {
            Err(ApiError::forbidden(scope))
        }
    }
}

impl FromRequestParts<Arc<Edge>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, edge: &Arc<Edge>) -> Result<Self, ApiError> {
        let Some(header) = single(&parts.headers, header::AUTHORIZATION)? else {
            if let Some(secret) = gateway::api_key(parts)? {
                return by_key(parts, edge, &secret).await;
            }
            return session::caller(parts, edge)
                .await?
                .map(Self)
                .ok_or_else(|| {
                    ApiError::unauthorized("send an API key as `Authorization: Bearer KEY`")
                });
        };
        let secret = header
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, secret)| secret.trim())
            .filter(|secret| !secret.is_empty())
            .ok_or_else(|| {
                ApiError::unauthorized("the Authorization header is not `Bearer KEY`")
            })?;
        by_key(parts, edge, secret).await
    }
}

/// Who has this key; its request is counted.
async fn by_key(parts: &Parts, edge: &Edge, secret: &str) -> Result<Caller, ApiError> {
    let client = edge.app.keys.client(&edge.app.store, secret);
    match edge.truth(client).await? {
        Some(client) => {
            edge.rates
                .count(&edge.app.live, &client, &parts.extensions)
                .await?;
            Ok(Caller(client))
        }
        None => Err(ApiError::unauthorized("this API key is unknown or revoked")),
    }
}

/// The id in the path, of a job or of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Id(pub(super) uuid::Uuid);

impl Id {
    pub(super) fn job(self) -> JobId {
        JobId(self.0)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let bad =
            |text: &str| ApiError::new(Code::BadId, format!("`{}` is not a UUID", clip(text)));
        let text = match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => text,
            Err(_) => return Err(bad("?")),
        };
        text.parse().map(Self).map_err(|_| bad(&text))
    }
}

/// The parameters of a query, each known and given once.
#[derive(Debug)]
pub(super) struct Params<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Params<'a> {
    /// Reads a query; `known` says which names it may have.
    pub(super) fn parse(
        query: Option<&'a str>,
        known: impl Fn(&str) -> bool,
    ) -> Result<Self, ApiError> {
        let mut params: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !known(&name) {
                return Err(bad_parameter(&name, "is not a parameter of this route"));
            }
            if params.iter().any(|(other, _)| *other == name) {
                return Err(bad_parameter(&name, "was given twice"));
            }
            if name.contains('\0') || value.contains('\0') {
                return Err(bad_parameter(&name, "holds a NUL character"));
            }
            params.push((name, value));
        }
        Ok(Self(params))
    }

    /// The parameter's value.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value)
    }

    /// The parameter's value, parsed; one that does not parse is refused in its own words.
    pub(super) fn parsed<T: std::str::FromStr>(
        &self,
        name: &str,
        words: impl FnOnce(&str, T::Err) -> String,
    ) -> Result<Option<T>, ApiError> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(bad_parameter(name, &words(text, error))),
        }
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_ref()))
    }
}

/// A query parameter is wrong.
pub(super) fn bad_parameter(name: &str, detail: &str) -> ApiError {
    let field = FieldError {
        field: clip(name),
        detail: clip(detail),
    };
    let whole = format!("the parameter `{}` {}", field.field, field.detail);
    ApiError::new(Code::BadParameter, whole).with(vec![field])
}

/// How long a client asks to wait, by `?wait=`.
pub(super) fn wait(query: Option<&str>, most: Span) -> Result<Option<Span>, ApiError> {
    let params = Params::parse(query, |name| name == "wait")?;
    let wait: Option<Span> = params.parsed("wait", |text, _| {
        format!("is `{text}`, not a span of time; write for example 30s")
    })?;
    match wait {
        Some(wait) if wait > most => Err(bad_parameter(
            "wait",
            &format!("is {wait}; the most is {most}"),
        )),
        wait => Ok(wait),
    }
}

/// A route that takes no parameters: one that is given is a mistake, and is said so.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoParams;

impl<S: Send + Sync> FromRequestParts<S> for NoParams {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Params::parse(parts.uri.query(), |_| false).map(|_| Self)
    }
}
